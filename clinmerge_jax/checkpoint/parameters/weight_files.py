"""The weight files of a Hugging Face folder: which tensors each holds, their index, and config.json's dtype."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.files import SINGLE_FILE
from clinmerge_jax.checkpoint.names import USUAL, Naming

DEFAULT_SHARD_BYTES = 5_000_000_000


def split_into_shards(tensors: Sequence[tuple[str, int]], shard_bytes: int) -> dict[str, list[str]]:
    """Assigns tensors to weight files in the order given, each file filled up to a size.

    Args:
      tensors: name and bytes of each.
      shard_bytes: the maximum bytes of one file; a larger tensor gets a file of its own.

    Returns:
      File name (as Hugging Face names them) to tensor names.
    """
    groups: list[list[str]] = []
    filled = 0
    for name, nbytes in tensors:
        if not groups or filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": names for n, names in enumerate(groups, start=1)}


def index_json(shards: Mapping[str, Sequence[str]], total_bytes: int, naming: Naming = USUAL) -> str | None:
    """The text of model.safetensors.index.json; None if one file holds everything.

    Args:
      shards: file name to the tensors in it, by their usual names.
      total_bytes: the bytes of all tensors.
      naming: how the files spell the tensor names.
    """
    if list(shards) == [SINGLE_FILE]:
        return None
    weight_map = {naming.stored(name): file for file, names in shards.items() for name in names}
    return json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=1) + "\n"


def config_with_dtype(config: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """config.json with its dtype field set, under the key that it already uses (transformers 4: torch_dtype)."""
    keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
    return {**config, **dict.fromkeys(keys, str(dtype))}
