"""Sequences of different lengths in flat arrays, and batches made of them.

N sequences, T tokens of a row.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.documents import Encoded

_FIELDS = ("tokens", "targets", "positions", "segments")


@dataclasses.dataclass(frozen=True)
class Sequences:
    """N concatenated sequences. A sequence is one example, or several that always share a row.

    Attributes:
      tokens: ids, int32.
      targets: bool, which tokens are learned.
      positions: int32, the index of each token in its example, from 0.
      segments: int32, the number of each token's example within its sequence, from 1.
      starts: int64 [N + 1], the offset of each sequence in the arrays above, and the end of the last one.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    starts: np.ndarray

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Number of tokens of each sequence, int64 [N]."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def digest(self) -> str:
        """SHA-256 of all sequences and their boundaries."""
        arrays = (self.tokens, self.targets, self.segments, self.starts)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def split(self) -> list[np.ndarray]:
        """The tokens of every example of every sequence, in order."""
        first = np.flatnonzero(self.positions == 0)
        return np.split(self.tokens, first[1:]) if len(first) else []

    def batch(self, rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> Batch:
        """A batch of shape [rows, T] with the given sequences side by side in its rows; remaining rows are empty.

        Args:
          rows: the sequence numbers of each row.
          shape: the batch shape.

        Raises:
          IndexError, ValueError: the sequences do not fit.
        """
        arrays = {name: np.zeros(shape, getattr(self, name).dtype) for name in _FIELDS}
        for row, members in enumerate(rows):
            begin = segments = 0
            for member in members:
                source = slice(self.starts[member], self.starts[member + 1])
                target = (row, slice(begin, begin + self.sizes[member]))
                for name, values in arrays.items():
                    values[target] = getattr(self, name)[source]
                arrays["segments"][target] += segments
                segments = int(arrays["segments"][target].max())
                begin += self.sizes[member]
        return Batch(**arrays)


def sequences_of(groups: Sequence[Sequence[Encoded]]) -> Sequences:
    """Makes sequences of one or several examples each; positions restart at 0 with each example."""
    parts = [(part, number) for group in groups for number, part in enumerate(group, start=1)]
    lengths = [sum(len(part.tokens) for part in group) for group in groups]

    def flat(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)

    return Sequences(
        tokens=flat([part.tokens for part, _ in parts], np.int32),
        targets=flat([part.targets for part, _ in parts], bool),
        positions=flat([np.arange(len(part.tokens)) for part, _ in parts], np.int32),
        segments=flat([np.full(len(part.tokens), number) for part, number in parts], np.int32),
        starts=np.cumsum([0, *lengths]),
    )


def joined(one: Sequences, other: Sequences) -> Sequences:
    """Concatenates two sets of sequences."""
    arrays = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in _FIELDS}
    return Sequences(**arrays, starts=np.concatenate([one.starts, one.starts[-1] + other.starts[1:]]))
