"""A Llama in a GGUF file as a Source: config.json from the metadata, tensors under their Hugging Face names."""

import collections
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.formats.gguf import (
    PLAIN,
    Gguf,
    GgufTensor,
    dequantize,
    open_gguf,
    read_whole,
)
from clinmerge_jax.conversion.gguf_tokenizer import token_ids, tokenizer_files
from clinmerge_jax.conversion.rope_factors import llama3_scaling
from clinmerge_jax.conversion.source import InputFiles, Source, SourceTensor, half_split
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import parameters

ARCHITECTURES = ("llama",)  # llama.cpp uses it for Llama, Mistral, SmolLM2 and others with the same forward pass

# llama.cpp's names without .weight and .bias; "{}" is the layer.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_PERMUTED = (".self_attn.q_proj.", ".self_attn.k_proj.")
_ROPE_FACTORS = "rope_freqs.weight"


def open_source(path: pathlib.Path, tokenizer: Mapping[str, pathlib.Path | bytes] | None) -> Source:
    """Opens a GGUF file (or the first of several).

    Args:
      path: the file.
      tokenizer: the tokenizer files; None builds them from the metadata.

    Raises:
      BadInput: the file is damaged, holds another architecture, or its tensors do not fit its metadata.
    """
    model = open_gguf(path)
    config = config_json(model)
    llama = LlamaConfig.from_json(config, str(path))
    named = _by_name(model, path)
    _check(named, llama, path)
    files = InputFiles(model.files)
    kinds = collections.Counter()
    for tensor in model.tensors.values():
        kinds[tensor.kind] += tensor.size
    small_files = tokenizer_files(model.metadata, path, llama) if tokenizer is None else dict(tokenizer)
    return Source(
        format="GGUF",
        path=path,
        config=config,
        tensors={name: _tensor(name, tensor, llama, files) for name, tensor in named.items()},
        small_files=small_files,
        files=files,
        llama=lambda: llama,
        inputs=provenance.file_fingerprint(path.parent, model.files, small_files),
        dtype=_dtype(named.values()),
        quantized=not set(kinds) <= set(PLAIN),
        title=str(model.metadata.get("general.name", "")),
        licence=model.metadata.get("general.license"),
        facts=(_quantization(model.metadata, kinds),),
    )


def config_json(model: Gguf) -> dict[str, Any]:
    """Builds a Llama's config.json from the metadata of its GGUF file.

    Raises:
      BadInput: the architecture is not Llama, or metadata are missing or ask for what Llama does not have.
    """
    path, metadata, tensors = model.files[0], model.metadata, model.tensors
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BadInput(
            f"{path}: general.architecture is {architecture!r}; only {', '.join(ARCHITECTURES)} is converted: have"
            " transformers load and save it, and give that folder"
        )
    values = _Metadata(metadata, path, f"{architecture}.")
    if values.get("expert_count"):
        raise BadInput(f"{path}: is a mixture of {values.get('expert_count')} experts; give a dense model")
    hidden, heads = values.whole("embedding_length"), values.whole("attention.head_count")
    head_dim = values.whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.whole(key, head_dim) != head_dim:
            raise BadInput(
                f"{path}: {architecture}.{key} is {values.get(key)}, not head_dim ({head_dim}); Llama has one size of"
                " heads and rotates all of it"
            )
    theta = values.get("rope.freq_base", 10000.0)
    context = values.whole("context_length")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise BadInput(f"{path}: lacks tensor token_embd.weight; give a whole model, or fetch it again")
    layers = values.whole("block_count")
    if layers > len(tensors):  # checked before anything loops over the layers
        raise BadInput(f"{path}: {architecture}.block_count is {layers} for {len(tensors)} tensors; fetch it again")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "attention_dropout": 0.0,
        **token_ids(metadata),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": values.whole("feed_forward_length"),
        "max_position_embeddings": context,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": values.whole("attention.head_count_kv", heads),
        "rms_norm_eps": values.get("attention.layer_norm_rms_epsilon"),
        "rope_scaling": _rope_scaling(values, tensors, theta, head_dim),
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in tensors,
        "use_cache": True,
        "vocab_size": embedding.shape[0],
    }
    if config["rms_norm_eps"] is None:
        raise BadInput(f"{path}: lacks {architecture}.attention.layer_norm_rms_epsilon; fetch it again")
    return config


