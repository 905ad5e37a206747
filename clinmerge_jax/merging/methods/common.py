"""The merge method interface: a host half turns statistics into coefficients, an elementwise device half applies them.

R rows, C columns of one tensor (a vector is one row); N models beside the base.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging import exact

_FIXED_BITS = 61  # of fixed-point column sums in int64; leaves room for rounding
COLLINEAR_COSINE = 0.9995  # above this |cos|, slerp is numerically linear and computed as linear


class Base(enum.Enum):
    """How a method uses the recipe's base model."""

    NONE = "none"  # not at all: a base must be one of the models
    FIRST = "first"  # as the first of the models
    OPTIONAL = "optional"  # changes are relative to it if it is given, otherwise to zero
    REQUIRED = "required"  # changes are relative to it


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """The description of one tensor to be merged, as the host half gets it.

    Attributes:
      name: of the tensor; random masks depend on it.
      rows: R, 1 for a vector.
      columns: C.
      values: the method's parameters for this tensor.
      source_values: each model's parameters for this tensor, without the base.
      from_base: whether the first piece is the base.
      seed: seed of random masks.
    """

    name: str
    rows: int
    columns: int
    values: Mapping[str, float]
    source_values: Sequence[Mapping[str, float]]
    from_base: bool = False
    seed: int = 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.rows * self.columns

    @property
    def models(self) -> int:
        """N, the number of models beside the base."""
        return len(self.source_values)

    def each(self, parameter: str) -> list[float]:
        """The value of one parameter for every model."""
        return [source[parameter] for source in self.source_values]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A pass over one tensor that the host half asks for; the engine answers with an array [R, K].

    Attributes:
      reduce: (pieces, first_row, args) -> [R, K]; pieces are whole rows of every source, base first, then the ranks
        that the method asks for (`Method.ranked`). Hashable, so that equal reductions compile once.
      args: arrays, traced.
      row: if given, only this row is reduced, and the answer is [1, K]; None for all rows.
      tiled: whether `reduce` also takes `gather` (`exact.row_sums`), and then does not need whole rows.
      bins: if not 0, `reduce` gives K arrays of codes [R, C] instead, and the answer is how often each code from 0 to
        bins - 1 occurs in the whole tensor, int64 [K, bins]; other codes are not counted.
      column_scales: if not empty, `reduce` gives terms [R, K C] that are not negative, and the answer is their sums
        over all rows, float64 [K, C]. For each of the K, the sum of all terms is at most 2 ** scale. They are added as
        fixed-point numbers, so that the bits do not depend on the order.
    """

    reduce: Callable
    args: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    row: int | None = None
    tiled: bool = False
    bins: int = 0
    column_scales: tuple[int, ...] = ()

    def column_sums(self, terms: np.ndarray, columns: int) -> np.ndarray:
        """Fixed-point column sums of some rows, int64 [K, C]; integers add up exactly in any order.

        Args:
          terms: what `reduce` gave, [R, K C].
          columns: C.
        """
        scales = np.asarray(self.column_scales)[:, None]
        fixed = np.ldexp(terms.reshape(len(terms), -1, columns).astype(np.float64), _FIXED_BITS - scales)
        return np.rint(fixed).astype(np.int64).sum(axis=0)

    def from_column_sums(self, sums: np.ndarray) -> np.ndarray:
        """The answer, float64 [K, C], from the fixed-point sums over all rows."""
        return np.ldexp(sums.astype(np.float64), np.asarray(self.column_scales)[:, None] - _FIXED_BITS)


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """What `Method.apply` needs for one tensor.

    Attributes:
      args: small arrays, traced.
      row_args: arrays [R, ...], traced and sliced like the rows.
      shown: for reports, the factor of each source, where these factors describe the whole merge.
    """

    args: Mapping[str, np.ndarray]
    row_args: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shown: tuple[float, ...] = ()


Reductions = Generator[Reduction, np.ndarray, Coefficients]


@dataclasses.dataclass(frozen=True)
class Method:
    """A merge method; each is one instance in the registry.

    Attributes:
      name: mergekit's name.
      base: how it uses a base model.
      models: the fewest and the most models (beside the base, if changes are relative to it); None: no limit.
      parameters: of the method, with defaults; None where a recipe must give a number. A default of True or False
        marks a switch, an int a whole number.
      source_parameters: likewise, of each model.
      random: whether the result depends on the recipe's seed.
    """

    name: str
    base: Base
    models: tuple[int, int | None]
    parameters: Mapping[str, float | None] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    source_parameters: Mapping[str, float | None] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    random: bool = False

    def check(self, spec: TensorSpec) -> None:
        """Checks the parameters of one tensor before any weight is read.

        Raises:
          ValueError: the parameters cannot be used.
        """

    def ranked(self, pieces: Sequence[jax.Array]) -> list[jax.Array]:
        """Arrays [R, C] whose ranks within each row (uint16/32, from 0) reductions and `apply` get after the pieces.

        Ranks cost a sort, so the streaming engine keeps those of pieces that it holds between passes.
        """
        return []

    def reductions(self, spec: TensorSpec) -> Reductions:
        """The host half: yields the reductions it needs, is sent their answers, and returns the coefficients."""
        raise NotImplementedError

    def apply(
        self,
        pieces: Sequence[jax.Array],
        first_row: jax.Array,
        args: Mapping[str, jax.Array],
        row_args: Mapping[str, jax.Array],
        dtype: Any,
    ) -> jax.Array:
        """The device half: merges some rows [R, C], elementwise except for operations within a row.

        Args:
          pieces: the same rows of every source, the base first where there is one, then the ranks of `ranked`.
          first_row: the index in the tensor of the pieces' first row.
          args: `Coefficients.args`.
          row_args: the rows of `Coefficients.row_args` that belong to the pieces.
          dtype: of the result; values are rounded to it once.
        """
        raise NotImplementedError


def differences(pieces: Sequence[jax.Array], first_row, args, gather: exact.Gather = exact.alone) -> jax.Array:
    """Per row `exact.pair_sums` of the first input with each other input, [R, 3 (N - 1)]; a single one with itself."""
    if len(pieces) == 1:
        return exact.pair_sums(pieces[0], pieces[0], gather)
    return jnp.concatenate([exact.pair_sums(pieces[0], other, gather) for other in pieces[1:]], axis=-1)


DIFFERENCES = Reduction(differences, tiled=True)  # every merge computes it first


def deltas(pieces: Sequence[jax.Array]) -> list[jax.Array]:
    """W_i - B of every model in float32; the base is the first piece."""
    base = pieces[0].astype(jnp.float32)
    return [piece.astype(jnp.float32) - base for piece in pieces[1:]]


@dataclasses.dataclass(frozen=True)
class PairTotals:
    """|a|^2, |b|^2 and |a - b|^2 of two whole tensors a and b."""

    a_squared: float
    b_squared: float
    difference_squared: float

    @classmethod
    def from_array(cls, totals: np.ndarray) -> "PairTotals":
        """Builds it from `exact.total` over `exact.pair_sums`."""
        return cls(*map(float, totals))

    @property
    def cosine(self) -> float:
        """<a, b> / (|a| |b|); 0 where one of them is zero, 1 where both are."""
        norms = math.sqrt(self.a_squared) * math.sqrt(self.b_squared)
        if norms == 0.0:
            return 1.0 if self.difference_squared == 0.0 else 0.0
        dot = (self.a_squared + self.b_squared - self.difference_squared) / 2
        return max(-1.0, min(1.0, dot / norms))

    @property
    def collinear(self) -> bool:
        """Whether slerp interpolates linearly between the two."""
        return abs(self.cosine) > COLLINEAR_COSINE

    @property
    def relative_distance(self) -> float:
        """|a - b| / |a|; infinite where only a is zero."""
        if self.a_squared == 0.0:
            return 0.0 if self.difference_squared == 0.0 else math.inf
        return math.sqrt(self.difference_squared / self.a_squared)
