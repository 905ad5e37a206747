"""GGUF files of small Llamas, written by the gguf library from known Hugging Face tensors."""

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import support

# The types that the library's own quantizer makes; it dequantizes K-quants, but has no quantizer for them.
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 320, "head_dim": 16, "num_attention_heads": 4}
CONFIG = {**support.TINY, **SIZES}

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    stem, _, suffix = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{suffix}"
    layer, _, module = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[module]}.{suffix}"


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own permutation of q and k, as its conversion script (convert_hf_to_gguf.py) writes it."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def llama_cpp_tensors(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] = CONFIG) -> dict[str, np.ndarray]:
    """The tensors under llama.cpp's names, q and k permuted."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    changed = {}
    for name, values in tensors.items():
        count = heads.get(name.split(".")[-2])
        changed[gguf_name(name)] = interleave(values, count) if count else values
    return changed


def metadata(config: Mapping[str, Any] = CONFIG, **changes: Any) -> dict[str, Any]:
    """The entries that llama.cpp's conversion writes, with a small byte-level vocabulary."""
    alphabet = [*byte_alphabet(), "he", "Ġt", "Ġthe"]
    specials = ["<|begin|>", "<|end|>", "<|note|>"]
    tokens = [*specials, *alphabet]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), config["vocab_size"])]
    kinds = [3, 3, 4, *[1] * len(alphabet)]
    kinds += [5] * (config["vocab_size"] - len(kinds))
    entries = {
        "general.architecture": "llama",
        "general.name": "A small model",
        "general.license": "apache-2.0",
        "general.file_type": 0,
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.rope.dimension_count": config["head_dim"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["h e", "Ġ t", "Ġt he"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}",
    }
    entries |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in entries.items() if value is not None}


def byte_alphabet() -> list[str]:
    """The 256 signs of byte-level BPE, in GPT-2's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, printable), *(chr(256 + index) for index in range(256 - len(printable)))]


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], entries: Mapping[str, Any], kind: str = "F32"
) -> pathlib.Path:
    """Writes a file by the gguf library.

    Args:
      path: where to.
      tensors: float32, by llama.cpp's names.
      entries: metadata.
      kind: of the matrices; vectors are F32, as llama.cpp has them.
    """
    writer = gguf.GGUFWriter(path, entries["general.architecture"])
    for key, value in entries.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, values in tensors.items():
        quantized = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        raw = gguf.quantize(values.astype(np.float32), quantized)
        writer.add_tensor(name, raw, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def write_llama(path: pathlib.Path, kind: str = "F32", seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """Writes a whole random model; returns its float32 tensors by their Hugging Face names."""
    tensors = support.llama_tensors(CONFIG, seed, np.float32)
    write(path, llama_cpp_tensors(tensors), metadata(**changes), kind)
    return tensors
