"""A Llama in a GGUF file becomes the Hugging Face model that it was made from."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
import support
import torch
import transformers
from gguf_files import CONFIG, WRITTEN, gguf_name, interleave, llama_cpp_tensors, metadata, write, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.gguf import open_gguf
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.conversion import gguf_model
from clinmerge_jax.conversion.gguf_model import open_source
from clinmerge_jax.conversion.rope_factors import llama3_factors, llama3_scaling
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.model import forward


def _converted(folder):
    return {name: values for name, (_, _, values) in support.read_raw(folder / "model.safetensors").items()}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_type_gives_the_librarys_values_in_hugging_faces_order(tmp_path, kind):
    tensors = write_llama(tmp_path / "model.gguf", kind)
    found = support.read_raw(support.convert(tmp_path / "model.gguf", tmp_path / "out") / "model.safetensors")
    code = kind if kind in ("F16", "BF16") else "F32"
    dtype = {"F16": np.dtype(np.float16), "BF16": support.BF16}.get(kind, np.dtype(np.float32))
    stored = gguf.GGMLQuantizationType[kind]
    for name, values in tensors.items():
        if values.ndim > 1:
            # A row's blocks are quantized by themselves, so to permute the rows and to quantize them commute.
            values = gguf.dequantize(gguf.quantize(values, stored), stored)
        assert found[name] == (code, values.shape, values.astype(dtype).tobytes()), name
    assert set(found) == set(tensors)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype)


def test_query_and_key_rows_come_out_as_they_went_in(tmp_path):
    """Rows that are numbered, by llama.cpp's permutation and back: of 4 query and 2 key-value heads."""
    tensors = support.llama_tensors(CONFIG, 0, np.float32)
    for name, values in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            values[:] = np.arange(len(values))[:, None]
    changed = llama_cpp_tensors(tensors)
    assert (changed["blk.0.attn_k.weight"][:6, 0] == [0, 8, 1, 9, 2, 10]).all()  # pairs of the first head, side by side
    write(tmp_path / "model.gguf", changed, metadata())
    out = _converted(support.convert(tmp_path / "model.gguf", tmp_path / "out"))
    for name in ("q_proj", "k_proj"):
        rows = np.frombuffer(out[f"model.layers.1.self_attn.{name}.weight"], np.float32).reshape(-1, 64)
        assert (rows == np.arange(len(rows))[:, None]).all()


def test_logits_are_those_of_the_model_it_was_made_from(tmp_path):
    tensors = write_llama(tmp_path / "model.gguf", seed=3)
    folder = support.convert(tmp_path / "model.gguf", tmp_path / "out")
    config = transformers.LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "torch_dtype"})
    theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    ids = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (2, 20))
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    llama, params = load_params(open_checkpoint(str(folder), "model"))
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(lambda params, ids: forward(params, ids, llama))(params, ids.astype(np.int32)))
    assert np.abs(ours - expected).max() <= 2e-5 * max(1, np.abs(expected).max())


def test_config_and_card_say_what_the_metadata_say(tmp_path):
    write_llama(tmp_path / "model.gguf", "Q4_1", general__file_type=3)
    folder = support.convert(tmp_path / "model.gguf", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "rms_norm_eps", "rope_theta", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
            "hidden_act", "model_type")  # fmt: skip
    assert {key: config[key] for key in same} == {key: CONFIG[key] for key in same}
    assert (config["bos_token_id"], config["eos_token_id"], config["rope_scaling"]) == (0, 1, None)
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "type is Q4_1" in card and "no value was rounded" in card
    assert "model.gguf (A small model)" in card and str(tmp_path) not in card


