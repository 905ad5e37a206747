"""Intervals by the bootstrap over documents (Efron and Tibshirani 1993). D documents, M models."""

from collections.abc import Callable

import numpy as np

from clinmerge_jax.statistics.interval import LEVEL, Interval

DRAWS = 10_000


def bootstrap(totals_MD: np.ndarray, counts_D: np.ndarray, statistic: Callable, seed: int = 0) -> Interval:
    """The percentile interval of a statistic of per-token means, documents resampled with replacement.

    All models see the same resamples, so a statistic that compares models is paired.

    Args:
      totals_MD: each model's summed loss on each document.
      counts_D: the number of tokens that each sum is over.
      statistic: from M means [..., M] to one number [...].
      seed: seed of the resampling.
    """
    documents = len(counts_D)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(documents, np.full(documents, 1 / documents), size=DRAWS)
    means = (draws @ totals_MD.T) / (draws @ counts_D)[:, None]
    edges = np.quantile(statistic(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    estimate = statistic(totals_MD.sum(axis=1) / counts_D.sum())
    return Interval(float(estimate), float(edges[0]), float(edges[1]))
