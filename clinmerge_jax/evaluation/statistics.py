"""Intervals by the bootstrap over documents (Efron and Tibshirani 1993). D documents, M models."""

import dataclasses
from collections.abc import Callable

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval."""

    estimate: float
    low: float
    high: float

    def format(self, digits: int = 3) -> str:
        """`estimate [low, high]`."""
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(totals_MD: np.ndarray, counts_D: np.ndarray, statistic: Callable, seed: int = 0) -> Interval:
    """The interval of a statistic of per-token means, documents resampled with replacement.

    All models see the same resamples, so a statistic that compares models is paired.

    Args:
      totals_MD: each model's summed loss on each document.
      counts_D: the tokens that were summed over.
      statistic: from M means [..., M] to one number [...].
      seed: of the resamples.
    """
    documents = len(counts_D)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(documents, np.full(documents, 1 / documents), size=DRAWS)
    means = (draws @ totals_MD.T) / (draws @ counts_D)[:, None]
    edges = np.quantile(statistic(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    estimate = statistic(totals_MD.sum(axis=1) / counts_D.sum())
    return Interval(float(estimate), float(edges[0]), float(edges[1]))
