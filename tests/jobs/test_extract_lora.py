"""The difference of two checkpoints as a LoRA adapter."""

import json
import os
import shutil
import subprocess
import types

import numpy as np
import pytest
import safetensors.numpy
import support
from ml_collections import ConfigDict
from support import BF16, TINY, write_llama

from clinmerge_jax.checkpoint import remote
from clinmerge_jax.checkpoint.adapters.adapter import open_adapter
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.errors import BadInput
from clinmerge_jax.jobs import extract_lora

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
MODULES = LINEAR.split(",")


def settings(tmp_path, **fields):
    return ConfigDict(
        {
            "job": "extract_lora",
            "model": str(tmp_path / "model"),
            "base": str(tmp_path / "base"),
            "rank": 0,
            "alpha": 0.0,
            "dtype": "",
            "modules": LINEAR,
            "output": str(tmp_path / "adapter"),
            "overwrite": False,
            "credentialed": False,
            **fields,
        }
    )


def write_pair(tmp_path, change=lambda name, noise: noise, dtype=BF16, **overrides):
    """A base and a model that is the base plus some noise, as `change` lets it pass; None leaves a tensor alone."""
    config = {**TINY, **SIZES, **overrides}
    base = support.llama_tensors(config, 0, dtype)
    noise = support.llama_tensors(config, 1, np.float32)
    model = {}
    for name, values in base.items():
        changed = change(name, noise[name] / 8)
        model[name] = values if changed is None else (values.astype(np.float32) + changed).astype(dtype)
    overrides = {**SIZES, **overrides}
    write_llama(tmp_path / "base", dtype=dtype, tensors=base, **overrides)
    write_llama(tmp_path / "model", dtype=dtype, tensors=model, shards=2, **overrides)
    return base, model


def restored(tmp_path):
    """Every tensor of the base with the written adapter in it, and whether the adapter changed it."""
    adapter = open_adapter(str(tmp_path / "adapter"), "config.adapter")
    base = open_checkpoint(str(tmp_path / "base"), "config.base")
    adapter.check(base)
    for name, entry in base.tensors.items():
        values = read_tensor(entry)
        yield name, adapter.apply_rows(name, 0, values) if adapter.changes(name) else values.astype(np.float32)


def in_layers(name):
    return any(f".{module}." in name for module in MODULES)


def test_the_full_rank_gives_a_bfloat16_model_back(tmp_path, capsys, figures):
    base, model = write_pair(tmp_path, lambda name, noise: noise if in_layers(name) else None)
    extract_lora.run(settings(tmp_path))
    worst = 0.0
    for name, values in restored(tmp_path):
        difference = model[name].astype(np.float64) - base[name].astype(np.float64)
        off = np.linalg.norm(values - model[name].astype(np.float64))
        assert in_layers(name) == bool(difference.any())
        worst = max(worst, off / np.linalg.norm(difference)) if in_layers(name) else worst
        assert in_layers(name) or off == 0
    figures.append(f"LoRA of full rank from bfloat16 models, largest error relative to the difference: {worst:.1e}")
    assert worst < 1e-3
    said = capsys.readouterr().out
    assert "keeps 100.0000% of the difference of its tensors, 100.0000% of that of the whole model" in said
    assert f"The adapter is {tmp_path / 'adapter'}" in said and "Next:" in said
    assert "What differs and is not in the adapter" not in said


def test_a_difference_of_low_rank_is_found_at_that_rank(tmp_path):
    def low_rank(name, noise):
        if not in_layers(name):
            return None
        u, s, v = np.linalg.svd(noise, full_matrices=False)
        return (u[:, :3] * s[:3]) @ v[:3]

    base, model = write_pair(tmp_path, low_rank, np.float32)
    extract_lora.run(settings(tmp_path, rank=3))
    for name, values in restored(tmp_path):
        difference = np.linalg.norm(model[name] - base[name])
        assert np.linalg.norm(values - model[name]) <= 1e-5 * difference
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 3, {})


@pytest.mark.parametrize("fields", [{"rank": 4}, {"rank": 12, "alpha": 3.0}, {"rank": 4, "dtype": "bfloat16"}])
def test_the_shares_are_those_of_the_files(tmp_path, capsys, fields):
    base, model = write_pair(tmp_path)
    extract_lora.run(settings(tmp_path, **fields))
    total = covered = left = 0.0
    for name, values in restored(tmp_path):
        square = np.square(model[name].astype(np.float64) - base[name].astype(np.float64)).sum()
        total += square
        if in_layers(name):
            covered += square
            left += np.square(values - model[name].astype(np.float64)).sum()
    assert 0.1 < left / covered < 0.9
    kept, of_all = f"{1 - left / covered:.4%}", f"{(covered - left) / total:.4%}"
    said, card = capsys.readouterr().out, (tmp_path / "adapter" / "README.md").read_text()
    assert f"keeps {kept} of the difference of its tensors, {of_all} of that of the whole model" in said
    for text in (said, card):
        (row,) = [line for line in text.splitlines() if line.startswith("| all")]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[1] == "21" and cells[3] == f"{covered / total:.4%}" and cells[4] == kept
        outside = text[text.index("What differs and is not in the adapter") :]
        for module in ("embed_tokens", "input_layernorm", "norm", "lm_head"):
            assert f"| {module} " in outside
        assert "q_proj" not in outside
    weights = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {str(values.dtype) for values in weights.values()} == {fields.get("dtype", "float32")}


