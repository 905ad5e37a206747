"""Multi-SLERP (Goddard 2025, mergekit): a weighted mean of N models on the sphere.

The mean is taken in the tangent space at the direction of the weighted mean. With a base, it is that of the models'
changes from the base.
"""

import math

import numpy as np

from clinmerge_jax.merging.methods.common import Base, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum, whole_gram


class MultiSlerp(WeightedSum):
    """Unit vectors, mean direction m, tangent mean at m, exponential map back, times the weighted mean norm."""

    def check(self, spec: TensorSpec) -> None:
        """See `Method.check`."""
        if spec.values["normalize_weights"] and math.fsum(spec.each("weight")) == 0.0:
            raise ValueError("the weights add up to 0; give weights with another sum, or normalize_weights: false")

    def coefficients(self, spec: TensorSpec):
        """The factor of each model, from coordinates in the span of the unit vectors."""
        weights = np.array(spec.each("weight"))
        eps = spec.values["eps"]
        if spec.values["normalize_weights"]:
            weights = weights / weights.sum()
        gram = yield from whole_gram(spec)
        norms = np.sqrt(np.diagonal(gram))
        to_unit = 1.0 / (norms + eps)
        units = gram * np.outer(to_unit, to_unit)

        def norm(coordinates: np.ndarray) -> float:
            return math.sqrt(max(0.0, coordinates @ units @ coordinates))

        length = norm(weights)
        if length < eps:
            if len(weights) == 2:
                return weights
            raise ValueError(
                "the weighted unit vectors add up to 0, so they have no mean direction; change the weights"
            )
        mean = weights / length
        tangent = weights - (weights @ units @ mean) * mean
        angle = norm(tangent) + eps
        result = math.cos(angle) * mean + (math.sin(angle) / angle) * tangent
        return result * (norms @ weights) * to_unit


MULTISLERP = MultiSlerp(
    "multislerp", Base.OPTIONAL, (1, None), {"normalize_weights": True, "eps": 1e-8}, {"weight": None}
)
