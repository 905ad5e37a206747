"""The compare job: a model agrees with itself in transformers, and a changed one is found out."""

import json

import numpy as np
import pytest
import safetensors.numpy
import support

TEXT = "the patient has a fever and cough"


@pytest.fixture
def folder(tmp_path):
    support.write_llama(tmp_path / "model", dtype=np.float32, vocab_size=len(support.WORDS), max_position_embeddings=64)
    support.write_tokenizer(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text(f"{TEXT}\n{TEXT} .\nfever\n")
    return tmp_path


def _compare(folder, *more):
    return support.run_command(
        "--config=configs/compare.py",
        f"--config.model={folder / 'model'}",
        f"--config.prompts={folder / 'prompts.txt'}",
        f"--config.output={folder / 'out'}",
        "--config.max_new_tokens=12",
        *more,
    )


def test_a_model_is_what_it_is_in_transformers(folder, capfd, figures):
    assert _compare(folder) == 0
    rows = [json.loads(line) for line in (folder / "out" / "comparison.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [7, 8, 1]
    assert max(row["largest"] for row in rows) < 1e-4
    assert all(row["agreement"] == 1 and row["divergence"] < 1e-8 and row["same"] == row["answered"] for row in rows)
    assert all(len(row["layers"]) == 2 and max(row["layers"]) < 1e-5 for row in rows)
    out = capfd.readouterr().out
    assert "same likeliest token" in out and "into layer 1" in out
    assert TEXT not in out + (folder / "out" / "comparison.jsonl").read_text()
    assert _compare(folder) == 0
    assert "is finished already" in capfd.readouterr().out


def test_what_differs_is_found_in_its_layer(folder, monkeypatch):
    """Ours reads other weights than the reference does: the second layer's."""
    from clinmerge_jax.jobs import compare

    real = compare.load_params

    def other(checkpoint, dtype):
        path = checkpoint.path / "model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        llama, params = real(checkpoint, dtype)
        norm = params["layers"]["input_layernorm"]["weight"]
        assert norm.shape[0] == 2 and "model.layers.1.input_layernorm.weight" in tensors
        params["layers"]["input_layernorm"]["weight"] = norm.at[0].multiply(1.01)
        return llama, params

    monkeypatch.setattr(compare, "load_params", other)
    assert _compare(folder) == 0
    rows = [json.loads(line) for line in (folder / "out" / "comparison.jsonl").read_text().splitlines()]
    assert all(row["layers"][0] == 0 and row["layers"][1] > 1e-5 and row["largest"] > 1e-3 for row in rows)


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("dtype=float16", "config.dtype: 'float16'"),
        ("max_new_tokens=90", "exceed the model"),
        ("attention=splash", "config.attention: splash needs a TPU, but this is a CPU"),
    ],
)
def test_bad_input_is_refused(folder, capfd, field, problem):
    assert _compare(folder, f"--config.{field}") == 2
    assert problem in capfd.readouterr().err and not (folder / "out").exists()
