"""Model Breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795): drop the largest and the smallest changes.

Drops the int(gamma n) largest entries of each change, then the smallest, so that int(density n) remain. Drops fewer of
the largest where otherwise too few would remain.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods import order
from clinmerge_jax.merging.methods.common import TensorSpec
from clinmerge_jax.merging.methods.task_vectors import Sparsifier, check_density, make
from clinmerge_jax.merging.methods.ties import magnitudes


@dataclasses.dataclass(frozen=True)
class WithoutOutliers(Sparsifier):
    """Keeps the entries between the largest and the smallest."""

    def check(self, spec: TensorSpec) -> None:
        """See `Sparsifier.check`."""
        check_density(spec)
        for gamma in spec.each("gamma"):
            if not 0.0 <= gamma <= 1.0:
                raise ValueError(f"gamma is {gamma:g}; it is the share of the largest that is dropped, give 0 to 1")

    def select(self, spec: TensorSpec):
        """See `Sparsifier.select`."""
        pairs = list(zip(spec.each("density"), spec.each("gamma")))
        size = spec.size
        ks = []
        for density, gamma in pairs:
            kept = int(density * size) if density < 1.0 else size
            top = min(int(gamma * size), size - kept)
            ks += [top + kept, top]
        of = [index // 2 for index in range(len(ks))]
        found = yield from order.largest(magnitudes, of, ks, size, spec.columns)
        return {"selections": np.stack([selection.as_array() for selection in found]).reshape(-1, 2, 3)}

    def keep(self, index, change, first_row, args, rank):
        """See `Sparsifier.keep`."""
        whole, top = (order.selected(jnp.abs(change), first_row, selection) for selection in args["selections"][index])
        return whole & ~top


_SOURCES = {"gamma": 0.01}
BREADCRUMBS = make("breadcrumbs", WithoutOutliers(), False, {}, _SOURCES)
BREADCRUMBS_TIES = make("breadcrumbs_ties", WithoutOutliers(), True, {}, _SOURCES)
