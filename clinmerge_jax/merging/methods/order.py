"""The k-th largest magnitude of a tensor, exactly and without sorting: counts against thresholds of the float bits.

Non-negative floats compare like their bits as integers. Each pass counts, row by row, how many entries reach each of 15
evenly spaced bit patterns, so 8 passes find the k-th of all 2^31. Counts are integers: their sums do not depend on the
order, the pieces or the mesh. Of equal magnitudes at the threshold those with the lowest row-major index come first.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods.common import Step

_BITS = 4  # of the threshold that a pass finds
_CANDIDATES = 2**_BITS - 1
_SHIFTS = range(28, -1, -_BITS)
_NOTHING = np.uint32(0xFFFFFFFF)  # no float's bits

Magnitudes = Callable[..., Sequence[jax.Array]]  # (pieces, args) -> arrays [R, C], non-negative; hashable


def bits(magnitude: jax.Array) -> jax.Array:
    """float32 magnitudes as uint32 that order like them."""
    return jax.lax.bitcast_convert_type(magnitude, jnp.uint32)


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Per row, for each selection in turn, the entries whose bits reach each of its thresholds, [R, M T]."""

    magnitudes: Magnitudes
    of: tuple[int, ...]

    def __call__(self, pieces, first_row, args) -> jax.Array:
        values = [bits(x) for x in self.magnitudes(pieces, args)]
        thresholds_MT = args["thresholds"]
        counts = [
            jnp.sum(values[which] >= thresholds_MT[m, t], axis=1, dtype=jnp.int32)
            for m, which in enumerate(self.of)
            for t in range(thresholds_MT.shape[1])
        ]
        return jnp.stack(counts, axis=-1)


@dataclasses.dataclass(frozen=True)
class _Equal:
    """Of one row, the entries that lie on a selection's threshold, [1, C]."""

    magnitudes: Magnitudes
    which: int

    def __call__(self, pieces, first_row, args) -> jax.Array:
        return (bits(self.magnitudes(pieces, args)[self.which]) == args["threshold"]).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The k largest entries: bits above `threshold`, and those equal to it up to entry (row, column).

    Attributes:
      threshold: uint32.
      row: the row of the last entry on the threshold that is taken.
      column: its column.
    """

    threshold: np.uint32
    row: int
    column: int

    def as_array(self) -> np.ndarray:
        """[3] in uint32, for `selected`."""
        return np.array([self.threshold, self.row, self.column], np.uint32)


def selected(magnitude: jax.Array, first_row: jax.Array, selection: jax.Array) -> jax.Array:
    """Where entries [R, C] belong to a selection ([3], from `Selection.as_array`)."""
    threshold, last_row, last_column = selection
    row = first_row.astype(jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, magnitude.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, magnitude.shape, 1)
    before = (row < last_row) | ((row == last_row) & (column <= last_column))
    values = bits(magnitude)
    return (values > threshold) | ((values == threshold) & before)


def kth_largest(magnitudes: Magnitudes, of: Sequence[int], ks: Sequence[int], args=None):
    """Asks, in 8 passes, for the bits of the k-th largest magnitude of each selection.

    Args:
      magnitudes: the arrays to choose from.
      of: for each selection, which of these.
      ks: for each, k from 1 to the number of entries.
      args: for `magnitudes`.

    Returns:
      uint32 [M].
    """
    args = dict(args or {})
    found = np.zeros(len(ks), np.uint32)
    for shift in _SHIFTS:
        thresholds = found[:, None] + (np.arange(1, _CANDIDATES + 1, dtype=np.uint32) << np.uint32(shift))
        counts = yield Step(_Counts(magnitudes, tuple(of)), {**args, "thresholds": thresholds})
        counts = counts.sum(axis=0, dtype=np.int64).reshape(len(ks), _CANDIDATES)
        reached = (counts >= np.asarray(ks)[:, None]).sum(axis=1).astype(np.uint32)
        found = found + (reached << np.uint32(shift))
    return found


def largest(magnitudes: Magnitudes, of: Sequence[int], ks: Sequence[int], size: int, columns: int, args=None):
    """Asks for the `Selection` of the k largest entries of each; 9 passes, and one for each k that cuts equal entries.

    Args:
      magnitudes: as in `kth_largest`, as are `of` and `args`.
      of: for each selection, which of these.
      ks: for each, how many; 0 and `size` cost no pass.
      size: entries of the tensor.
      columns: of the tensor.
      args: for `magnitudes`.
    """
    args = dict(args or {})
    everything, nothing = Selection(np.uint32(0), size, columns), Selection(_NOTHING, 0, 0)
    result = [nothing if k <= 0 else everything for k in ks]
    cut = [m for m, k in enumerate(ks) if 0 < k < size]
    if not cut:
        return result
    of_cut = tuple(of[m] for m in cut)
    thresholds = yield from kth_largest(magnitudes, of_cut, [ks[m] for m in cut], args)
    beyond = np.stack([thresholds, thresholds + np.uint32(1)], axis=1)
    counts = yield Step(_Counts(magnitudes, of_cut), {**args, "thresholds": beyond})
    counts = counts.astype(np.int64).reshape(len(counts), len(cut), 2)
    for index, m in enumerate(cut):
        above = counts[:, index, 1]
        equal = counts[:, index, 0] - above
        wanted = ks[m] - int(above.sum())
        if wanted == int(equal.sum()):
            result[m] = Selection(thresholds[index], size, columns)
            continue
        so_far = np.cumsum(equal)
        row = int(np.searchsorted(so_far, wanted))
        in_row = wanted - (int(so_far[row - 1]) if row else 0)
        on_it = yield Step(_Equal(magnitudes, of[m]), {**args, "threshold": thresholds[index]}, row=row)
        result[m] = Selection(thresholds[index], row, int(np.flatnonzero(on_it[0])[in_row - 1]))
    return result
