"""The exact k-th largest magnitude of a tensor without a sort, by counting float bits; and ranks within rows.

Non-negative floats compare like their bits as integers. One pass counts the upper 16 bits of all entries, a second one
the lower 15 bits of those that share the upper bits of the k-th. Counts are integers, so they do not depend on the
order, the pieces or the mesh. Of equal magnitudes at the threshold those with the lowest row-major index come first.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods.common import Reduction

_LOWER = 15  # bits that the second pass counts; the sign bit is 0, so 16 are left for the first
_HIGH_BINS, _LOW_BINS = 1 << 16, 1 << _LOWER
_CACHED_ENTRIES = 1 << 17  # ranked at once; few enough to stay in a CPU cache
_NOTHING = np.uint32(0xFFFFFFFF)  # above the bits of any magnitude

Magnitudes = Callable[..., Sequence[jax.Array]]  # (pieces, first_row, args) -> arrays [R, C], non-negative; hashable


def bits(magnitude: jax.Array) -> jax.Array:
    """float32 magnitudes as uint32 in the same order."""
    return jax.lax.bitcast_convert_type(magnitude, jnp.uint32)


@dataclasses.dataclass(frozen=True)
class _High:
    """The upper bits of some of the magnitudes as codes, M arrays [R, C]."""

    magnitudes: Magnitudes
    of: tuple[int, ...]

    def __call__(self, pieces, first_row, args) -> list[jax.Array]:
        values = self.magnitudes(pieces, first_row, args)
        return [(bits(values[which]) >> _LOWER).astype(jnp.uint16) for which in self.of]


@dataclasses.dataclass(frozen=True)
class _Low:
    """The lower bits of entries whose upper bits are a selection's, M arrays [R, C]; other entries get no code."""

    magnitudes: Magnitudes
    of: tuple[int, ...]

    def __call__(self, pieces, first_row, args) -> list[jax.Array]:
        values = [bits(x) for x in self.magnitudes(pieces, first_row, args)]
        codes = []
        for m, which in enumerate(self.of):
            there = values[which] >> _LOWER == args["upper"][m]
            codes.append(jnp.where(there, values[which] & (_LOW_BINS - 1), _LOW_BINS).astype(jnp.uint16))
        return codes


@dataclasses.dataclass(frozen=True)
class _EqualInRow:
    """Per row, the number of entries equal to the threshold of each selection, [R, M]."""

    magnitudes: Magnitudes
    of: tuple[int, ...]

    def __call__(self, pieces, first_row, args) -> jax.Array:
        values = [bits(x) for x in self.magnitudes(pieces, first_row, args)]
        equal = [values[which] == args["thresholds"][m] for m, which in enumerate(self.of)]
        return jnp.stack([jnp.sum(there, axis=1, dtype=jnp.int32) for there in equal], axis=-1)


@dataclasses.dataclass(frozen=True)
class _Equal:
    """Mask of the entries of one row that equal a selection's threshold, [1, C]."""

    magnitudes: Magnitudes
    which: int

    def __call__(self, pieces, first_row, args) -> jax.Array:
        return (bits(self.magnitudes(pieces, first_row, args)[self.which]) == args["threshold"]).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The k largest entries: bits above `threshold`, and those equal to it up to entry (row, column).

    Attributes:
      threshold: uint32.
      row: the row of the last selected entry that equals the threshold.
      column: its column.
    """

    threshold: np.uint32
    row: int
    column: int

    def as_array(self) -> np.ndarray:
        """As a uint32 array [3], for `selected`."""
        return np.array([self.threshold, self.row, self.column], np.uint32)


def selected(magnitude: jax.Array, first_row: jax.Array, selection: jax.Array) -> jax.Array:
    """Mask [R, C] of the entries that belong to a selection ([3], from `Selection.as_array`)."""
    threshold, last_row, last_column = selection
    row = first_row.astype(jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, magnitude.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, magnitude.shape, 1)
    before = (row < last_row) | ((row == last_row) & (column <= last_column))
    values = bits(magnitude)
    return (values > threshold) | ((values == threshold) & before)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The k-th largest magnitude.

    Attributes:
      bits: its float bits, uint32.
      wanted: how many of the k largest entries equal it.
      equal: how many entries equal it.
    """

    bits: np.uint32
    wanted: int
    equal: int


def place_from_top(counts: np.ndarray, k: int) -> tuple[int, int]:
    """The code of the k-th largest entry, from counts by code, and how many of the k largest have that code."""
    reached = np.cumsum(counts[::-1])
    steps = int(np.searchsorted(reached, k))
    return len(counts) - 1 - steps, k - (int(reached[steps - 1]) if steps else 0)


