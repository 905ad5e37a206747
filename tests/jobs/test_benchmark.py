"""The benchmarks measure what they say, here on small models."""

import json
import math

import pytest
from support import run_command, run_process

from clinmerge_jax.benchmark import generating
from clinmerge_jax.benchmark.load import check_same_tensors
from clinmerge_jax.benchmark.measuring.checkpoints import make_checkpoint
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.llama.config import LlamaConfig
from configs import benchmark

SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 8}


def test_made_checkpoints_are_siblings(tmp_path):
    raw = {**benchmark.get_config().model.to_dict(), **SMALL}
    llama = LlamaConfig.from_json(raw, "config.model")
    for name, drift in (("one", 0.0), ("two", 0.03)):
        make_checkpoint(tmp_path / name, raw, llama, drift)
    one, two = (open_checkpoint(str(tmp_path / name), name) for name in ("one", "two"))
    a, b = (read_tensor(c.tensors["model.embed_tokens.weight"]).astype("float64") for c in (one, two))
    distance = (((a - b) ** 2).sum() / (a**2).sum()) ** 0.5
    assert 0.025 < distance < 0.035


@pytest.mark.slow
def test_the_benchmark_reports_time_over_the_floor_and_memory(repository, tmp_path):
    mine = tmp_path / "bench" / "instruct" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    fields = [f"--config.model.{key}={value}" for key, value in SMALL.items()]
    options = [
        "--config=configs/benchmark.py:merge",
        "--config.repeats=1",
        f"--config.output={tmp_path / 'bench'}",
        "--config.methods=('slerp',)",
    ]
    process = run_process(repository, *options, *fields)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "bench" / "merge.json").read_text())
    (ours,) = result["measured"]["clinmerge_jax slerp"]
    assert ours["seconds"] > 0 and ours["peak_bytes"] > 10**7
    assert "over the floor" in process.stdout
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["instruct", "merge.json"]
    assert mine.read_text() == "mine"


def _small(what, folder, *more):
    fields = [f"--config.model.{key}={value}" for key, value in SMALL.items()]
    return [f"--config=configs/benchmark.py:{what}", "--config.repeats=1", f"--config.output={folder}", *fields, *more]


@pytest.mark.slow
def test_points_on_the_devices_are_measured_against_a_copy(repository, tmp_path):
    more = ["--config.points=2", "--config.mesh.tensor=1"]
    process = run_process(repository, *_small("merge_on_device", tmp_path, *more))
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "merge_on_device.json").read_text())
    assert result["mesh"]["tensor"] == 1
    names = ["three models at a copy's bandwidth", "linear", "slerp", "slerp's statistics, once"]
    assert list(result["measured"]) == names
    assert all(runs[0]["seconds"] > 0 for runs in result["measured"].values())
    assert all(f"| {name} " in process.stdout for name in names)


@pytest.mark.slow
def test_a_checkpoint_goes_onto_eight_devices_and_back(repository, tmp_path):
    process = run_process(repository, *_small("load", tmp_path))
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "load.json").read_text())
    assert result["mesh"] == {"data": 1, "fsdp": 1, "tensor": 8}
    assert result["measured"]["save from the devices"][0]["peak_bytes"] > 10**7
    assert [path.name for path in tmp_path.iterdir()] == ["load.json"]


def test_a_checkpoint_goes_through_orbax_onto_eight_devices(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)  # as the launch scripts do
    assert run_command(*_small("orbax", tmp_path, "--config.model.vocab_size=1003")) == 0
    result = json.loads((tmp_path / "orbax.json").read_text())
    assert result["mesh"] == {"data": 1, "fsdp": 1, "tensor": 8} and result["bytes"] > 0
    assert all(runs[0]["peak_bytes"] > 10**7 for name, runs in result["measured"].items() if "floor" not in name)
    assert [path.name for path in tmp_path.iterdir()] == ["orbax.json"]


