"""One model, scaled, for layer stacking ("frankenmerging"; Kim et al. 2023, "SOLAR 10.7B", arXiv 2312.15166)."""

from clinmerge_jax.merging.methods.common import Base, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum


class Passthrough(WeightedSum):
    """scale W."""

    def coefficients(self, spec: TensorSpec):
        """The scale."""
        yield from ()
        return spec.each("scale")


PASSTHROUGH = Passthrough("passthrough", Base.NONE, (1, 1), {}, {"scale": 1.0})