def _names(tmp_path):
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    weights = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    return config, {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in weights}


def test_modules_are_named_so_that_each_of_them_has_factors(tmp_path):
    write_pair(tmp_path, lambda name, noise: None if "layers.1.self_attn.v_proj" in name else noise)
    extract_lora.run(settings(tmp_path, modules="q_proj, v_proj,gate_proj,layers.2.mlp.up"))
    config, modules = _names(tmp_path)
    attention = {f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)}
    values = {f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 2)}
    gates = {f"model.layers.{layer}.mlp.gate_proj" for layer in range(3)}
    up = {"model.layers.2.mlp.up_proj"}
    assert modules == attention | values | gates | up
    assert set(config["target_modules"]) == {"q_proj", "gate_proj"} | values | up
    assert config["rank_pattern"] == {"self_attn.v_proj": 16} and config["alpha_pattern"] == {"self_attn.v_proj": 16}
    assert config["r"] == config["lora_alpha"] == 32


def test_embedding_and_output_are_taken_over_whole(tmp_path):
    _, model = write_pair(tmp_path)
    extract_lora.run(settings(tmp_path, rank=2, modules="q_proj,embed_tokens,lm_head"))
    config, _ = _names(tmp_path)
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]
    stored = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in ("model.embed_tokens", "lm_head"):
        assert stored[f"base_model.model.{name}.weight"].tobytes() == model[f"{name}.weight"].tobytes()
    result = dict(restored(tmp_path))
    np.testing.assert_array_equal(result["lm_head.weight"], model["lm_head.weight"].astype(np.float32))


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"rank": -1}, "config.rank: is -1"),
        ({"alpha": float("nan")}, "config.alpha: is nan"),
        ({"alpha": -2.0}, "config.alpha: is -2.0"),
        ({"dtype": "int8"}, "config.dtype: 'int8' is unknown"),
        ({"modules": " ,"}, "config.modules: is empty"),
        ({"modules": "q_proj,c_attn"}, "config.modules: 'c_attn' matches no tensor"),
        ({"modules": "q_proj,layernorm"}, "config.modules: 'layernorm' matches no matrix"),
        (
            {"modules": "v_proj"},
            "config.modules: names no matrix to factor that differs; the models differ in self_attn.q",
        ),
        ({"modules": "lm_head"}, "config.modules: names no matrix to factor"),
        ({"model": "{tmp}/base"}, "config.model: {tmp}/base has the same weights as {tmp}/base (config.base)"),
        ({"model": "{tmp}/other"}, "config.model: num_hidden_layers is 2"),
        ({"model": "{tmp}/wide"}, "config.model: tensor lm_head.weight has shape"),
        ({"base": "nowhere"}, "config.base: nowhere is not a folder"),
        ({"output": "{tmp}/base/adapter"}, "is in the folder of config.base"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, fields, says):
    write_pair(tmp_path, lambda name, noise: noise if "q_proj" in name or "head" in name else None)
    write_llama(tmp_path / "other", **{**SIZES, "num_hidden_layers": 2})
    write_llama(tmp_path / "wide", **{**SIZES, "vocab_size": 24})
    before = sorted(tmp_path.iterdir())
    fields = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in fields.items()}
    with pytest.raises(BadInput) as refusal:
        extract_lora.run(settings(tmp_path, **fields))
    assert says.format(tmp=tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before


def test_tied_embeddings_stay_out(tmp_path):
    write_pair(tmp_path, tie_word_embeddings=True)
    with pytest.raises(BadInput, match="embed_tokens.weight is shared between embedding and output"):
        extract_lora.run(settings(tmp_path, modules=f"{LINEAR},embed_tokens"))
    extract_lora.run(settings(tmp_path, rank=1))
    assert (tmp_path / "adapter").is_dir()


def test_values_that_are_not_finite_are_refused(tmp_path):
    write_pair(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "base" / "model.safetensors")
    tensors["model.norm.weight"][0] = np.inf
    safetensors.numpy.save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(BadInput, match="^config.model: tensor model.norm.weight of .* values that are not finite"):
        extract_lora.run(settings(tmp_path))
    assert not (tmp_path / "adapter").exists()


def test_factors_that_do_not_fit_their_dtype_are_refused(tmp_path):
    write_pair(tmp_path, lambda name, noise: noise * 1e12)
    with pytest.raises(BadInput, match="^config.dtype: base_model.*lora_A.weight does not fit float16"):
        extract_lora.run(settings(tmp_path, dtype="float16"))
    extract_lora.run(settings(tmp_path))
    assert (tmp_path / "adapter").is_dir()


def test_a_finished_adapter_is_left_and_another_is_refused(tmp_path, capsys):
    write_pair(tmp_path)
    extract_lora.run(settings(tmp_path, rank=2))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns, weights.read_bytes()
    extract_lora.run(settings(tmp_path, rank=2))
    assert "finished already" in capsys.readouterr().out
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == before
    with pytest.raises(BadInput, match="config.output: .* holds a result of another configuration"):
        extract_lora.run(settings(tmp_path, rank=3))
    extract_lora.run(settings(tmp_path, rank=3, overwrite=True))
    assert weights.read_bytes() != before[1]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    write_pair(tmp_path)
    extract_lora.run(settings(tmp_path, rank=2, output=str(tmp_path / "whole")))
    calls = []
    factor = extract_lora.factor

    def failing(matrix, rank):
        calls.append(matrix.shape)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return factor(matrix, rank)

    monkeypatch.setattr(extract_lora, "factor", failing)
    with pytest.raises(KeyboardInterrupt):
        extract_lora.run(settings(tmp_path, rank=2))
    assert not (tmp_path / "adapter").exists()
    extract_lora.run(settings(tmp_path, rank=2))
    assert len(calls) == 21 + 1  # the ninth was begun twice
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "adapter")) == sorted(os.listdir(tmp_path / "whole"))
    records = [json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("adapter", "whole")]
    assert records[0]["squared_remainder"] == records[1]["squared_remainder"]


