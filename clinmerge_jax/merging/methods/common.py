"""What a merge method is: a host half that asks for statistics and gives coefficients, and an elementwise device half.

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

_FIXED_BITS = 61  # of column sums in int64, which leaves room for rounding
COLLINEAR_COSINE = 0.9995  # above this |cos|, slerp is numerically linear and taken as linear


class Base(enum.Enum):
    """What a method does with the recipe's base model."""

    NONE = "none"  # there is no such thing: a base must be one of the models
    FIRST = "first"  # it is one of the models, and the first of them
    OPTIONAL = "optional"  # changes are counted from it if it is given, from zero otherwise
    REQUIRED = "required"  # changes are counted from it


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor to be merged, as the host half sees it.

    Attributes:
      name: of the tensor; random masks depend on it.
      rows: R, 1 for a vector.
      columns: C.
      values: the method's parameters here.
      source_values: each model's, without the base.
      from_base: whether the first piece is the base.
      seed: of random masks.
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
        """Entries."""
        return self.rows * self.columns

    @property
    def models(self) -> int:
        """N."""
        return len(self.source_values)

    def each(self, parameter: str) -> list[float]:
        """A parameter of every model."""
        return [source[parameter] for source in self.source_values]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A pass over one tensor that the host half asks for; the engine answers with an array [R, K].

    Attributes:
      reduce: (pieces, first_row, args) -> [R, K]; pieces are whole rows of every source, base first, then the ranks
        that the method asks for (`Method.ranked`). Hashable, so that equal reductions compile once.
      args: arrays, traced.
      row: only this row is wanted, and the answer is [1, K]; None for all.
      tiled: `reduce` takes `gather` too (`exact.row_sums`) and then does not need whole rows.
      bins: if not 0, `reduce` gives K arrays of codes [R, C] instead, and the answer is how often each code from 0 to
        bins - 1 occurs in the whole tensor, int64 [K, bins]; other codes are not counted.
      column_scales: if not empty, `reduce` gives terms [R, K C] that are not negative, and the answer is their sums
        over all rows, float64 [K, C]. Of each of the K, all terms together are at most 2 ** scale: they are added as
        fixed-point numbers, so that the bits do not depend on the order.
    """

    reduce: Callable
    args: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    row: int | None = None
    tiled: bool = False
    bins: int = 0
    column_scales: tuple[int, ...] = ()

    def column_sums(self, terms: np.ndarray, columns: int) -> np.ndarray:
        """The share of some rows in an answer of column sums, int64 [K, C]: integers add up exactly in any order.

        Args:
          terms: what `reduce` gave, [R, K C].
          columns: C.
        """
        scales = np.asarray(self.column_scales)[:, None]
        fixed = np.ldexp(terms.reshape(len(terms), -1, columns).astype(np.float64), _FIXED_BITS - scales)
        return np.rint(fixed).astype(np.int64).sum(axis=0)

    def from_column_sums(self, sums: np.ndarray) -> np.ndarray:
        """The answer, float64 [K, C], from the sum of all shares."""
        return np.ldexp(sums.astype(np.float64), np.asarray(self.column_scales)[:, None] - _FIXED_BITS)


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """What `Method.apply` needs to know of one tensor.

    Attributes:
      args: small arrays, traced.
      row_args: arrays [R, ...], traced and cut like the rows.
      shown: for people: the factor of each source, if that is all there is to say.
    """

    args: Mapping[str, np.ndarray]
    row_args: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shown: tuple[float, ...] = ()


Reductions = Generator[Reduction, np.ndarray, Coefficients]


@dataclasses.dataclass(frozen=True)
class Method:
    """A merge method; each is one instance in the registry.

    Attributes:
      name: mergekit's.
      base: what it does with a base model.
      models: the fewest and the most models (beside the base, if changes are counted from one); None: no limit.
      parameters: of the method, with defaults; None where a recipe must give a number. A default of True or False
        marks a switch, an int a whole number.
      source_parameters: of each model, likewise.
      random: whether the recipe's seed counts.
    """

    name: str
    base: Base
    models: tuple[int, int | None]
    parameters: Mapping[str, float | None] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    source_parameters: Mapping[str, float | None] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    random: bool = False

    def check(self, spec: TensorSpec) -> None:
        """Looks at the parameters of one tensor before any weight is read.

        Raises:
          ValueError: they cannot be used.
        """

    def ranked(self, pieces: Sequence[jax.Array]) -> list[jax.Array]:
        """Arrays [R, C]; `reductions` and `apply` get their ranks within each row after the pieces (uint16/32, from 0).

        Ranks cost a sort, so that an engine computes them once a piece and not in every pass.
        """
        return []

    def reductions(self, spec: TensorSpec) -> Reductions:
        """The host half: yields the passes it needs, is sent their answers, and returns the coefficients."""
        raise NotImplementedError

    def apply(
        self,
        pieces: Sequence[jax.Array],
        first_row: jax.Array,
        args: Mapping[str, jax.Array],
        row_args: Mapping[str, jax.Array],
        dtype: Any,
    ) -> jax.Array:
        """The device half: merges some rows [R, C], elementwise but for what it does within a row.

        Args:
          pieces: the same rows of every source, the base first where there is one, then the ranks of `ranked`.
          first_row: the row of the tensor that the pieces begin with.
          args: `Coefficients.args`.
          row_args: the rows of `Coefficients.row_args` that belong to the pieces.
          dtype: of the result, rounded to once.
        """
        raise NotImplementedError


def differences(pieces: Sequence[jax.Array], first_row, args, gather: exact.Gather = exact.alone) -> jax.Array:
    """Per row `exact.pair_sums` of the first input with each other one (a single one with itself), [R, 3 (N - 1)]."""
    if len(pieces) == 1:
        return exact.pair_sums(pieces[0], pieces[0], gather)
    return jnp.concatenate([exact.pair_sums(pieces[0], other, gather) for other in pieces[1:]], axis=-1)


DIFFERENCES = Reduction(differences, tiled=True)  # every merge takes it first


def deltas(pieces: Sequence[jax.Array]) -> list[jax.Array]:
    """W_i - B of every model in float32; the base is the first piece."""
    base = pieces[0].astype(jnp.float32)
    return [piece.astype(jnp.float32) - base for piece in pieces[1:]]


@dataclasses.dataclass(frozen=True)
class PairTotals:
    """What is known of two whole tensors a and b."""

    a_squared: float
    b_squared: float
    difference_squared: float

    @classmethod
    def from_array(cls, totals: np.ndarray) -> "PairTotals":
        """From `exact.total` over `exact.pair_sums`."""
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
        """Whether slerp takes the straight line between the two."""
        return abs(self.cosine) > COLLINEAR_COSINE

    @property
    def relative_distance(self) -> float:
        """|a - b| / |a|; infinite where only a is zero."""
        if self.a_squared == 0.0:
            return 0.0 if self.difference_squared == 0.0 else math.inf
        return math.sqrt(self.difference_squared / self.a_squared)
