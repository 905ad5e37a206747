"""The convert job: dtypes, shards, interruption, what is there already, refusals, and every other job's refusal."""

import json
import os
import shutil
import types

import gguf_files
import numpy as np
import pytest
import safetensors.numpy
import support
from support import BF16, TINY, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.conversion import writing
from clinmerge_jax.errors import BadInput


def _tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= support.read_raw(path)
    return found


def test_a_folder_comes_out_as_it_went_in_with_other_shards(tmp_path, capsys):
    write_llama(tmp_path / "model", shards=3)
    support.write_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("terms")
    folder = support.convert(tmp_path / "model", tmp_path / "out", max_shard_gb=5e-7)
    assert _tensors(folder) == _tensors(tmp_path / "model")
    assert len(list(folder.glob("*.safetensors"))) == 6 and (folder / "model.safetensors.index.json").is_file()
    assert open_checkpoint(str(folder), "model").nbytes == open_checkpoint(str(tmp_path / "model"), "model").nbytes
    for name in ("tokenizer.json", "LICENSE"):
        assert (folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "model/config.json").read_text())
    said = capsys.readouterr().out
    assert "Stored in bfloat16; no value was rounded." in said and "Next:" in said
    record = json.loads((folder / "provenance.json").read_text())
    assert len(record["sha256"]["source"]) == 4 and record["rounded_values"] == 0


def test_names_under_a_prefix_are_written_back_as_they_came(tmp_path):
    tensors = {f"language_model.{name}": values for name, values in support.llama_tensors(TINY, 0).items()}
    write_llama(tmp_path / "model", tensors=tensors)
    folder = support.convert(tmp_path / "model", tmp_path / "out", max_shard_gb=5e-7)
    assert _tensors(folder) == _tensors(tmp_path / "model")
    usual = support.convert(support.convert(folder, tmp_path / "orbax", format="orbax"), tmp_path / "usual")
    assert set(_tensors(usual)) == {name.removeprefix("language_model.") for name in tensors}


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16, np.dtype(np.float16)])
def test_rounding_is_done_once_to_the_nearest_and_said(tmp_path, capsys, dtype):
    tensors = support.llama_tensors(TINY, 0, np.float32)
    tensors["model.norm.weight"][:] = 1.0  # exact in every dtype
    write_llama(tmp_path / "model", dtype=np.float32, tensors=tensors)
    folder = support.convert(tmp_path / "model", tmp_path / "out", dtype=str(dtype))
    expected = {name: values.astype(dtype) for name, values in tensors.items()}
    assert {name: raw for name, (_, _, raw) in _tensors(folder).items()} == {
        name: values.tobytes() for name, values in expected.items()
    }
    changed = sum(int((expected[name].astype(np.float32) != values).sum()) for name, values in tensors.items())
    total = sum(values.size for values in tensors.values())
    said = "no value was rounded" if dtype == np.float32 else f"{changed:,} of {total:,} values were rounded, by 0.00"
    assert said in capsys.readouterr().out and (changed == 0) == (dtype == np.float32)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == str(dtype)


def test_the_largest_rounding_is_relative():
    values = np.array([1.0, 1.00390625, 3.0e-40, np.nan, np.inf], np.float32)
    result, rounding = writing.convert(values, BF16, "x")
    assert (rounding.values, rounding.changed) == (5, 2)
    assert rounding.largest == pytest.approx(0.00390625 / 1.00390625) and np.isnan(result[3]) and np.isinf(result[4])


