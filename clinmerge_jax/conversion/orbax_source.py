"""An Orbax folder as a Source; one leaf, with all its layers, is in memory at a time."""

import pathlib
from collections.abc import Mapping

import numpy as np

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import front_matter
from clinmerge_jax.checkpoint.files import CARRIED_FILES
from clinmerge_jax.checkpoint.parameters.orbax_folder import load_leaf, params_files, read_config, read_dtypes
from clinmerge_jax.conversion.source import InputFiles, Source, SourceTensor
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Parameter, iterate_params


def open_source(folder: pathlib.Path, tokenizer: Mapping[str, pathlib.Path] | None) -> Source:
    """Opens an Orbax folder.

    Args:
      folder: with config.json and params/.
      tokenizer: tokenizer files that take precedence over the folder's own; None keeps its own.

    Raises:
      BadInput: as `read_config` and `read_dtypes`.
    """
    raw, config = read_config(folder)
    leaf = _Leaf(folder, config)
    tensors = {}
    for row, dtype in iterate_params(read_dtypes(folder, config), config):
        for layer, name in enumerate(row.names(config)):
            tensors[name] = _tensor(name, row, layer, np.dtype(dtype), leaf, config)
    found = {path.name: path for pattern in CARRIED_FILES for path in folder.glob(pattern) if path.is_file()}
    small_files = dict(sorted(found.items())) | dict(tokenizer or {})
    large = [folder / "config.json", *params_files(folder)]
    return Source(
        format="Orbax",
        path=folder,
        config=raw,
        tensors=tensors,
        small_files=small_files,
        files=InputFiles(large),
        llama=lambda: config,
        inputs=provenance.file_fingerprint(folder, large, small_files),
        licence=front_matter(folder).get("license"),
    )


class _Leaf:
    """A cache of the leaf that was read last."""

    def __init__(self, folder: pathlib.Path, config: LlamaConfig):
        self._folder = folder
        self._config = config
        self._path: tuple[str, ...] = ()
        self._values = np.empty(0)

    def get(self, path: tuple[str, ...]) -> np.ndarray:
        if path != self._path:
            self._values = np.empty(0)  # frees the leaf before the next is read
            self._values, self._path = np.asarray(load_leaf(self._folder, self._config, path)), path
        return self._values


def _tensor(name: str, row: Parameter, layer: int, dtype: np.dtype, leaf: _Leaf, config: LlamaConfig) -> SourceTensor:
    shape = row.shape(config)

    def read(first: int, rows: int) -> np.ndarray:
        values = leaf.get(row.path)
        values = values[layer] if row.stacked else values
        return values[first : first + rows].reshape(rows, -1)

    return SourceTensor(name, shape, str(dtype), dtype, read)
