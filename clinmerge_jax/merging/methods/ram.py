"""Reinforced Agent Merging (arXiv 2601.13572): changes of one model alone are kept, shared changes are averaged.

ramplus_tl scales up a model's own changes by how much of its change others share, tensor by tensor.
"""

import dataclasses

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


def _changed(pieces, epsilon) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Changes, masks of where each is over epsilon, and the number of models that change each entry."""
    changes = deltas(pieces)
    masks = [jnp.abs(change) > epsilon for change in changes]
    return changes, masks, sum(mask.astype(jnp.int32) for mask in masks)


def _shared_and_unique(pieces, first_row, args) -> jax.Array:
    """Per row the counts of entries that each model changed together with others, then alone, [R, 2 N]."""
    _, masks, count = _changed(pieces, args["epsilon"])
    shared = [jnp.sum(mask & (count > 1), axis=1, dtype=jnp.int32) for mask in masks]
    unique = [jnp.sum(mask & (count == 1), axis=1, dtype=jnp.int32) for mask in masks]
    return jnp.stack([*shared, *unique], axis=-1)


@dataclasses.dataclass(frozen=True)
class Ram(Method):
    """B + own_i d_i where model i alone changed an entry, B + mean of the d_i where several did."""

    rescale: bool = False

    def reductions(self, spec: TensorSpec) -> Reductions:
        """See `Method.reductions`."""
        epsilon = np.float32(spec.values["epsilon"])
        own = np.ones(spec.models)
        if self.rescale:
            counts = yield Reduction(_shared_and_unique, {"epsilon": epsilon})
            shared, unique = np.split(counts.sum(axis=0, dtype=np.int64), 2)
            ratio = shared / np.maximum(unique, spec.values["epsilon"])
            own = 1.0 + spec.values["r"] * np.clip(ratio, 0.0, spec.values["alpha"])
        return Coefficients({"epsilon": epsilon, "own": exact.split_coefficients(own)})

    def apply(self, pieces, first_row, args, row_args, dtype):
        """See `Method.apply`."""
        changes, masks, count = _changed(pieces, args["epsilon"])
        kept = [jnp.where(mask, change, 0.0) for mask, change in zip(masks, changes)]
        alone = [jnp.where(count == 1, change, 0.0) for change in kept]
        mean = sum(kept[1:], kept[0]) / jnp.maximum(count, 1).astype(jnp.float32)
        change = jnp.where(count == 1, exact.weighted_sum(alone, args["own"], jnp.float32), mean)
        return (pieces[0].astype(jnp.float32) + change).astype(dtype)


RAM = Ram("ram", Base.REQUIRED, (1, None), {"epsilon": 1e-5})
RAMPLUS_TL = Ram("ramplus_tl", Base.REQUIRED, (1, None), {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}, rescale=True)
