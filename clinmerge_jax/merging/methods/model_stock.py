"""Model Stock (Jang et al. 2024, arXiv 2403.19522): interpolates between the models' mean and the base.

The angle between the models' changes determines the ratio.
"""

import numpy as np

from clinmerge_jax.merging.methods.common import Base, TensorSpec
from clinmerge_jax.merging.methods.weighted_sum import WeightedSum, cosine, row_gram, whole_gram


class ModelStock(WeightedSum):
    """t mean(W_i) + (1 - t) B, t = N cos / (1 + (N - 1) cos), cos the mean over pairs of changes.

    With filter_wise every row has its own angle.
    """

    def coefficients(self, spec: TensorSpec):
        """t / N for every model, [N] or [R, N]."""
        count = spec.models
        gram = yield from (row_gram if spec.values["filter_wise"] else whole_gram)(spec)
        pairs = [cosine(gram, i, j, floor=1e-6) for i in range(count) for j in range(i + 1, count)]
        mean = np.mean(pairs, axis=0)
        t = count * mean / (1.0 + (count - 1) * mean)
        return np.repeat(np.asarray(t / count)[..., None], count, axis=-1)


MODEL_STOCK = ModelStock("model_stock", Base.REQUIRED, (2, None), {"filter_wise": False})