def test_what_an_interrupted_run_has_written_outlives_a_full_disk(tmp_path, monkeypatch):
    write_pair(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(BadInput, match="^config.output: the adapter takes .* and .* has 100B free; .* lower rank"):
        extract_lora.run(settings(tmp_path, rank=2))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1 << 40))
        patched.setattr(OutputFolder, "commit", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract_lora.run(settings(tmp_path, rank=2))
    extract_lora.run(settings(tmp_path, rank=2))  # nothing is left to be written
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def _interrupted(*_):
    raise KeyboardInterrupt


def test_the_card_names_models_of_the_hub_by_their_ids(tmp_path, monkeypatch):
    write_pair(tmp_path)
    (tmp_path / "base").rename(tmp_path / "0a1b2c3d")  # the cache has a folder for each commit
    monkeypatch.setattr(remote, "fetch_hub", lambda location, field: tmp_path / "0a1b2c3d")
    extract_lora.run(settings(tmp_path, rank=1, base="org/base@v1"))
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: org/base@v1" in card and "* base: org/base@v1, " in card and "0a1b2c3d" not in card


def test_terms_and_credentials_of_both_are_kept(tmp_path):
    write_pair(tmp_path)
    support.write_tokenizer(tmp_path / "model")
    for role in ("model", "base"):
        (tmp_path / role / "LICENSE").write_text(f"terms of {role}")
        (tmp_path / role / "README.md").write_text(f"---\nlicense: of-{role}\n---\n")
    (tmp_path / "base" / "provenance.json").write_text('{"credentialed": true}')
    extract_lora.run(settings(tmp_path, rank=1))
    adapter = tmp_path / "adapter"
    assert (adapter / "LICENSE").read_text() == "terms of model"
    assert (adapter / "base.LICENSE").read_text() == "terms of base"
    assert (adapter / "tokenizer.json").is_file() and not (adapter / "config.json").exists()
    card = (adapter / "README.md").read_text()
    assert "license: other" in card and "of-model" in card and "of-base" in card
    assert "Derived from credentialed data" in card
    record = json.loads((adapter / "provenance.json").read_text())
    assert record["credentialed"] is True and set(record["sha256"]) == {"model", "base"}


def test_peft_loads_the_adapter_without_a_warning_and_gives_the_models_logits(tmp_path, repository, figures):
    python = os.environ.get("CLINMERGE_PEFT_PYTHON")
    if not python:
        pytest.skip("CLINMERGE_PEFT_PYTHON does not name a Python with third_party/reference/requirements-peft.txt")

    def change(name, noise):  # all that a LoRA adapter can hold, but not in every layer
        held = in_layers(name) or name.startswith("lm_head")
        return noise if held and "layers.1.self_attn.v_proj" not in name else None

    write_pair(tmp_path, change)
    extract_lora.run(settings(tmp_path, modules=f"{LINEAR},lm_head"))
    script = repository / "third_party" / "reference" / "peft_logits.py"
    logits = {}
    for name, arguments in (
        ("model", [tmp_path / "model"]),
        ("base", [tmp_path / "base"]),
        ("adapter", [tmp_path / "base", "--adapter", tmp_path / "adapter"]),
    ):
        file = tmp_path / f"{name}.npy"
        command = [python, script, arguments[0], "0,3,9,4,1", file, *arguments[1:]]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        logits[name] = np.load(file)
        told = json.loads(process.stdout.splitlines()[-1])["warnings"]
        # What the library says to itself about its own use of torch is none of ours.
        assert not [line for line in told if not line.startswith(("FutureWarning", "DeprecationWarning"))]
    scale = np.abs(logits["model"]).max()
    off = np.abs(logits["adapter"] - logits["model"]).max() / scale
    figures.append(f"LoRA of full rank loaded by PEFT, largest logit difference relative to the largest: {off:.1e}")
    assert np.abs(logits["base"] - logits["model"]).max() / scale > 0.01
    assert off < 2e-5