def kth_largest(magnitudes: Magnitudes, of: Sequence[int], ks: Sequence[int], args=None):
    """Finds the k-th largest magnitude of each selection in two passes; a generator like `Method.reductions`.

    Args:
      magnitudes: the arrays to choose from.
      of: for each selection, the index of its array.
      ks: for each selection, k from 1 to the number of entries.
      args: arguments of `magnitudes`.

    Returns:
      A `Threshold` for each.
    """
    args = dict(args or {})
    used = tuple(dict.fromkeys(of))
    counts = dict(zip(used, (yield Reduction(_High(magnitudes, used), args, bins=_HIGH_BINS))))
    places = [place_from_top(counts[which], k) for which, k in zip(of, ks)]
    upper = np.array([place for place, _ in places], np.uint32)
    counts = yield Reduction(_Low(magnitudes, tuple(of)), {**args, "upper": upper}, bins=_LOW_BINS)
    found = []
    for (high, rest), of_low in zip(places, counts):
        low, wanted = place_from_top(of_low, rest)
        found.append(Threshold(np.uint32(high << _LOWER | low), wanted, int(of_low[low])))
    return found


def largest(magnitudes: Magnitudes, of: Sequence[int], ks: Sequence[int], size: int, columns: int):
    """Finds the `Selection` of the k largest entries for each k; a generator like `Method.reductions`.

    This takes two passes; where a k divides equal entries, one more, and one over a single row for each such k.

    Args:
      magnitudes: the arrays to choose from.
      of: for each selection, the index of its array.
      ks: for each selection, the number of entries; 0 and `size` cost no pass.
      size: number of entries of the tensor.
      columns: number of columns of the tensor.
    """
    everything, nothing = Selection(np.uint32(0), size, columns), Selection(_NOTHING, 0, 0)
    result = [nothing if k <= 0 else everything for k in ks]
    inside = [m for m, k in enumerate(ks) if 0 < k < size]
    if not inside:
        return result
    found = dict(zip(inside, (yield from kth_largest(magnitudes, [of[m] for m in inside], [ks[m] for m in inside]))))
    for m, threshold in found.items():
        result[m] = Selection(threshold.bits, size, columns)
    cut = [m for m, threshold in found.items() if threshold.wanted < threshold.equal]
    if not cut:
        return result
    thresholds = np.array([found[m].bits for m in cut], np.uint32)
    equal = yield Reduction(_EqualInRow(magnitudes, tuple(of[m] for m in cut)), {"thresholds": thresholds})
    for index, m in enumerate(cut):
        so_far, wanted = np.cumsum(equal[:, index], dtype=np.int64), found[m].wanted
        row = int(np.searchsorted(so_far, wanted))
        in_row = wanted - (int(so_far[row - 1]) if row else 0)
        on_it = yield Reduction(_Equal(magnitudes, of[m]), {"threshold": thresholds[index]}, row=row)
        result[m] = Selection(thresholds[index], row, int(np.flatnonzero(on_it[0])[in_row - 1]))
    return result


def ranks(x_RC: jax.Array) -> jax.Array:
    """The rank of every entry within its row, from 0 for the smallest; of equal ones the lower column ranks lower."""
    dtype = _rank_dtype(x_RC.shape[1])
    column = jax.lax.broadcasted_iota(dtype, x_RC.shape, 1)
    _, by_size = jax.lax.sort((x_RC, column), dimension=1, is_stable=True, num_keys=1)
    _, rank = jax.lax.sort((by_size, column), dimension=1, num_keys=1)
    return rank


def _rank_dtype(columns: int) -> Any:
    return jnp.uint16 if columns <= 1 << 16 else jnp.uint32


def ranks_on_host(x_RC: np.ndarray, pool: concurrent.futures.Executor) -> np.ndarray:
    """Computes `ranks` of non-negative float32 by NumPy's sort, which is ten times as fast as XLA's on CPUs."""
    rows, columns = x_RC.shape
    result = np.empty(x_RC.shape, _rank_dtype(columns))
    column, places = np.arange(columns, dtype=np.uint64), np.arange(columns, dtype=result.dtype)
    step = max(1, _CACHED_ENTRIES // columns)

    def some(start: int) -> None:
        words = x_RC[start : start + step].view(np.uint32)
        keys = np.left_shift(words, np.uint64(32), dtype=np.uint64, casting="unsafe")  # magnitude, then column
        keys |= column
        keys.sort(axis=1)
        order = (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)
        order += columns * np.arange(len(words))[:, None]
        result[start : start + step].reshape(-1)[order] = places

    collections.deque(pool.map(some, range(0, rows, step)), maxlen=0)
    return result
