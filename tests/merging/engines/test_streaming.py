"""The streaming engine: the same bits however the work is cut, killed or resumed."""

import json
import os
import signal
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from support import in_every_run, llama_tensors, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging import row_source
from clinmerge_jax.merging.engines import streaming
from clinmerge_jax.merging.engines.streaming import run_merge
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source, two_parents
from clinmerge_jax.merging.recipes.schedule import Schedule

SCHEDULE = "self_attn=0,1; mlp=1,0.25; 0.5"


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def parents(request, tmp_path):
    dtype = np.dtype(getattr(ml_dtypes, request.param, request.param))
    folders = [write_llama(tmp_path / name, seed, dtype, vocab_size=50) for seed, name in enumerate(("one", "two"))]
    return [open_checkpoint(str(folder), "config.parent") for folder in folders]


def _merge(recipe, sources, target, shard_bytes=10**9, **options):
    plan = plan_merge(recipe, sources, shard_bytes)
    with OutputFolder(target, {"recipe": recipe.to_json()}, overwrite=True) as output:
        output.open()
        differences, digests = run_merge(plan, output, **options)
        output.commit({})
    return differences, digests


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "provenance.json"}


def _recipe(method, parents):
    return two_parents(method, str(parents[0].path), str(parents[1].path), SCHEDULE)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_pieces_and_memory_limits_do_not_change_a_bit(parents, method, tmp_path):
    recipe = _recipe(method, parents)
    _merge(recipe, parents, tmp_path / "whole")
    for name, options in {
        "rows": {"piece_bytes": 1},
        "some rows, read twice": {"piece_bytes": 64, "held_bytes": 0},
        "held": {"piece_bytes": 200, "held_bytes": 10**6},
    }.items():
        _merge(recipe, parents, tmp_path / name, **options)
        assert _files(tmp_path / name) == _files(tmp_path / "whole"), name


def test_shards_hold_the_tensors_of_the_single_file(parents, tmp_path):
    recipe = _recipe("slerp", parents)
    _merge(recipe, parents, tmp_path / "single")
    _merge(recipe, parents, tmp_path / "sharded", shard_bytes=600)
    single, sharded = (open_checkpoint(str(tmp_path / name), "x") for name in ("single", "sharded"))
    assert len(sharded.files) > 3 and len(single.files) == 1
    for name, entry in single.tensors.items():
        assert read_tensor(entry).tobytes() == read_tensor(sharded.tensors[name]).tobytes()


def test_every_tensor_is_the_sum_its_schedule_asks_for(parents, tmp_path):
    differences, _ = _merge(_recipe("linear", parents), parents, tmp_path / "merged")
    merged = open_checkpoint(str(tmp_path / "merged"), "x")
    schedule = Schedule.parse(SCHEDULE, "t")
    assert [difference.name for difference in differences] == list(parents[0].tensors)
    for difference in differences:
        t = schedule.at(difference.name, 2)
        assert difference.coefficients == (1.0 - t, t)
        one, two = (read_tensor(parent.tensors[difference.name]).astype(np.float64) for parent in parents)
        expected = ((1 - t) * one + t * two).astype(parents[0].tensors[difference.name].dtype)
        result = read_tensor(merged.tensors[difference.name])
        np.testing.assert_allclose(result.astype(np.float64), expected.astype(np.float64), rtol=2**-7, atol=1e-7)
        assert difference.totals.difference_squared == pytest.approx(np.sum((one - two) ** 2), rel=1e-5)
        assert difference.totals.a_squared == pytest.approx(np.sum(one**2), rel=1e-5)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_the_ends_are_the_parents(parents, method, tmp_path):
    for t, parent in zip((0, 1), parents):
        recipe = two_parents(method, str(parents[0].path), str(parents[1].path), t)
        _merge(recipe, parents, tmp_path / "merged")
        merged = open_checkpoint(str(tmp_path / "merged"), "x")
        for name, entry in parent.tensors.items():
            np.testing.assert_array_equal(read_tensor(merged.tensors[name]), read_tensor(entry))


