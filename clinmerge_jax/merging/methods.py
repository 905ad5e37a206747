"""Merge methods as pure functions on arrays; they know nothing of files or meshes.

Each method has two halves (WORKSPACE.md, "Merge maths"). `statistics` takes a few numbers per row of
what a piece holds; from their totals and the tensor's parameters, `coefficients` is taken on the host
in float64. `apply` then merges a piece elementwise, the coefficients traced, so a new t compiles
nothing. N sources, R rows, C columns.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from clinmerge_jax.merging import exact

COLLINEAR_COSINE = 0.9995  # above this |cos|, slerp is numerically linear and taken as linear


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


class WeightedSum:
    """The two device halves of every method whose result is a sum of the sources times factors."""

    @staticmethod
    def statistics(pieces: Sequence[jax.Array], gather: exact.Gather = exact.alone) -> list[jax.Array]:
        """Per row |a|^2, |b|^2 and |a - b|^2 of the first source with each other one: N - 1 arrays [R, 3].

        Args:
          pieces: whole rows of each source, or whole tiles of them.
          gather: as in `exact.row_sums`.
        """
        return [exact.pair_sums(pieces[0], other, gather) for other in pieces[1:]]

    @staticmethod
    def apply(pieces: Sequence[jax.Array], coefficients_N3: jax.Array, dtype) -> jax.Array:
        """The merged piece [R, C], from `exact.split_coefficients` of the factors."""
        return exact.weighted_sum(pieces, coefficients_N3, dtype)


class Linear(WeightedSum):
    """Weighted mean, "model soup" (Wortsman et al. 2022, arXiv 2203.05482): sum w_i W_i / sum w_i."""

    name = "linear"
    needs_totals = False
    max_sources: int | None = None
    source_parameters = ("weight",)
    parameters: Mapping[str, float] = {"normalize": 1.0}

    @staticmethod
    def coefficients(
        values: Mapping[str, float], source_values: Sequence[Mapping[str, float]], totals: Sequence[PairTotals]
    ) -> list[float]:
        """The factor of each source.

        Raises:
          ValueError: the weights add up to zero and are to be normalized.
        """
        weights = [source["weight"] for source in source_values]
        scale = math.fsum(weights) if values["normalize"] else 1.0
        if scale == 0.0:
            raise ValueError("the weights add up to 0; give weights with another sum, or normalize = 0")
        return [weight / scale for weight in weights]


class Slerp(WeightedSum):
    """Spherical interpolation (Shoemake 1985, "Animating rotation with quaternion curves").

    With theta the angle between the two tensors, each flattened whole:
    sin((1-t) theta)/sin(theta) W_0 + sin(t theta)/sin(theta) W_1, on the tensors as they are, not
    normalised; the straight line where |cos theta| > 0.9995.
    """

    name = "slerp"
    needs_totals = True
    max_sources: int | None = 2
    source_parameters: tuple[str, ...] = ()
    parameters: Mapping[str, float | None] = {"t": None}

    @staticmethod
    def coefficients(
        values: Mapping[str, float], source_values: Sequence[Mapping[str, float]], totals: Sequence[PairTotals]
    ) -> list[float]:
        """The factors of the two sources; t = 0 is the first."""
        t = values["t"]
        (pair,) = totals
        if pair.collinear:
            return [1.0 - t, t]
        theta = math.acos(pair.cosine)
        return [math.sin((1.0 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)]


METHODS = {method.name: method for method in (Linear, Slerp)}
