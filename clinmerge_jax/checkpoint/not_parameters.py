"""Handles stored tensors that are not parameters: buffers, the stored copy of a tied head, quantized weights."""

import functools
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging

from clinmerge_jax.checkpoint.formats.safetensors import DTYPES, TensorEntry, read_into
from clinmerge_jax.errors import BadInput

# Includes the dtypes of quantized weights, so that the headers of checkpoints that are then refused can be read.
ALL_DTYPES: Mapping[str, np.dtype] = DTYPES | {
    code: np.dtype(kind)
    for code, kind in {
        "F64": np.float64, "I64": np.int64, "U64": np.uint64, "I32": np.int32, "U32": np.uint32, "I16": np.int16,
        "U16": np.uint16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_, "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}  # fmt: skip

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFER = re.compile(
    r"(^|\.)(rotary_emb\.\w*inv_freq|rotary_emb\.(cos|sin)_cached|rope\.freqs|causal_mask|masked_bias|position_ids)$"
)
_MASK = re.compile(r"\.(attn|attention|self_attn)\.bias$")  # the causal mask of GPT-2 and GPT-NeoX, [1, 1, T, T]
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|SCB|absmax|quant_map|nested_absmax|weight_scale\w*|weight_packed|input_scale"
    r"|weight_zero_point)$|\.quant_state\."
)
_CHUNK = 16 << 20


def is_buffer(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a buffer derived from config.json (frequencies, masks, positions), not a parameter."""
    return bool(_BUFFER.search(name)) or (len(shape) == 4 and bool(_MASK.search(name)))


def quantization_key(config: Mapping[str, Any]) -> str | None:
    """The key of config.json that declares quantized weights; None if there is none."""
    return next((key for key in _QUANTIZATION_KEYS if config.get(key) is not None), None)


def quantization_refusal(
    path: pathlib.Path, config: Mapping[str, Any], tensors: Iterable[TensorEntry] | None
) -> BadInput:
    """Builds the error for a checkpoint whose config.json declares quantized weights.

    Args:
      path: the folder.
      config: its config.json, which has a `quantization_key`.
      tensors: its tensors, read with ALL_DTYPES; None if they cannot be read even so.
    """
    key = quantization_key(config)
    plain = tensors is not None and all(
        entry.dtype in DTYPES.values() and not _QUANTIZED.search(entry.name) for entry in tensors
    )
    if plain:
        return BadInput(
            f"{path / 'config.json'}: has {key} over weights that are not quantized; remove the key from the file"
        )
    given = config[key]
    method = str(given.get("quant_method") or given.get("format") or "") if isinstance(given, dict) else ""
    method = f" ({method[:40]})" if method else ""
    code = (
        f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(path)!r})"
        f".dequantize().save_pretrained({f'{path}-dequantized'!r})"
    )
    return BadInput(
        f"{path / 'config.json'}: says that the weights are quantized ({key}{method}); give the original model in"
        f" bfloat16, float16 or float32, or dequantize this one: python -c {shlex.quote(code)}"
    )


def without_tied_head(
    path: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """Removes a stored head that config.json ties to the embedding, and returns the remaining tensors.

    Args:
      path: the folder.
      config: its config.json.
      tensors: by their usual names.

    Raises:
      BadInput: the stored head differs from the embedding.
    """
    kept = dict(tensors)
    if config.get("tie_word_embeddings") is not True or not {_EMBEDDING, _HEAD} <= set(tensors):
        return kept
    head = kept.pop(_HEAD)
    if not _same_bytes(tensors[_EMBEDDING], head):
        raise BadInput(
            f"{path}: stores lm_head.weight, which differs from the embedding, but config.json says"
            " tie_word_embeddings; set it to false to keep the stored head, or remove the tensor to use the embedding"
        )
    say(path, "lm_head.weight is left out: config.json ties it to the embedding, and the two are equal")
    return kept


def _same_bytes(one: TensorEntry, other: TensorEntry) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    descriptors = [os.open(entry.file, os.O_RDONLY) for entry in (one, other)]
    try:
        for start in range(0, one.nbytes, _CHUNK):
            chunks = [bytearray(min(_CHUNK, one.nbytes - start)) for _ in descriptors]
            for descriptor, entry, chunk in zip(descriptors, (one, other), chunks):
                read_into(descriptor, entry.offset + start, memoryview(chunk), entry.file)
            if chunks[0] != chunks[1]:
                return False
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


@functools.lru_cache(maxsize=256)
def say(path: pathlib.Path, message: str) -> None:
    """Logs a message about a checkpoint once, however often the checkpoint is opened."""
    logging.info("%s: %s", path, message)
