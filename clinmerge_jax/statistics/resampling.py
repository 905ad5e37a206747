"""The bootstrap over seeds and clusters. B draws, S seeds, C clusters of items, K counts."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from clinmerge_jax.statistics.estimation import estimate
from clinmerge_jax.statistics.interval import LEVEL, Interval
from clinmerge_jax.statistics.samples import Sample, Statistic, mean

DRAWS = 10_000
_CHUNK = 1 << 22  # resampling weights in memory at a time


def bootstrap_interval(
    samples: Sample | Sequence[Sample],
    statistic: Statistic = mean,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The bootstrap interval of a statistic; all systems in a sample share the draws, so comparisons are paired.

    Draws seeds and, independently, clusters (the pigeonhole bootstrap: Owen 2007). The spread of the draws is too low
    for few seeds and too high where seeds and items interact, and their tails are normal at best. So the draws are
    rescaled about the estimate to the standard error of `estimate`, and by the ratio of the t quantile to the normal
    one. The ends are corrected for bias and skewness (BCa: Efron 1987).

    Use it for a statistic that is nonlinear within its own uncertainty. For others `estimate` gives an equivalent
    interval without randomness.

    Args:
      samples: the sample of one task, or those of several, whose mean is taken.
      statistic: as in `estimate`.
      level: the confidence level.
      draws: B, the number of draws.
      seed: seed of the draws.
    """
    tasks = [samples] if isinstance(samples, Sample) else list(samples)
    whole = estimate(tasks, statistic)
    if whole.standard_error == 0:
        return whole.interval(level)
    rng = np.random.default_rng(seed)
    seeds = tasks[0].seeds
    weights_BS = _weights(rng, draws, seeds) if seeds > 1 else np.ones((draws, 1))
    values = np.sort(np.mean([_drawn(task, statistic, weights_BS, rng) for task in tasks], axis=0))
    quantile = stats.norm.ppf((1 + level) / 2)
    stretch = whole.standard_error / values.std() * stats.t.ppf((1 + level) / 2, whole.freedom) / quantile
    values = whole.value + stretch * (values - whole.value)
    below = (np.sum(values < whole.value) + np.sum(values <= whole.value)) / 2  # ties count half
    bias = stats.norm.ppf(np.clip(below / draws, 0.5 / draws, 1 - 0.5 / draws))
    shifted = bias + np.array([-quantile, quantile])
    low, high = np.quantile(values, stats.norm.cdf(bias + shifted / (1 - whole.skewness / 6 * shifted)))
    return Interval(float(whole.value), float(low), float(high))


def _drawn(task: Sample, statistic: Statistic, weights_BS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The statistic [B] of each draw."""
    draws, seeds = weights_BS.shape
    flat = np.moveaxis(task.counts_SCK, -3, -2).reshape(task.clusters, -1)  # C, S K
    rows = max(1, _CHUNK // task.clusters)
    values = []
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        sums_BSK = (_weights(rng, size, task.clusters) @ flat).reshape(size, seeds, -1)
        values.append(statistic(np.einsum("bs,bsk->bk", weights_BS[start : start + size], sums_BSK)))
    return np.concatenate(values)


def _weights(rng: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """How often each of `count` units is drawn with replacement, [draws, count]."""
    chosen = rng.integers(count, size=(draws, count))
    chosen += count * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)
