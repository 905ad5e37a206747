"""DELLA (Deep et al. 2024, arXiv 2406.11617): as DARE, but larger entries of a row are more likely kept.

The keep probability rises linearly with an entry's rank by magnitude within its row, from density - epsilon to
density + epsilon. Of equal magnitudes the one with the lower column ranks lower.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods.common import TensorSpec
from clinmerge_jax.merging.methods.dare import mask_keys, uniform_bits
from clinmerge_jax.merging.methods.task_vectors import Sparsifier, check_density, make

_RANGE = 2**32


@dataclasses.dataclass(frozen=True)
class MagnitudeRanks(Sparsifier):
    """Keeps entries with a probability that rises with their rank."""

    ranked = True

    def check(self, spec: TensorSpec) -> None:
        """See `Sparsifier.check`."""
        check_density(spec)
        for density, epsilon in zip(spec.each("density"), spec.each("epsilon")):
            if 0.0 < density < 1.0 and not (0.0 < density - abs(epsilon) and density + abs(epsilon) < 1.0):
                raise ValueError(
                    f"density {density:g} with epsilon {epsilon:g}: density - epsilon and density + epsilon must lie"
                    " between 0 and 1; give a smaller epsilon"
                )

    def select(self, spec: TensorSpec):
        """See `Sparsifier.select`."""
        yield from ()
        densities, epsilons = np.array(spec.each("density")), np.array(spec.each("epsilon"))
        first = np.where(densities < 1.0, (densities - epsilons) * _RANGE, _RANGE - 1)
        step = np.where(densities < 1.0, 2.0 * epsilons * _RANGE / max(1, spec.columns - 1), 0.0)
        return {
            "keys": mask_keys(spec),
            "first": np.clip(np.rint(first), 0, _RANGE - 1).astype(np.uint32),
            "step": (np.floor(step).astype(np.int64) % _RANGE).astype(np.uint32),
            "any": densities > 0.0,
        }

    def keep(self, index, change, first_row, args, rank):
        """See `Sparsifier.keep`."""
        limit = args["first"][index] + args["step"][index] * rank.astype(jnp.uint32)
        return (uniform_bits(change.shape, first_row, args["keys"][index]) <= limit) & args["any"][index]


_SOURCES = {"epsilon": 0.15}
DELLA = make(
    "della",
    MagnitudeRanks(),
    True,
    {"rescale": True, "normalize": True, "inverse_density": False},
    _SOURCES,
    random=True,
)
DELLA_LINEAR = make(
    "della_linear", MagnitudeRanks(), False, {"rescale": True, "inverse_density": False}, _SOURCES, random=True
)
