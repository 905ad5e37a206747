"""Buffers, stored heads of tied models, and tokens without a row, in the jobs that read models."""

import logging

import numpy as np
import pytest
import safetensors.numpy
import support

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.not_parameters import is_buffer
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import check_token_ids
from clinmerge_jax.errors import BadInput

BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(1, np.float32),
    "model.rotary_emb.inv_freq": np.ones(1, np.float32),
    "model.causal_mask": np.ones((4, 4), np.bool_),
    "model.layers.0.self_attn.bias": np.ones((1, 1, 4, 4), np.uint8),
    "model.layers.0.self_attn.masked_bias": np.ones((), np.int64),
    "model.position_ids": np.ones((1, 4), np.int64),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_buffers(folder, seed=0, shards=1):
    tensors = support.llama_tensors(support.TINY, seed) | BUFFERS
    return support.write_llama(folder, tensors=tensors, shards=shards)


def run(repository, job, *fields):
    parts = {"inspect": "merge.py:inspect", "extract_lora": "merge.py:extract_lora", "sft_grid": "sft.py:grid"}
    config = parts.get(job, f"{job.split()[0]}.py")
    return support.run_command(f"--config={repository}/configs/{config}", *(f"--config.{field}" for field in fields))


@pytest.mark.parametrize("shards", [1, 2])
def test_buffers_are_left_out_and_said_once(shards, tmp_path, caplog):
    folder = with_buffers(tmp_path / "model", shards=shards)
    with caplog.at_level(logging.INFO, "absl"):
        opened = [open_checkpoint(str(folder), "test") for _ in range(2)][0]
    assert set(opened.tensors) == set(support.llama_shapes(support.TINY))
    assert sum("left out" in record.getMessage() for record in caplog.records) == 1
    load_params(opened)


def test_biases_and_masks_are_told_apart():
    assert not is_buffer("model.layers.0.self_attn.q_proj.bias", (8,))
    assert not is_buffer("transformer.h.0.attn.bias", (8,))
    assert is_buffer("transformer.h.0.attn.bias", (1, 1, 8, 8))


@pytest.mark.parametrize("engine", ["streaming", "mesh"])
@pytest.mark.parametrize("which", ["instruct", "clinical"])
def test_buffers_of_one_parent_do_not_stop_a_merge(which, engine, repository, tmp_path):
    for seed, role in enumerate(("instruct", "clinical")):
        (with_buffers if role == which else support.write_llama)(tmp_path / role, seed)
    parents = [f"{role}={tmp_path}/{role}" for role in ("instruct", "clinical")]
    assert run(repository, "merge", *parents, "base=", f"output={tmp_path}/out", f"engine={engine}") == 0
    assert set(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")) == set(
        support.llama_shapes(support.TINY)
    )


def tied(folder, equal, seed=0):
    tensors = support.llama_tensors(support.TINY, seed)
    if equal:
        tensors[HEAD] = tensors[EMBEDDING].copy()
    return support.write_llama(folder, tensors=tensors, tie_word_embeddings=True)


def test_a_stored_head_that_equals_the_tied_embedding_is_left_out(repository, tmp_path, caplog):
    tied(tmp_path / "instruct", True, 1)
    support.write_llama(tmp_path / "clinical", 2, tie_word_embeddings=True)
    with caplog.at_level(logging.INFO, "absl"):
        for _ in range(2):
            load_params(open_checkpoint(str(tmp_path / "instruct"), "test"))
    assert sum("lm_head.weight is left out" in record.getMessage() for record in caplog.records) == 1
    parents = [f"{role}={tmp_path}/{role}" for role in ("instruct", "clinical")]
    assert run(repository, "merge", *parents, "base=", f"output={tmp_path}/out") == 0
    assert HEAD not in safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")


JOBS = {
    "merge": ("instruct={}", "clinical={}", "base="),
    "merge on a mesh": ("instruct={}", "clinical={}", "base=", "engine=mesh"),
    "inspect": ("instruct={}", "clinical={}", "base="),
    "extract_lora": ("model={}", "base={}"),
    "convert": ("source={}",),
    "convert to Orbax": ("source={}", "format=orbax"),
    "generate": ("model={}", "prompts=miniature:questions"),
    "evaluate": ("model=good=miniature:base,bad={}",),  # nothing is done with the good one either
    "compare": ("model={}",),
    "sft": ("model={}", "length=16"),
    "sft_grid": ("model={}", "length=16"),
}
ON_TENSORS = ("merge", "inspect", "extract_lora", "convert")  # which need no model's code


