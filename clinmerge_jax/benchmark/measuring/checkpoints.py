"""Writes checkpoints of random weights in seconds."""

import json
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from clinmerge_jax.checkpoint.files import INDEX_FILE
from clinmerge_jax.checkpoint.formats.safetensors import header_bytes
from clinmerge_jax.checkpoint.parameters.weight_files import index_json, split_into_shards
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import parameters

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_NOISE_ENTRIES = 1 << 24


def make_checkpoint(folder: pathlib.Path, raw: dict[str, Any], llama: LlamaConfig, drift: float, seed: int = 0) -> None:
    """Writes a random bfloat16 checkpoint in shards of 1 GB.

    Checkpoints are siblings: the same weights plus noise of relative size `drift`, drawn from `seed`. Tensors are
    windows of one random block, so 3 GB take seconds.
    """
    block = np.random.default_rng(0).standard_normal(_NOISE_ENTRIES, np.float32)
    block += np.float32(drift) * np.random.default_rng([0, seed]).standard_normal(_NOISE_ENTRIES, np.float32)
    values = (0.02 * block).astype(_BFLOAT16)
    shapes = {name: row.shape(llama) for row in parameters(llama) for name in row.names(llama)}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    shards = split_into_shards([(name, 2 * size) for name, size in sizes.items()], 10**9)
    offsets = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, names in shards.items():
        with (folder / file_name).open("wb") as file:
            file.write(header_bytes((name, _BFLOAT16, shapes[name]) for name in names))
            for name in names:
                left, start = sizes[name], int(offsets.integers(_NOISE_ENTRIES))
                while left:
                    part = values[start : start + left]
                    file.write(memoryview(part.view(np.uint8)))
                    left, start = left - len(part), 0
            os.fsync(file.fileno())
    index = index_json(shards, 2 * sum(sizes.values()))
    if index:
        (folder / INDEX_FILE).write_text(index)
    (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