class _Metadata:
    """The metadata entries of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], path: pathlib.Path, prefix: str):
        self.path = path
        self.prefix = prefix
        self._metadata = metadata

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(self.prefix + key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise BadInput(f"{self.path}: lacks {self.prefix}{key}; give a whole model, or fetch it again")
        if type(value) is not int or value < 1:
            raise BadInput(
                f"{self.path}: {self.prefix}{key} is {value!r}; only one positive integer for all layers is supported"
            )
        return value


def _rope_scaling(
    values: _Metadata, tensors: Mapping[str, GgufTensor], theta: Any, head_dim: int
) -> dict[str, Any] | None:
    if _ROPE_FACTORS in tensors:
        scaling = None
        if isinstance(theta, float) and theta > 0 and tensors[_ROPE_FACTORS].kind in PLAIN:
            scaling = llama3_scaling(read_whole(tensors[_ROPE_FACTORS]), theta, head_dim)
        if scaling is None:
            raise BadInput(
                f"{values.path}: {_ROPE_FACTORS} is not a scaling as in Llama 3.1; have transformers load and save the"
                " original model, and give that folder"
            )
        return scaling
    kind = values.get("rope.scaling.type", "linear")
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind != "linear":
        raise BadInput(
            f"{values.path}: {values.prefix}rope.scaling.type is {kind!r}; only none and linear are supported"
        )
    return {"rope_type": "linear", "factor": factor}


def _by_name(model: Gguf, path: pathlib.Path) -> dict[str, GgufTensor]:
    """The tensors by their Hugging Face names, in the order of the file."""
    named = {}
    for name, tensor in model.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        key = found and ("blk.{}." * (found[1] is not None) + found[2])
        if key not in _NAMES:
            raise BadInput(f"{path}: holds tensor {name}, which no Llama has; its forward pass is not supported")
        layer = [] if found[1] is None else [int(found[1])]
        named[f"{_NAMES[key].format(*layer)}.{found[3]}"] = tensor
    return named


def _check(named: Mapping[str, GgufTensor], llama: LlamaConfig, path: pathlib.Path) -> None:
    expected = {name: row.shape(llama) for row in parameters(llama) for name in row.names(llama)}
    missing = next((name for name in expected if name not in named), None)
    if missing is not None:
        raise BadInput(f"{path}: has no tensor for {missing}, which its metadata require; fetch it again")
    extra = next((name for name in named if name not in expected), None)
    if extra is not None:
        raise BadInput(f"{path}: holds {named[extra].name}, which its metadata do not expect; fetch it again")
    for name, shape in expected.items():
        if named[name].shape != shape:
            raise BadInput(
                f"{path}: tensor {named[name].name} has shape {list(named[name].shape)}, but its metadata require"
                f" {list(shape)}; it is damaged, fetch it again"
            )


def _tensor(name: str, tensor: GgufTensor, llama: LlamaConfig, files: InputFiles) -> SourceTensor:
    permuted = any(part in name for part in _PERMUTED)
    vector = len(tensor.shape) == 1
    unit = tensor.shape[0] if vector else llama.head_dim if permuted else 1

    def read(first: int, rows: int) -> np.ndarray:
        start = 0 if vector else first * tensor.row_bytes
        nbytes = tensor.row_bytes if vector else rows * tensor.row_bytes
        raw = files.read(tensor.file, tensor.offset + start, nbytes)
        values = dequantize(raw.reshape(-1, tensor.row_bytes), tensor.kind)
        values = values.reshape(-1, 1) if vector else values
        return half_split(values, llama.head_dim) if permuted else values

    return SourceTensor(name, tensor.shape, tensor.kind, tensor.dtype, read, unit)


def _dtype(tensors: Any) -> np.dtype:
    """A dtype that rounds no matrix: the matrices' own if they all share an unquantized one, else float32."""
    kinds = {tensor.kind for tensor in tensors if len(tensor.shape) > 1}
    return PLAIN[next(iter(kinds))] if len(kinds) == 1 and kinds <= set(PLAIN) else np.dtype(np.float32)


def _quantization(metadata: Mapping[str, Any], kinds: Mapping[str, int]) -> str:
    """The card's line about quantization."""
    stated = metadata.get("general.file_type")
    known = (kind.name.removeprefix("MOSTLY_") for kind in gguf.LlamaFileType if kind.value == stated)
    name = next(known, "not stated")
    total = sum(kinds.values())
    shares = ", ".join(f"{count / total:.2%} {kind}" for kind, count in sorted(kinds.items(), key=lambda i: -i[1]))
    lossy = "" if set(kinds) <= set(PLAIN) else " What quantization lost stays lost."
    return f"The GGUF file's type is {name}; of its values, {shares} (dequantized by the gguf library).{lossy}"
