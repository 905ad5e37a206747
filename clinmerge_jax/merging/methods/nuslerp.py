"""NuSLERP (mergekit): slerp between two models or, with a base, between their changes from it.

t = w_2 / (w_1 + w_2). Each tensor is one vector, or with nuslerp_flatten: false each of its rows is one.
"""

import numpy as np

from clinmerge_jax.merging.methods.common import Base, Problem
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum, cosine, row_gram, whole_gram

_NO_WEIGHT = 1e-6  # a smaller sum of the weights means halves
_STRAIGHT = 1e-8  # the straight line below this |sin theta|


class NuSlerp(WeightedSum):
    """See the module."""

    def check(self, problem: Problem) -> None:
        """See `Method.check`."""
        if problem.values["nuslerp_row_wise"] and not problem.values["nuslerp_flatten"]:
            raise ValueError("nuslerp_row_wise: true (one angle for every column) is not supported; leave it out")

    def factors(self, problem: Problem):
        """The factors of the two models, [2] or [R, 2]."""
        first, second = problem.each("weight")
        t = 0.5 if abs(first + second) < _NO_WEIGHT else second / (first + second)
        gram = yield from (whole_gram if problem.values["nuslerp_flatten"] else row_gram)(problem)
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
