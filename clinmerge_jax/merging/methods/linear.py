"""Weighted mean, "model soup" (Wortsman et al. 2022, arXiv 2203.05482): sum w_i W_i / sum w_i."""

import math

from clinmerge_jax.merging.methods.common import Base, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum


class Linear(WeightedSum):
    """sum w_i W_i, divided by the sum of the weights if they are to be normalized."""

    def check(self, spec: TensorSpec) -> None:
        """See `Method.check`."""
        if spec.values["normalize"] and math.fsum(spec.each("weight")) == 0.0:
            raise ValueError("the weights add up to 0; give weights with another sum, or normalize: false")

    def coefficients(self, spec: TensorSpec):
        """w_i, divided by their sum if normalized."""
        yield from ()
        weights = spec.each("weight")
        scale = math.fsum(weights) if spec.values["normalize"] else 1.0
        return [weight / scale for weight in weights]


LINEAR = Linear("linear", Base.NONE, (1, None), {"normalize": True}, {"weight": None})
