"""Karcher mean: the Riemannian centre of mass of whole tensors as unit vectors on the sphere, times their mean norm.

Karcher 1977, "Riemannian center of mass and mollifier smoothing".
"""

import math

import numpy as np

from clinmerge_jax.merging.methods.common import Base, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum, whole_gram


class Karcher(WeightedSum):
    """At most `max_iter` steps of gradient descent, until the step is shorter than `tol`."""

    def coefficients(self, spec: TensorSpec):
        """The factor of each model; the iteration runs on coordinates in the span of the unit vectors."""
        gram = yield from whole_gram(spec)
        norms = np.sqrt(np.diagonal(gram))
        tolerance = spec.values["tol"]
        there = norms > tolerance  # a zero vector has no direction, but counts in the mean norm
        count = int(there.sum())
        if count == 0:
            return np.zeros(spec.models)
        to_unit = np.where(there, 1.0 / np.where(there, norms, 1.0), 0.0)
        units = gram * np.outer(to_unit, to_unit)
        share = there / count

        def norm(coordinates: np.ndarray) -> float:
            return math.sqrt(max(0.0, coordinates @ units @ coordinates))

        length = norm(share)
        centre = share / length if length >= tolerance else np.eye(spec.models)[np.argmax(there)]
        for _ in range(int(spec.values["max_iter"])):
            step = np.zeros(spec.models)
            for i in np.flatnonzero(there):
                dot = min(1.0, max(-1.0, units[i] @ centre))
                theta = math.acos(dot)
                if theta >= tolerance:
                    step += share[i] * theta / math.sin(theta) * (np.eye(spec.models)[i] - dot * centre)
            length = norm(step)
            if length < tolerance:
                break
            centre = math.cos(length) * centre + math.sin(length) / length * step
            centre = centre / (norm(centre) or 1.0)
        return centre * to_unit * norms.mean()


KARCHER = Karcher("karcher", Base.NONE, (2, None), {"max_iter": 10, "tol": 1e-5})