def test_three_models_merge_and_dtypes_may_differ(tmp_path):
    dtypes = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.float16))
    folders = [write_llama(tmp_path / str(seed), seed, dtype) for seed, dtype in enumerate(dtypes)]
    sources = [open_checkpoint(str(folder), "x") for folder in folders]
    weights = (1, 2, 3)
    recipe = Recipe(
        "linear",
        tuple(Source(str(f), {"weight": Schedule.parse(w, "w")}) for f, w in zip(folders, weights)),
        dtype="float32",
    )
    _merge(recipe, sources, tmp_path / "merged")
    merged = open_checkpoint(str(tmp_path / "merged"), "x")
    assert merged.config["torch_dtype"] == "float32"
    for name, entry in merged.tensors.items():
        values = [read_tensor(source.tensors[name]).astype(np.float64) for source in sources]
        expected = sum(w * x for w, x in zip(weights, values)) / 6
        assert entry.dtype == np.float32
        np.testing.assert_allclose(read_tensor(entry), expected, rtol=1e-6, atol=1e-7)


def test_the_result_is_a_safetensors_file_to_the_library(parents, tmp_path):
    _merge(_recipe("linear", parents), parents, tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(parents[0].tensors)
        assert file.metadata() == {"format": "pt"}


def test_input_digests_are_those_of_the_files_whatever_their_order(tmp_path):
    import hashlib

    tensors = llama_tensors({**json.loads((write_llama(tmp_path / "one") / "config.json").read_text())}, 1)
    write_llama(tmp_path / "two", tensors=dict(reversed(tensors.items())), shards=3)
    sources = [open_checkpoint(str(tmp_path / name), "x") for name in ("one", "two")]
    _, digests = _merge(two_parents("slerp", "a", "b", 0.5), sources, tmp_path / "merged", held_bytes=0)
    files = [path for source in sources for path in source.files]
    assert digests == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


_KILLED = """
import os, signal, sys
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.merging.recipes.recipe import two_parents
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.engines.streaming import run_merge
one, two, target, limit = sys.argv[1:]
recipe = two_parents("slerp", one, two, 0.5)
plan = plan_merge(recipe, [open_checkpoint(path, "x") for path in (one, two)], 600)
done = 0
def progress(nbytes):
    global done
    done += nbytes
    if done >= float(limit) * plan.nbytes:
        os.kill(os.getpid(), signal.SIGKILL)
with OutputFolder(target, {"recipe": recipe.to_json()}) as output:
    output.open()
    run_merge(plan, output, progress=progress)
"""


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_killed_merge_leaves_no_result_and_a_rerun_goes_on(tmp_path, share):
    one, two = (str(write_llama(tmp_path / name, seed)) for seed, name in enumerate(("one", "two")))
    target = tmp_path / "merged"
    process = subprocess.run([sys.executable, "-c", _KILLED, one, two, str(target), str(share)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not target.exists()
    partial = tmp_path / ".merged.partial"
    finished = {path.name: path.stat().st_ino for path in partial.glob("model-*.safetensors")}
    assert bool(finished) == (share > 0.1)

    sources = [open_checkpoint(path, "x") for path in (one, two)]
    recipe = two_parents("slerp", one, two, 0.5)
    plan = plan_merge(recipe, sources, 600)
    with OutputFolder(target, {"recipe": recipe.to_json()}) as output:
        assert output.open() is OutputState.RESUMED
        differences, digests = run_merge(plan, output)
        output.commit({})
    kept = json.loads((partial if partial.exists() else target).joinpath("provenance.json").read_text())
    assert kept["identity"] == {"recipe": recipe.to_json()}
    inodes = {path.name: path.stat().st_ino for path in target.glob("model-*.safetensors")}
    reused = [name for name in finished if inodes[name] == finished[name]]
    # The last file of a run killed between its rename and its journal entry is made again.
    assert len(reused) >= len(finished) - 1
    undisturbed, expected_digests = _merge(recipe, sources, tmp_path / "undisturbed", shard_bytes=600)
    assert _files(target) == _files(tmp_path / "undisturbed")
    assert (differences, digests) == (undisturbed, expected_digests)


def test_a_weight_file_that_vanished_from_an_interrupted_run_is_made_again(tmp_path):
    folders = [write_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    sources = [open_checkpoint(str(folder), "x") for folder in folders]
    plan = plan_merge(two_parents("linear", "a", "b", 0.5), sources, 600)
    for _ in range(2):
        with OutputFolder(tmp_path / "merged", {}) as output:
            output.open()
            run_merge(plan, output)  # not committed: as if killed while the result was evaluated
        next((tmp_path / ".merged.partial").glob("model-00002-*.safetensors")).unlink()
    with OutputFolder(tmp_path / "merged", {}) as output:
        assert output.open() is OutputState.RESUMED
        run_merge(plan, output)
        output.commit({})
    _merge(two_parents("linear", "a", "b", 0.5), sources, tmp_path / "undisturbed", shard_bytes=600)
    assert _files(tmp_path / "merged") == _files(tmp_path / "undisturbed")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    config = json.loads((write_llama(tmp_path / "one") / "config.json").read_text())
    tensors = llama_tensors(config, 1)
    tensors["model.norm.weight"][3] = np.nan
    write_llama(tmp_path / "two", tensors=tensors)
    sources = [open_checkpoint(str(tmp_path / name), "x") for name in ("one", "two")]
    with pytest.raises(BadInput, match="model.norm.weight holds NaN"):
        _merge(two_parents("linear", "a", "b", 0.5), sources, tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not (tmp_path / ".merged.partial").exists()


@pytest.mark.parametrize("place", ["read_into", "header_bytes"])
def test_a_failing_disk_ends_the_merge_with_its_error_and_no_thread_left(tmp_path, monkeypatch, place):
    folders = [write_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    sources = [open_checkpoint(str(folder), "x") for folder in folders]

    def fail(*args, **kwargs):
        raise OSError("the disk is gone")

    monkeypatch.setattr(row_source if place == "read_into" else streaming, place, fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        _merge(two_parents("linear", "a", "b", 0.5), sources, tmp_path / "merged")
    assert threading.active_count() == before
    assert not (tmp_path / "merged").exists()


_PEAK = """
import pathlib, sys
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.merging.recipes.recipe import two_parents
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.engines.streaming import run_merge
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
def merge(one, two, target):
    plan = plan_merge(two_parents(sys.argv[1], one, two, 0.5), [open_checkpoint(path, "x") for path in (one, two)])
    with OutputFolder(target, {}) as output:
        output.open()
        run_merge(plan, output, piece_bytes=1 << 20, held_bytes=1 << 20)
merge(*sys.argv[2:4], sys.argv[4] + "-small")
start = peak()
merge(*sys.argv[5:7], sys.argv[4] + "-large")
print(peak() - start)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("method", in_every_run(["linear", "slerp"], lambda method: method == "slerp"))
def test_memory_does_not_grow_with_the_tensor(tmp_path, method):
    small = [str(write_llama(tmp_path / f"small{seed}", seed, vocab_size=2**12, hidden_size=128)) for seed in (0, 1)]
    large = [str(write_llama(tmp_path / f"large{seed}", seed, vocab_size=2**18, hidden_size=128)) for seed in (0, 1)]
    command = [sys.executable, "-c", _PEAK, method, *small, str(tmp_path / "out"), *large]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    embedding = 2**18 * 128 * 2
    assert int(process.stdout) < embedding  # of which there are six: embedding and head, of each parent and the result


def test_values_that_float16_may_not_hold_are_refused(tmp_path):
    config = json.loads((write_llama(tmp_path / "one") / "config.json").read_text())
    tensors = llama_tensors(config, 1)
    tensors["lm_head.weight"][0, 0] = 1e6
    write_llama(tmp_path / "two", tensors=tensors)
    sources = [open_checkpoint(str(tmp_path / name), "x") for name in ("one", "two")]
    with pytest.raises(BadInput, match="config.dtype: tensor lm_head.weight comes to values over"):
        _merge(two_parents("slerp", "a", "b", 0.5, dtype="float16"), sources, tmp_path / "merged")


def test_an_empty_tensor_is_refused(tmp_path):
    config = json.loads((write_llama(tmp_path / "one") / "config.json").read_text())
    tensors = {**llama_tensors(config), "model.nothing": np.zeros((0, 4), np.float32)}
    folder = write_llama(tmp_path / "two", tensors=tensors)
    with pytest.raises(BadInput, match="model.nothing has no entries"):
        plan_merge(two_parents("linear", "a", "b", 0.5), [open_checkpoint(str(folder), "x")] * 2)