def refused(job, folder, repository, capfd):
    """The line that refuses a model, of which nothing is left."""
    output = folder.parent / f"out of {job}"
    fields = [field.format(folder) for field in JOBS[job]]
    assert run(repository, job, *fields, f"output={output}") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(folder) in line and not list(folder.parent.glob("*out of*"))
    return line


@pytest.mark.parametrize("job", JOBS)
def test_a_head_that_differs_and_quantized_weights_are_refused_in_every_job(job, repository, tmp_path, capfd):
    tied(tmp_path / "tied", False)
    support.write_llama(tmp_path / "key alone", quantization_config={"quant_method": "awq"})
    tensors = support.llama_tensors(support.TINY) | {"model.layers.0.mlp.up_proj.weight": np.zeros((12, 4), np.uint8)}
    support.write_llama(tmp_path / "packed", tensors=tensors, quantization_config={"quant_method": "bitsandbytes"})
    for kind, says in {"tied": "set it to false", "key alone": "remove the key", "packed": ".dequantize()"}.items():
        assert says in refused(job, tmp_path / kind, repository, capfd)


@pytest.mark.parametrize("job", [job for job in JOBS if job not in ON_TENSORS])
def test_jobs_that_run_a_model_refuse_other_families(job, repository, tmp_path, capfd):
    support.write_tokenizer(support.write_llama(tmp_path / "gemma", model_type="gemma"))
    assert "model_type is 'gemma'" in refused(job, tmp_path / "gemma", repository, capfd)


@pytest.mark.parametrize("job", ON_TENSORS)
def test_jobs_on_tensors_take_other_families(job, repository, tmp_path):
    for seed, name in enumerate("ab"):
        support.write_llama(tmp_path / name, seed, model_type="gemma")
    places = [field.partition("=")[0] for field in JOBS[job] if "{}" in field]
    fields = [f"{place}={tmp_path / name}" for place, name in zip(places, "ab")]
    fields += ["base="] if job in ("merge", "inspect") else []
    assert run(repository, job, *fields, f"output={tmp_path}/out") == 0
    assert (tmp_path / "out" / "provenance.json").is_file()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": '], ids=["empty", "no model", "list", "cut"])
@pytest.mark.parametrize("job", JOBS)
def test_a_damaged_tokenizer_is_refused_in_every_job(job, content, repository, tmp_path, capfd):
    support.write_tokenizer(support.write_llama(tmp_path / "damaged"))
    (tmp_path / "damaged" / "tokenizer.json").write_text(content)
    assert "tokenizer.json" in refused(job, tmp_path / "damaged", repository, capfd)


def test_a_damaged_tokenizer_that_a_conversion_is_to_take_is_refused(repository, tmp_path, capfd):
    support.write_llama(tmp_path / "model")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{}")
    places = [f"source={tmp_path}/model", f"tokenizer={tmp_path}/damaged", f"output={tmp_path}/out"]
    assert run(repository, "convert", *places) == 2
    assert f"{tmp_path}/damaged/tokenizer.json: is not a tokenizer file" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tokens_without_a_row_are_warned_of_once_where_nothing_is_merged(tmp_path, caplog):
    folder = support.write_llama(tmp_path / "model")
    support.write_tokenizer(folder, [*support.WORDS, "more", "and", "more still", "too many"])
    checkpoint = open_checkpoint(str(folder), "test")
    for _ in range(2):
        load_params(checkpoint)
    warnings = [record for record in caplog.records if "the embedding has 16 rows" in record.getMessage()]
    assert len(warnings) == 1 and warnings[0].levelno == logging.WARNING
    with pytest.raises(BadInput, match="'too many'.*from id 16 on.*resize"):
        check_token_ids(checkpoint, refuse=True)
    check_token_ids(checkpoint, rows=17, refuse=True)