def test_a_value_that_does_not_fit_is_refused(tmp_path):
    tensors = support.llama_tensors(TINY, 0, np.float32)
    tensors["model.norm.weight"][3] = 7e4
    write_llama(tmp_path / "model", dtype=np.float32, tensors=tensors)
    with pytest.raises(BadInput, match="config.dtype: tensor model.norm.weight holds values that float16 cannot"):
        support.convert(tmp_path / "model", tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_that_are_read_in_pieces_are_the_same(tmp_path, monkeypatch):
    gguf_files.write_llama(tmp_path / "model.gguf", "Q8_0")
    whole = _tensors(support.convert(tmp_path / "model.gguf", tmp_path / "whole"))
    monkeypatch.setattr("clinmerge_jax.conversion.source.PIECE_BYTES", 1000)
    assert _tensors(support.convert(tmp_path / "model.gguf", tmp_path / "pieces")) == whole
    orbax = support.convert(tmp_path / "model.gguf", tmp_path / "orbax", format="orbax")
    assert _tensors(support.convert(orbax, tmp_path / "back")) == whole


@pytest.mark.parametrize("form", ["huggingface", "orbax"])
def test_the_whole_path_keeps_a_digest_of_the_source(tmp_path, form):
    gguf_files.write_llama(tmp_path / "model.gguf", "Q4_1")
    folder = support.convert(tmp_path / "model.gguf", tmp_path / "out", format=form)
    record = json.loads((folder / "provenance.json").read_text())
    from clinmerge_jax.checkpoint.digest import sha256

    assert record["sha256"]["source"] == {"model.gguf": sha256(tmp_path / "model.gguf")}
    assert record["stored"]["model.norm.weight"] == "F32"
    assert record["stored"]["model.layers.0.mlp.up_proj.weight"] == "Q4_1"


def test_an_interrupted_conversion_goes_on_after_its_last_file(tmp_path, monkeypatch):
    gguf_files.write_llama(tmp_path / "model.gguf")
    whole = support.convert(tmp_path / "model.gguf", tmp_path / "whole", max_shard_gb=5e-5)
    count = len(list(whole.glob("*.safetensors")))
    assert count > 4
    read, calls = writing.convert, []

    def failing(values, dtype, name):
        calls.append(name)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return read(values, dtype, name)

    monkeypatch.setattr(writing, "convert", failing)
    with pytest.raises(KeyboardInterrupt):
        support.convert(tmp_path / "model.gguf", tmp_path / "out", max_shard_gb=5e-5)
    assert not (tmp_path / "out").exists()
    support.convert(tmp_path / "model.gguf", tmp_path / "out", max_shard_gb=5e-5)
    repeated = len(calls) - len(_tensors(whole))
    assert 1 <= repeated < 5  # those of the one file that was begun
    for path in whole.iterdir():
        if path.name not in ("provenance.json", "README.md"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert sorted(os.listdir(whole)) == sorted(os.listdir(tmp_path / "out"))


def test_what_is_finished_is_left_and_another_is_refused(tmp_path, capsys):
    gguf_files.write_llama(tmp_path / "model.gguf")
    folder = support.convert(tmp_path / "model.gguf", tmp_path / "out")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    shutil.move(tmp_path / "model.gguf", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "moved", tmp_path / "elsewhere" / "model.gguf")
    support.convert(tmp_path / "elsewhere" / "model.gguf", tmp_path / "out")
    assert "finished already" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="holds a result of another configuration"):
        support.convert(tmp_path / "elsewhere" / "model.gguf", tmp_path / "out", dtype="bfloat16")
    support.convert(tmp_path / "elsewhere" / "model.gguf", tmp_path / "out", dtype="bfloat16", overwrite=True)
    assert open_checkpoint(str(folder), "model").tensors["model.norm.weight"].dtype == BF16


def test_a_disk_without_space_is_told_beforehand(tmp_path, monkeypatch):
    write_llama(tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(BadInput, match="^config.output: the result takes .* has 100B free"):
        support.convert(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_layers_of_several_dtypes_need_one_for_orbax(tmp_path):
    tensors = support.llama_tensors(TINY, 0, np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float16)
    write_llama(tmp_path / "model", dtype=np.float32, tensors=tensors)
    with pytest.raises(BadInput, match="up_proj.weight in float16 and float32; give one with --config.dtype"):
        support.convert(tmp_path / "model", tmp_path / "out", format="orbax")
    assert support.convert(tmp_path / "model", tmp_path / "out", format="orbax", dtype="float32").is_dir()
    assert {code for code, _, _ in _tensors(support.convert(tmp_path / "model", tmp_path / "same")).values()} == {
        "F32",
        "F16",
    }


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"format": "pickle"}, "config.format: 'pickle' is unknown"),
        ({"dtype": "int8"}, "config.dtype: 'int8' is unknown"),
        ({"max_shard_gb": 0.0}, "config.max_shard_gb: is 0.0"),
        ({"source": ""}, "config.source: is empty"),
        ({"source": "nowhere"}, "config.source: nowhere is not a folder"),
        ({"source": "{tmp}/missing.gguf"}, "config.source: {tmp}/missing.gguf is not a folder"),
        ({"source": "{tmp}/text.gguf"}, "{tmp}/text.gguf: is not a GGUF file"),
        ({"source": "{tmp}/file.bin"}, "config.source: {tmp}/file.bin is a file but not a GGUF file"),
        ({"tokenizer": "{tmp}/nothing"}, "config.tokenizer: {tmp}/nothing is not a folder"),
        ({"tokenizer": "{tmp}/empty"}, "config.tokenizer: {tmp}/empty has no tokenizer files"),
        ({"output": "{tmp}/model/out"}, "is in the folder of config.source"),
        ({"source": "{tmp}/other", "format": "orbax"}, "model_type"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, fields, says):
    write_llama(tmp_path / "model")
    write_llama(tmp_path / "other", model_type="gpt_neox")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("words")
    (tmp_path / "file.bin").write_text("words")
    before = sorted(tmp_path.rglob("*"))
    fields = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in fields.items()}
    fields = {"source": tmp_path / "model", "output": tmp_path / "out", **fields}
    with pytest.raises(BadInput) as refusal:
        support.convert(**fields)
    assert says.format(tmp=tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


MODEL_FIELDS = (
    ("generate.py", "model"),
    ("compare.py", "model"),
    ("evaluate.py", "model"),
    ("sft.py:lora", "model"),
    ("merge.py", "instruct"),
    ("merge.py", "clinical"),
    ("merge.py:inspect", "clinical"),
    ("merge.py:extract_lora", "base"),
    ("benchmark.py:grid", "model"),
)


@pytest.mark.parametrize("config, field", MODEL_FIELDS)
def test_every_field_that_takes_a_model_names_the_command(config, field, repository, tmp_path, capfd):
    (tmp_path / "hub").mkdir()
    gguf_files.write_llama(tmp_path / "hub" / "m.gguf")
    for place in (tmp_path / "hub" / "m.gguf", tmp_path / "hub"):
        arguments = [f"--config={repository}/configs/{config}", f"--config.{field}={place}"]
        arguments.append(f"--config.output={tmp_path / 'out'}")
        assert support.run_command(*arguments) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        target = tmp_path / "hub" / "m"
        command = f"--config=configs/convert.py --config.source={target}.gguf --config.output={target}"
        assert line.startswith(f"error: config.{field}: {place} ")
        assert line.endswith(f"give {target} after launch/run.sh {command}")
    assert os.listdir(tmp_path) == ["hub"]


def test_the_default_command_runs(repository, tmp_path, capfd):
    arguments = [f"--config={repository}/configs/convert.py", f"--config.output={tmp_path / 'out'}"]
    assert support.run_command(*arguments) == 0
    values = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {str(one.dtype) for one in values.values()} == {"bfloat16"}
