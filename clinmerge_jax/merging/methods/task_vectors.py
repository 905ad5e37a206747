"""Task vector methods, which add sparsified changes to a base: B + lambda sum w_i m_i s_i d_i, masks m, scales s.

The methods differ in which entries of each change d_i they keep (`Sparsifier`). Entries whose sign disagrees with the
weighted majority may be dropped (the sign election of TIES, Yadav et al. 2023, arXiv 2306.01708).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging import exact
from clinmerge_jax.merging.methods.common import (
    Base,
    Coefficients,
    Method,
    Reduction,
    Reductions,
    TensorSpec,
    deltas,
)

_NO_WEIGHT = 1e-8  # nothing is divided by a smaller sum of weights
_NO_NORM = 1e-7  # a smaller L1 norm is not restored


@dataclasses.dataclass(frozen=True)
class Sparsifier:
    """Selects the entries of each change that are kept; this base class keeps all.

    Attributes:
      ranked: whether `keep` needs the ranks of the magnitudes within their rows.
    """

    ranked = False

    def check(self, spec: TensorSpec) -> None:
        """Raises ValueError where the parameters cannot be used."""

    def drops(self, spec: TensorSpec) -> bool:
        """Whether any entries are dropped."""
        return any(density < 1.0 for density in spec.each("density"))

    def select(self, spec: TensorSpec):
        """A generator like `Method.reductions` that returns the arguments of `keep`."""
        yield from ()
        return {}

    def keep(
        self,
        index: int,
        change: jax.Array,
        first_row: jax.Array,
        args: Mapping[str, jax.Array],
        rank: jax.Array | None,
    ) -> jax.Array:
        """Mask [R, C] of the entries of one model's change that are kept."""
        return jnp.ones(change.shape, bool)


def check_density(spec: TensorSpec) -> None:
    """Raises ValueError for a density outside 0..1."""
    for density in spec.each("density"):
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"density is {density:g}; it is the share that is kept, give 0 to 1")


def changes_of(sparsifier: Sparsifier, pieces) -> tuple[list[jax.Array], list[jax.Array | None]]:
    """The changes, and the ranks of each; None where the sparsifier needs no ranks."""
    models = (len(pieces) - 1) // 2 if sparsifier.ranked else len(pieces) - 1
    return deltas(pieces[: 1 + models]), list(pieces[1 + models :]) or [None] * models


def thinned(sparsifier: Sparsifier, pieces, first_row, args) -> list[jax.Array]:
    """The changes with dropped entries set to zero."""
    return [
        jnp.where(sparsifier.keep(index, change, first_row, args, rank), change, 0.0)
        for index, (change, rank) in enumerate(zip(*changes_of(sparsifier, pieces)))
    ]


@dataclasses.dataclass(frozen=True)
class _NormSums:
    """Per row the L1 norms of each change, then those of its kept entries, [R, 2 N]."""

    sparsifier: Sparsifier

    def __call__(self, pieces, first_row, args) -> jax.Array:
        whole, _ = changes_of(self.sparsifier, pieces)
        kept = thinned(self.sparsifier, pieces, first_row, args)
        return jnp.stack([exact.row_sums(jnp.abs(change)) for change in (*whole, *kept)], axis=-1)


def elected(changes: Sequence[jax.Array], signs_N3: jax.Array, flip: jax.Array) -> list[jax.Array]:
    """Masks of where each change times its `flip` has the sign of the weighted majority (0 counts as plus)."""
    total = exact.weighted_sum(changes, signs_N3, jnp.float32)
    plus = total >= 0.0
    return [jnp.where(plus, change * sign > 0.0, change * sign < 0.0) for change, sign in zip(changes, flip)]


def consensus(pieces, changes: Sequence[jax.Array], args: Mapping[str, jax.Array], floor: bool, dtype) -> jax.Array:
    """B + the sum of agreeing changes times their coefficients, divided by the sum of the agreeing weights.

    Args:
      pieces: the base first.
      changes: thinned, [R, C] each.
      args: `signs` and `coefficients` [N, 3], `flip` [N] (the signs of the weights in the election), `weights` [N],
        `normalize`.
      floor: whether divisors are at least 1e-6; otherwise a divisor of 0 becomes 1.
      dtype: of the result.
    """
    agree = elected(changes, args["signs"], args["flip"])
    kept = [jnp.where(mask, change, 0.0) for mask, change in zip(agree, changes)]
    mixed = exact.weighted_sum(kept, args["coefficients"], jnp.float32)
    divisor = sum(jnp.where(mask, weight, 0.0) for mask, weight in zip(agree, args["weights"]))
    divisor = jnp.maximum(divisor, 1e-6) if floor else jnp.where(divisor == 0.0, 1.0, divisor)
    divisor = jnp.where(args["normalize"], divisor, 1.0)
    return (pieces[0].astype(jnp.float32) + mixed / divisor).astype(dtype)


@dataclasses.dataclass(frozen=True)
class TaskVectors(Method):
    """The form shared by all task vector methods; with `consensus`, signs are elected."""

    sparsifier: Sparsifier = Sparsifier()
    consensus: bool = False

    def check(self, spec: TensorSpec) -> None:
        """See `Method.check`."""
        self.sparsifier.check(spec)

    def ranked(self, pieces: Sequence[jax.Array]) -> list[jax.Array]:
        """See `Method.ranked`."""
        return [jnp.abs(change) for change in deltas(pieces)] if self.sparsifier.ranked else []

    def reductions(self, spec: TensorSpec) -> Reductions:
        """See `Method.reductions`."""
        values, count = spec.values, spec.models
        args = yield from self.sparsifier.select(spec)
        scales = np.ones(count)
        if values.get("inverse_density"):
            scales = np.array([1.0 / density if density else 1.0 for density in spec.each("density")])
        elif values["rescale"] and self.sparsifier.drops(spec):
            sums = yield Reduction(_NormSums(self.sparsifier), args)
            whole, kept = np.split(exact.total([sums]), 2)
            small = (whole < _NO_NORM) | (kept < _NO_NORM)
            scales = np.where(small, 1.0, whole / np.where(small, 1.0, kept))
        weights = np.array(spec.each("weight"))
        coefficients = values["lambda"] * weights * scales
        if not self.consensus:
            total = math.fsum(weights)
            if values["normalize"] and abs(total) >= _NO_WEIGHT:
                coefficients = coefficients / total
            return Coefficients({**args, "coefficients": exact.split_coefficients([1.0, *coefficients])})
        return Coefficients(
            {
                **args,
                "signs": exact.split_coefficients(weights * scales),
                "flip": np.sign(weights).astype(np.float32),
                "coefficients": exact.split_coefficients(coefficients),
                "weights": weights.astype(np.float32),
                "normalize": np.bool_(values["normalize"]),
            }
        )

    def apply(self, pieces, first_row, args, row_args, dtype):
        """See `Method.apply`."""
        changes = thinned(self.sparsifier, pieces, first_row, args)
        if self.consensus:
            return consensus(pieces, changes, args, False, dtype)
        return exact.weighted_sum([pieces[0], *changes], args["coefficients"], dtype)


def make(
    name: str, sparsifier: Sparsifier, consensus: bool, parameters, source_parameters=None, *, random: bool = False
) -> TaskVectors:
    """Makes a registry entry with mergekit's names and defaults; `parameters` replaces or adds to them."""
    values = {"normalize": False, "lambda": 1.0, "rescale": False, "int8_mask": False, **parameters}
    sources = {"weight": None, "density": 1.0, **(source_parameters or {})}
    return TaskVectors(name, Base.REQUIRED, (1, None), values, sources, random, sparsifier, consensus)
