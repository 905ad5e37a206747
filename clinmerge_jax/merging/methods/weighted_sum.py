"""Methods whose result is a weighted sum of the sources, with coefficients per tensor, per row or per column.

The coefficients follow from norms and dot products (the Gram matrix) of the sources or of their changes. So spherical
geometry is computed on the host in float64, in coordinates of the space that the sources span.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging import exact
from clinmerge_jax.merging.methods.common import (
    Coefficients,
    Method,
    Reduction,
    Reductions,
    TensorSpec,
    deltas,
)


@dataclasses.dataclass(frozen=True)
class GramSums:
    """Per row |v_i|^2 of each vector, then |v_i - v_j|^2 of each pair; v_i are the sources or their changes."""

    from_base: bool

    def __call__(self, pieces, first_row, args, gather: exact.Gather = exact.alone) -> jax.Array:
        vectors = deltas(pieces) if self.from_base else pieces
        squares = [exact.square_sum(vector, gather) for vector in vectors]
        floats = [vector.astype(jnp.float32) for vector in vectors]
        pairs = [exact.square_sum(floats[i] - floats[j], gather) for i, j in _pairs(len(floats))]
        return jnp.stack([*squares, *pairs], axis=-1)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def gram_matrix(sums: np.ndarray, count: int) -> np.ndarray:
    """Dot products [..., N, N] in float64 from sums [..., K] in the order of `GramSums`."""
    sums = np.asarray(sums, np.float64)
    gram = np.empty((*sums.shape[:-1], count, count))
    for i in range(count):
        gram[..., i, i] = sums[..., i]
    for k, (i, j) in enumerate(_pairs(count), start=count):
        gram[..., i, j] = gram[..., j, i] = (sums[..., i] + sums[..., j] - sums[..., k]) / 2
    return gram


def whole_gram(spec: TensorSpec):
    """Requests the Gram matrix [N, N] of whole tensors."""
    sums = yield Reduction(GramSums(spec.from_base), tiled=True)
    return gram_matrix(exact.total([sums]), spec.models)


def row_gram(spec: TensorSpec):
    """Requests the Gram matrix of every row, [R, N, N]."""
    sums = yield Reduction(GramSums(spec.from_base), tiled=True)
    return gram_matrix(sums, spec.models)


@dataclasses.dataclass(frozen=True)
class ColumnSquares:
    """Of every entry v_i^2 of each vector, then (v_i - v_j)^2 of each pair, [R, K C], in the order of `GramSums`."""

    from_base: bool

    def __call__(self, pieces, first_row, args) -> jax.Array:
        vectors = deltas(pieces) if self.from_base else [piece.astype(jnp.float32) for piece in pieces]
        vectors += [vectors[i] - vectors[j] for i, j in _pairs(len(vectors))]
        return jnp.concatenate([vector * vector for vector in vectors], axis=-1)


def column_gram(spec: TensorSpec):
    """Requests the Gram matrix of every column, [C, N, N]."""
    sums = yield Reduction(GramSums(spec.from_base), tiled=True)
    # Bounds: totals of whole tensors, doubled because the terms of the columns are rounded one by one.
    scales = tuple(int(np.frexp(2.0 * total)[1]) for total in exact.total([sums]))
    columns = yield Reduction(ColumnSquares(spec.from_base), column_scales=scales)
    return gram_matrix(columns.T, spec.models)


def cosine(gram: np.ndarray, i: int, j: int, floor: float = 0.0) -> np.ndarray:
    """Cosine of vectors i and j, [...]; the product of the norms is at least `floor`."""
    norms = np.sqrt(gram[..., i, i]) * np.sqrt(gram[..., j, j])
    return np.clip(gram[..., i, j] / np.maximum(norms, max(floor, np.finfo(np.float64).tiny)), -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class WeightedSum(Method):
    """The device half shared by weighted sums; subclasses define `coefficients`."""

    def coefficients(self, spec: TensorSpec):
        """A generator like `Method.reductions` that returns the factor of each model: [N], or [R, N] for each row.

        Where `by_column` is true, it is [C, N] for each column.
        """
        raise NotImplementedError

    def by_column(self, spec: TensorSpec) -> bool:
        """Whether the coefficients of a tensor differ from column to column."""
        return False

    def reductions(self, spec: TensorSpec) -> Reductions:
        """See `Method.reductions`."""
        models = np.asarray((yield from self.coefficients(spec)), np.float64)
        coefficients = models
        if spec.from_base:  # B + sum f_i (W_i - B)
            coefficients = np.concatenate([1.0 - models.sum(axis=-1, keepdims=True), models], axis=-1)
        split = exact.split_coefficients(coefficients)
        if coefficients.ndim == 1:
            return Coefficients({"coefficients": split}, shown=tuple(map(float, coefficients)))
        if self.by_column(spec):
            return Coefficients({"column_coefficients": split})
        return Coefficients({}, {"coefficients": split})

    def apply(self, pieces: Sequence[jax.Array], first_row, args, row_args, dtype) -> jax.Array:
        """See `Method.apply`."""
        if "coefficients" in args:
            return exact.weighted_sum(pieces, args["coefficients"], dtype)
        if "column_coefficients" in args:
            coefficients_N31C = jnp.moveaxis(args["column_coefficients"], 0, -1)[..., None, :]
            return exact.weighted_sum(pieces, coefficients_N31C, dtype)
        coefficients_N3R1 = jnp.moveaxis(row_args["coefficients"], 0, -1)[..., None]
        return exact.weighted_sum(pieces, coefficients_N3R1, dtype)
