"""Row sources: readers of an input tensor's rows from a file, a file plus an adapter, or aligned vocabularies."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from clinmerge_jax.checkpoint.adapters.adapter import Adapter
from clinmerge_jax.checkpoint.digest import FileDigest
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry, read_into


class Files:
    """Weight files read by one thread, each opened once and digested as far as it is read in order.

    Args:
      digests: the digest of each file, by path.
    """

    def __init__(self, digests: Mapping[pathlib.Path, FileDigest]):
        self._digests = digests
        self._descriptors: dict[pathlib.Path, int] = {}

    def read(self, entry: TensorEntry, columns: int, first_row: int, rows: int) -> np.ndarray:
        """Reads rows of a tensor with `columns` columns into newly allocated memory, [rows, columns]."""
        if entry.file not in self._descriptors:
            self._descriptors[entry.file] = os.open(entry.file, os.O_RDONLY)
            self._digests[entry.file].read_header()
        offset = entry.offset + first_row * columns * entry.dtype.itemsize
        piece = np.empty(rows * columns * entry.dtype.itemsize, np.uint8)
        read_into(self._descriptors[entry.file], offset, memoryview(piece), entry.file)
        self._digests[entry.file].update(offset, memoryview(piece))
        return piece.view(entry.dtype).reshape(rows, columns)

    def close(self) -> None:
        """Closes all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class RowSource(Protocol):
    """Reads rows of one input tensor; a row's bits depend only on its index.

    Attributes:
      dtype: of the rows that `read` returns.
    """

    dtype: np.dtype

    def read(self, files: Files, first_row: int, rows: int) -> np.ndarray:
        """Reads some rows, [rows, columns]."""


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """A tensor as stored in its file; a vector is one row."""

    entry: TensorEntry

    @property
    def dtype(self) -> np.dtype:
        return self.entry.dtype

    def read(self, files: Files, first_row: int, rows: int) -> np.ndarray:
        columns = self.entry.shape[-1] if self.entry.shape else 1
        return files.read(self.entry, columns, first_row, rows)


@dataclasses.dataclass(frozen=True)
class AdaptedRows:
    """A tensor with a LoRA adapter added in float32, not rounded to the tensor's own dtype."""

    stored: StoredRows
    adapter: Adapter

    dtype = np.dtype(np.float32)

    def read(self, files: Files, first_row: int, rows: int) -> np.ndarray:
        return self.adapter.apply_rows(self.stored.entry.name, first_row, self.stored.read(files, first_row, rows))


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedRows:
    """An embedding or head rearranged into the V rows of the result's vocabulary.

    Attributes:
      own: row source of the model's own tensor.
      places: int32 [V], the row of `own` for each row of the result; -1 where the row comes from donors.
      donors: by row of the result, the (row source, row) pairs whose mean it takes; no donors give zeros.
      columns: number of columns of the tensor.
    """

    own: RowSource
    places: np.ndarray
    donors: Mapping[int, Sequence[tuple[RowSource, int]]]
    columns: int

    @property
    def dtype(self) -> np.dtype:
        """The tensor's own dtype if every donated row is a copy of one row of that dtype; otherwise float32."""
        foreign = [donors for row, donors in self.donors.items() if self.places[row] < 0]
        same = all(len(donors) <= 1 and all(rows.dtype == self.own.dtype for rows, _ in donors) for donors in foreign)
        return self.own.dtype if same else np.dtype(np.float32)

    def read(self, files: Files, first_row: int, rows: int) -> np.ndarray:
        piece = np.zeros((rows, self.columns), self.dtype)
        places = self.places[first_row : first_row + rows]
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        for start, end in zip(starts, [*starts[1:], rows]):  # runs of rows that are consecutive in `own` too
            if places[start] >= 0:
                piece[start:end] = self.own.read(files, int(places[start]), int(end - start))
        for index in np.flatnonzero(places < 0):
            donors = self.donors.get(first_row + int(index), ())
            if donors:
                lent = [donor.read(files, row, 1)[0].astype(np.float64) for donor, row in donors]
                piece[index] = (sum(lent) / len(lent)).astype(self.dtype)
        return piece
