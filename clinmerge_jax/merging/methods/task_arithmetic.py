"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): B + lambda sum w_i d_i."""

import dataclasses

from clinmerge_jax.merging.methods.common import TensorSpec
from clinmerge_jax.merging.methods.task_vectors import Sparsifier, make


@dataclasses.dataclass(frozen=True)
class Everything(Sparsifier):
    """Drops nothing, whatever the density, as mergekit does."""

    def drops(self, spec: TensorSpec) -> bool:
        """See `Sparsifier.drops`."""
        return False


TASK_ARITHMETIC = make("task_arithmetic", Everything(), False, {})
