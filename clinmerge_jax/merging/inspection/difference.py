"""The difference of two checkpoints of one architecture, tensor by tensor."""

import math
from collections.abc import Iterator

import numpy as np

from clinmerge_jax.checkpoint.digest import FileDigest, finish_all
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.row_source import Files, StoredRows

_PIECE_ENTRIES = 1 << 24


class Difference:
    """model - base in float32, read in pieces; a context manager that holds the files open and digests what it reads.

    Args:
      model: a checkpoint.
      base: another checkpoint, with tensors of the same names and shapes.
    """

    def __init__(self, model: Checkpoint, base: Checkpoint):
        self.model = model
        self.base = base
        self._digests = {path: FileDigest(path) for checkpoint in (model, base) for path in checkpoint.files}
        self._files = Files(self._digests)

    def __enter__(self) -> "Difference":
        return self

    def __exit__(self, *_) -> None:
        self._files.close()

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """One tensor's difference as matrices of consecutive rows; a vector is one row."""
        entry = self.model.tensors[name]
        if not entry.size:
            return
        columns = entry.shape[-1] if entry.shape else 1
        rows, step = entry.size // columns, max(1, _PIECE_ENTRIES // columns)
        one, two = StoredRows(entry), StoredRows(self.base.tensors[name])
        for row in range(0, rows, step):
            count = min(step, rows - row)
            left, right = (rows_of.read(self._files, row, count).astype(np.float32) for rows_of in (one, two))
            yield left - right

    def matrix(self, name: str) -> np.ndarray:
        """The whole difference of a tensor that is a matrix."""
        whole = np.empty(self.model.tensors[name].shape, np.float32)
        row = 0
        for piece in self.pieces(name):
            whole[row : row + len(piece)] = piece
            row += len(piece)
        return whole

    def square(self, name: str) -> float:
        """The sum of the squares of one tensor's difference, in float64.

        Raises:
          BadInput: it holds values that are not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            square = math.fsum(float(np.sum(np.square(piece, dtype=np.float64))) for piece in self.pieces(name))
        if not math.isfinite(square):
            model, base = self.model, self.base
            raise BadInput(
                f"{model.label}: tensor {name} of {model.path} or of {base.path} ({base.label}) holds values that are"
                " not finite; give checkpoints without such values"
            )
        return square

    def sha256(self) -> dict[str, str]:
        """The SHA-256 of every weight file by its path; reads now what was not read in order."""
        return finish_all(self._digests.values())
