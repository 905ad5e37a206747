"""Spherical interpolation (Shoemake 1985, "Animating rotation with quaternion curves").

With theta the angle between the two tensors, each flattened whole:
sin((1-t) theta)/sin(theta) W_0 + sin(t theta)/sin(theta) W_1, on the tensors as they are, not
normalised; the straight line where |cos theta| > 0.9995.
"""

import math

from clinmerge_jax.merging import exact
from clinmerge_jax.merging.methods.common import DIFFERENCES, Base, PairTotals, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum


class Slerp(WeightedSum):
    """See the module."""

    def coefficients(self, spec: TensorSpec):
        """The coefficients of the two models; t = 0 is the first."""
        t = spec.values["t"]
        sums = yield DIFFERENCES
        pair = PairTotals.from_array(exact.total([sums]))
        if pair.collinear:
            return [1.0 - t, t]
        theta = math.acos(pair.cosine)
        return [math.sin((1.0 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)]


SLERP = Slerp("slerp", Base.FIRST, (2, 2), {"t": None})
