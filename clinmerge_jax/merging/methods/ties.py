"""TIES (Yadav et al. 2023, arXiv 2306.01708): trims to the largest changes, elects signs, averages those that agree.

With one model, dividing by the agreeing weights cancels its weight.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods import order
from clinmerge_jax.merging.methods.common import TensorSpec, deltas
from clinmerge_jax.merging.methods.task_vectors import Sparsifier, check_density, make


def magnitudes(pieces, first_row, args):
    """|d_i| of every model."""
    return [jnp.abs(change) for change in deltas(pieces)]


@dataclasses.dataclass(frozen=True)
class Largest(Sparsifier):
    """Keeps the int(density n) largest entries of each change, at least one for a density over 0."""

    def check(self, spec: TensorSpec) -> None:
        """See `Sparsifier.check`."""
        check_density(spec)

    def select(self, spec: TensorSpec):
        """See `Sparsifier.select`."""
        ks = [max(density > 0.0, int(density * spec.size)) for density in spec.each("density")]
        found = yield from order.largest(magnitudes, range(len(ks)), ks, spec.size, spec.columns)
        return {"selections": np.stack([selection.as_array() for selection in found])}

    def keep(self, index, change, first_row, args, rank):
        """See `Sparsifier.keep`."""
        return order.selected(jnp.abs(change), first_row, args["selections"][index])


TIES = make("ties", Largest(), True, {"normalize": True})
