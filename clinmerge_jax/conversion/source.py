"""A Source: a model of any format as config.json, small files, and tensors that are read by rows."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.digest import FileDigest, finish_all, sha256
from clinmerge_jax.checkpoint.formats.safetensors import read_into
from clinmerge_jax.checkpoint.names import USUAL, Naming
from clinmerge_jax.llama.config import LlamaConfig

PIECE_BYTES = 16 << 20  # bytes read and written at a time
_GAP_BYTES = 64 << 20  # largest gap between tensors (headers, padding) that is read for the digest alone


class InputFiles:
    """Weight files that are read by byte ranges and digested while they are read; for one thread at a time.

    Args:
      paths: the files.
    """

    def __init__(self, paths: Iterable[pathlib.Path]):
        self._stack = contextlib.ExitStack()
        self._descriptors: dict[pathlib.Path, int] = {}
        self._digests: dict[pathlib.Path, FileDigest] = {}
        for path in paths:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
            self._stack.callback(os.close, self._descriptors[path])
            self._digests[path] = FileDigest(path)

    def __enter__(self) -> "InputFiles":
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def read(self, path: pathlib.Path, offset: int, nbytes: int) -> np.ndarray:
        """Reads bytes of a file, uint8 [nbytes]."""
        descriptor, digest = self._descriptors[path], self._digests[path]
        if 0 < offset - digest.position <= _GAP_BYTES:
            gap = bytearray(offset - digest.position)
            read_into(descriptor, digest.position, memoryview(gap), path)
            digest.update(digest.position, memoryview(gap))
        raw = np.empty(nbytes, np.uint8)
        read_into(descriptor, offset, memoryview(raw), path)
        digest.update(offset, memoryview(raw))
        return raw

    def sha256(self) -> dict[str, str]:
        """SHA-256 by path; bytes that were not read in order are read now."""
        return finish_all(self._digests.values())


@dataclasses.dataclass(frozen=True)
class SourceTensor:
    """One tensor under its Hugging Face name.

    Attributes:
      name: its name in a Hugging Face folder.
      shape: its shape there.
      stored: its type in the source, such as "Q4_1" or "bfloat16".
      dtype: the dtype of the values that `read` returns.
      read: function of the first row and the number of rows to values [rows, columns].
      unit: rows are read in multiples of this many.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    unit: int = 1

    @property
    def rows(self) -> int:
        """The length of the first axis."""
        return self.shape[0] if self.shape else 1

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yields the first row and the number of rows of each piece to read."""
        per_row = max(1, self.size // max(1, self.rows) * self.dtype.itemsize)
        step = max(1, PIECE_BYTES // per_row // self.unit) * self.unit
        for first in range(0, self.rows, step):
            yield first, min(step, self.rows - first)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to convert, opened without reading its weights.

    Attributes:
      format: its name in the card and in messages.
      path: the folder or file.
      config: config.json of a Hugging Face folder.
      tensors: the tensors by name, in the best order for reading.
      small_files: tokenizer, generation and licence files by name: a file to copy, or its content.
      files: the weight files.
      llama: function that checks the tensors against the architecture and returns it; raises BadInput if they differ.
      inputs: what identifies the source without reading weights, in the form of `provenance.fingerprint`.
      dtype: the default dtype of the result; None keeps every tensor's own.
      quantized: whether values come from quantized blocks, which give infinite values if they are damaged.
      title: the model's title, if the source states one.
      licence: the model's licence, if the source states one.
      facts: further lines for the card.
      naming: how a Hugging Face folder of the model spells the tensor names.
    """

    format: str
    path: pathlib.Path
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    small_files: Mapping[str, pathlib.Path | bytes]
    files: InputFiles
    llama: Callable[[], LlamaConfig]
    inputs: Mapping[str, Any]
    dtype: np.dtype | None = None
    quantized: bool = False
    title: str = ""
    licence: Any = None
    facts: tuple[str, ...] = ()
    naming: Naming = USUAL

    def sha256(self) -> dict[str, str]:
        """SHA-256 of the large files, by their names in `inputs`."""
        folder = self.path if self.path.is_dir() else self.path.parent
        known = self.files.sha256()
        return {name: known.get(str(folder / name)) or sha256(folder / name) for name in self.inputs["files"]}


def half_split(rows_ND: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorders the rows of whole heads of a query or key projection for Hugging Face's RoPE.

    llama.cpp and llama2.c rotate rows (2i, 2i + 1) of a head together, Hugging Face rows (i, i + head_dim / 2). The
    same permutation of queries and keys leaves every attention score unchanged.

    Args:
      rows_ND: [heads * head_dim, D], or a bias with D = 1.
      head_dim: the head size of the model, even.
    """
    rows, columns = rows_ND.shape
    pairs = rows_ND.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, columns)