def test_a_copy_that_differs_in_one_bit_is_noticed(tmp_path):
    raw = {**benchmark.get_config().model.to_dict(), **SMALL}
    for name in ("one", "two"):
        make_checkpoint(tmp_path / name, raw, LlamaConfig.from_json(raw, "config.model"), 0.0)
    check_same_tensors(tmp_path / "one", tmp_path / "two")
    path = tmp_path / "two" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match="tensor lm_head.weight"):
        check_same_tensors(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_steps_of_training_are_measured_beside_the_peer(repository, tmp_path, capfd):
    heads = [f"--config.model.num_{name}_heads=8" for name in ("attention", "key_value")]
    fields = ["--config.shapes=((2, 16),)", "--config.weights=('full',)", "--config.product=64", *heads]
    _, *arguments = _small("train", tmp_path, *fields)
    assert run_command(f"--config={repository}/configs/benchmark.py:train", *arguments) == 0
    measured = json.loads((tmp_path / "train.json").read_text())["measured"]
    assert list(measured) == [f"full, 2 x 16: {name}" for name in ("floor", "clinmerge_jax", "transformers")]
    (floor,), (ours,), (peer,) = measured.values()
    for one in (ours, peer):
        # Random tokens are about as likely as any other.
        assert abs(one["loss"] - math.log(SMALL["vocab_size"])) < 1 and one["peak_bytes"] > 10**8
        assert one["tokens_per_second"] * one["seconds"] == pytest.approx(2 * 16)
        assert one["mfu"] == pytest.approx(floor["seconds"] / one["seconds"])
    assert capfd.readouterr().out.startswith("| training ")


@pytest.mark.slow
def test_reading_and_decoding_are_measured_beside_the_peer(repository, tmp_path, capfd):
    heads = [f"--config.model.num_{name}_heads=8" for name in ("attention", "key_value")]
    fields = ["--config.batches=(2,)", "--config.prompt=8", "--config.new=4", "--config.product=64", *heads]
    _, *arguments = _small("decode", tmp_path, *fields)
    assert run_command(f"--config={repository}/configs/benchmark.py:decode", *arguments) == 0
    measured = json.loads((tmp_path / "decode.json").read_text())["measured"]
    programs = [f"{name}, batch 2" for name in ("clinmerge_jax", "transformers")]
    rows = [name + part for name in programs for part in ("", ": prompts")]
    assert [name for name in measured if not name.startswith("floor")] == rows
    for name, (run,) in measured.items():
        tokens = 2 * 8 if "prompts" in name else 2 * 3
        assert run["tokens_per_second"] * run["seconds"] == pytest.approx(tokens)
    assert "clinmerge_jax / transformers, batch 2: prompts: " in capfd.readouterr().out


def test_operations_of_reading_are_those_of_the_products_and_the_attention():
    raw = {**benchmark.get_config().model.to_dict(), **SMALL, "num_attention_heads": 8, "num_key_value_heads": 4}
    llama = LlamaConfig.from_json(raw, "config.json")
    norms, attention, mlp = 2 * 64, 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128
    layer, last_too = norms + attention + mlp, 2 * 64 * 32
    weights = 5 * (layer + last_too) + (layer - last_too) + 512 * 64  # the final norm's 64 are left to the rounding
    pairs = 15 + 5
    assert generating.reading_flops(llama, 3, 5) == pytest.approx(3 * (2 * weights + 4 * 64 * pairs), rel=2e-3)


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("merge", "repeats=0"),
        ("decode", "product=0"),
        ("load", "repeats=0"),
        ("merge_on_device", "methods=('ties',)"),
        ("merge", "methods=()"),
        ("grid", "repeats=0"),
        ("grid", "launched=9"),
        ("train", "shapes=((4, 2048),)"),
        ("train", "weights=('some',)"),
        ("train", "peer_python=nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(repository, tmp_path, capfd, what, field):
    arguments = [f"--config={repository}/configs/benchmark.py:{what}", f"--config.{field}"]
    assert run_command(*arguments, f"--config.output={tmp_path / 'bench'}") == 2
    assert capfd.readouterr().err.startswith(f"error: config.{field.split('=')[0]}: ")
    assert not (tmp_path / "bench").exists()


@pytest.mark.slow
def test_a_grid_takes_less_time_than_a_launch_for_each_run(repository, tmp_path):
    options = ["--config=configs/benchmark.py:grid", "--config.seeds=0,1,2", "--config.shots=8,16"]
    process = run_process(repository, *options, f"--config.output={tmp_path}")
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "grid.json").read_text())
    assert (result["runs"], result["launched"]) == (6, 2)
    assert "2 were measured, 1 for each number of examples, and their seconds multiplied by 3." in process.stdout
    grid, launches = (
        result["measured"][name][0]["seconds"] for name in ("one grid, one launch", "a launch for each run")
    )
    assert grid < launches
    assert [path.name for path in tmp_path.iterdir()] == ["grid.json"]


@pytest.mark.slow
def test_checkpoints_of_3_gb_merge_in_less_than_1_5_gb(repository, tmp_path):
    options = ["--config=configs/benchmark.py:merge", "--config.repeats=1", f"--config.output={tmp_path / 'bench'}"]
    process = run_process(repository, *options)
    assert process.returncode == 0, process.stderr
    measured = json.loads((tmp_path / "bench" / "merge.json").read_text())["measured"]
    for method in ("linear", "slerp"):
        assert measured[f"clinmerge_jax {method}"][0]["peak_bytes"] < 1.5e9
