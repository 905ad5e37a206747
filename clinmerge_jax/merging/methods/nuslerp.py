"""NuSLERP (mergekit): slerp between two models or, with a base, between their changes from it.

t = w_2 / (w_1 + w_2). Each tensor is one vector. With nuslerp_flatten: false each of its rows is one, and with
nuslerp_row_wise: true in addition each of its columns (despite mergekit's name).
"""

import numpy as np

from clinmerge_jax.merging.methods.common import Base, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum, column_gram, cosine, row_gram, whole_gram

_NO_WEIGHT = 1e-6  # a smaller sum of the weights means t = 0.5
_STRAIGHT = 1e-8  # linear interpolation below this |sin theta|


class NuSlerp(WeightedSum):
    """See the module."""

    def by_column(self, spec: TensorSpec) -> bool:
        """See `WeightedSum.by_column`; a vector is one row, and has one angle."""
        values = spec.values
        return bool(values["nuslerp_row_wise"] and not values["nuslerp_flatten"] and spec.rows > 1)

    def coefficients(self, spec: TensorSpec):
        """The coefficients of the two models, [2], [R, 2] or [C, 2]."""
        first, second = spec.each("weight")
        t = 0.5 if abs(first + second) < _NO_WEIGHT else second / (first + second)
        by_row = row_gram if not spec.values["nuslerp_flatten"] else whole_gram
        gram = yield from (column_gram if self.by_column(spec) else by_row)(spec)
        theta = np.arccos(cosine(gram, 0, 1, floor=1e-14))
        sine = np.sin(theta)
        straight = np.abs(sine) < _STRAIGHT
        safe = np.where(straight, 1.0, sine)
        one = np.where(straight, 1.0 - t, np.sin((1.0 - t) * theta) / safe)
        two = np.where(straight, t, np.sin(t * theta) / safe)
        return np.stack([one, two], axis=-1)


NUSLERP = NuSlerp(
    "nuslerp", Base.OPTIONAL, (2, 2), {"nuslerp_flatten": True, "nuslerp_row_wise": False}, {"weight": None}
)