def test_a_model_without_output_is_tied(tmp_path):
    tensors = llama_cpp_tensors(support.llama_tensors({**CONFIG, "tie_word_embeddings": True}, 0, np.float32))
    write(tmp_path / "model.gguf", tensors, metadata())
    folder = support.convert(tmp_path / "model.gguf", tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in _converted(folder)


def test_biases_are_permuted_with_their_rows(tmp_path):
    tensors = support.llama_tensors(CONFIG, 0, np.float32)
    changed = llama_cpp_tensors(tensors)
    rng = np.random.default_rng(1)
    for layer in range(CONFIG["num_hidden_layers"]):
        for module, heads in (("q_proj", 4), ("k_proj", 2), ("v_proj", 0), ("o_proj", 0)):
            name = f"model.layers.{layer}.self_attn.{module}.bias"
            tensors[name] = rng.normal(size=len(tensors[name.replace("bias", "weight")])).astype(np.float32)
            changed[gguf_name(name)] = interleave(tensors[name], heads) if heads else tensors[name]
    write(tmp_path / "model.gguf", changed, metadata())
    out = _converted(support.convert(tmp_path / "model.gguf", tmp_path / "out"))
    assert {name: values.tobytes() for name, values in tensors.items()} == out


@pytest.mark.parametrize("sizes", [(500000.0, 128, 8.0, 1.0, 4.0, 8192), (500000.0, 64, 32.0, 1.0, 4.0, 8192)])
def test_llama_3s_scaling_is_found_from_its_factors(sizes):
    theta, head_dim, factor, low, high, original = sizes
    stored = llama3_factors(*sizes).astype(np.float32)
    assert llama3_scaling(stored, theta, head_dim) == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    assert llama3_scaling(stored[::-1], theta, head_dim) is None
    assert llama3_scaling(stored[:-1], theta, head_dim) is None
    assert llama3_scaling(np.ones_like(stored), theta, head_dim) is None


def test_llama_3s_factors_are_llama_cpps():
    """The rule as convert_hf_to_gguf.py writes it, one frequency after another."""
    factors = []
    for index in range(0, 128, 2):
        wavelength = 2 * np.pi * 500000.0 ** (index / 128)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    np.testing.assert_allclose(llama3_factors(500000.0, 128, 8.0, 1.0, 4.0, 8192), factors, rtol=1e-12)


def test_rope_scaling_reaches_the_config(tmp_path):
    wide = {**CONFIG, "head_dim": 64, "rope_theta": 500000.0}  # 64 channels have waves between short and long
    tensors = llama_cpp_tensors(support.llama_tensors(wide, 0, np.float32), wide)
    tensors["rope_freqs.weight"] = llama3_factors(500000.0, 64, 32.0, 1.0, 4.0, 8192).astype(np.float32)
    write(tmp_path / "model.gguf", tensors, metadata(wide, llama__attention__key_length=64))
    config = json.loads((support.convert(tmp_path / "model.gguf", tmp_path / "out") / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "llama3" and config["rope_scaling"]["factor"] == 32.0
    tensors["rope_freqs.weight"][:] = 2
    write(tmp_path / "odd.gguf", tensors, metadata(wide, llama__attention__key_length=64))
    with pytest.raises(BadInput, match="rope_freqs.weight is not a scaling as in Llama 3.1"):
        support.convert(tmp_path / "odd.gguf", tmp_path / "odd")
    write_llama(tmp_path / "linear.gguf", llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    config = json.loads((support.convert(tmp_path / "linear.gguf", tmp_path / "linear") / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"general__architecture": "gemma2"}, "general.architecture is 'gemma2'; only llama"),
        ({"llama__expert_count": 8}, "mixture of 8 experts"),
        ({"llama__block_count": None}, "lacks llama.block_count"),
        ({"llama__block_count": 3}, "has no tensor for model.layers.2."),
        ({"llama__block_count": 1}, "holds blk.1."),
        ({"llama__embedding_length": 32, "llama__attention__key_length": 16}, "has shape"),
        ({"llama__attention__head_count_kv": [2, 1]}, "head_count_kv is [2, 1]"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8, not head_dim (16)"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
        ({"tokenizer__ggml__model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"tokenizer__ggml__pre": "mars"}, "tokenizer.ggml.pre is 'mars'"),
        ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer__ggml__tokens": ["a"] * 320}, "lists 319 tokens twice"),
        ({"tokenizer__ggml__tokens": [f"{i}" for i in range(321)]}, "321 tokens and an embedding of 320 rows"),
        ({"tokenizer__ggml__merges": ["x yz"]}, "merge 0 does not join two tokens"),
        ({"tokenizer__ggml__eos_token_id": 999}, "eos_token_id is 999, which is not a token id"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, changes, says):
    write_llama(tmp_path / "model.gguf", **changes)
    with pytest.raises(BadInput) as refusal:
        support.convert(tmp_path / "model.gguf", tmp_path / "out")
    said = str(refusal.value)
    assert says in said and said.startswith(str(tmp_path / "model.gguf")) and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_metadata_of_another_kind_end_in_one_line(tmp_path, monkeypatch):
    """Every entry replaced by values of other types and sizes: opened, or refused."""
    write_llama(tmp_path / "model.gguf")
    model = open_gguf(tmp_path / "model.gguf")
    refused = opened = 0
    for key in metadata():
        for value in (None, "x", -1, 0, 1 << 31, 0.5, True, [], [3, 1], ["a", "b"]):
            changed = dataclasses.replace(model, metadata={**model.metadata, key: value})
            monkeypatch.setattr(gguf_model, "open_gguf", lambda path, changed=changed: changed)
            try:
                with open_source(tmp_path / "model.gguf", None).files:
                    opened += 1
            except BadInput as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 100 and opened > 30


def test_a_tensor_of_another_model_is_refused(tmp_path):
    tensors = llama_cpp_tensors(support.llama_tensors(CONFIG, 0, np.float32))
    write(tmp_path / "model.gguf", {**tensors, "blk.0.attn_sinks.weight": np.ones(4, np.float32)}, metadata())
    with pytest.raises(BadInput, match="holds tensor blk.0.attn_sinks.weight, which no Llama has"):
        support.convert(tmp_path / "model.gguf", tmp_path / "out")


def test_scales_that_are_not_finite_are_refused(tmp_path):
    write_llama(tmp_path / "model.gguf", "Q8_0")
    raw = (tmp_path / "model.gguf").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    place = next(int(tensor.data_offset) for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    (tmp_path / "bad.gguf").write_bytes(raw[:place] + b"\x00\x7c" + raw[place + 2 :])  # float16's infinity
    with pytest.raises(BadInput, match="up_proj.weight holds values that are not finite"):
        support.convert(tmp_path / "bad.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
