"""A statistic with its uncertainty over seeds and items. S seeds, C clusters of items, K counts."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from clinmerge_jax.errors import BadInput
from clinmerge_jax.statistics.interval import LEVEL, Interval
from clinmerge_jax.statistics.samples import Sample, Statistic, mean


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic, and what its t-interval needs. For many studies at once every attribute is an array.

    Attributes:
      value: the statistic.
      standard_error: the standard error, over what `over` names.
      freedom: degrees of freedom of the standard error.
      skewness: of the statistic's distribution, from the clusters of items.
      over: what the uncertainty covers, "items" or "seeds and items"; a single seed says nothing about other seeds.
    """

    value: np.ndarray
    standard_error: np.ndarray
    freedom: np.ndarray
    skewness: np.ndarray
    over: str

    def bounds(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of the interval; each is also a one-sided bound at (1 + level) / 2."""
        quantile = stats.t.ppf((1 + level) / 2, self.freedom)
        low = self.value - self.standard_error * _unskewed_inverse(quantile, self.skewness)
        high = self.value - self.standard_error * _unskewed_inverse(-quantile, self.skewness)
        return low, high

    def interval(self, level: float = LEVEL) -> Interval:
        """The interval of a single study."""
        low, high = self.bounds(level)
        return Interval(float(self.value), float(low), float(high))

    def p_above(self, bound: float) -> np.ndarray:
        """One-sided p-value against "the truth is at most `bound`"; agrees with the lower end of `bounds`."""
        pivot = (self.value - bound) / np.maximum(self.standard_error, 1e-100)
        return stats.t.sf(_unskewed(pivot, self.skewness), self.freedom)

    def p_value(self, bound: float = 0.0) -> np.ndarray:
        """Two-sided p-value against "the truth is `bound`"; agrees with `bounds`."""
        above = self.p_above(bound)
        return 2 * np.minimum(above, 1 - above)


def estimate(samples: Sample | Sequence[Sample], statistic: Statistic | Sequence[Statistic] = mean) -> Estimate:
    """Estimates a statistic over seeds and items; for several tasks, its mean over them.

    The statistic is computed from counts summed over seeds and items, so corpus metrics keep their meaning. The
    variance has two crossed parts, estimated by leaving out one seed, one cluster, and both:

      V = V_clusters + max(V_seeds - V_both, 0),

    the two-way clustered variance (Cameron, Gelbach and Miller 2011, equation 2.5) with jackknife components (CR3:
    MacKinnon and White 1985).

    Few seeds and clusters need a t distribution. The parts' degrees of freedom are S - 1 for seeds, and for items the
    effective number of clusters less 1, which is lower than C - 1 if sizes differ (Carter, Schnepel and Steigerwald
    2017, with fully correlated items in a cluster). Combining them by Satterthwaite (1946) gives slightly too narrow
    intervals, by Cochran and Cox (1950) too wide ones. The mean of both (of 1 / freedom) gave the nominal coverage in
    simulated studies. Skewed items shift the distribution of the t statistic. Hall's cubic transformation corrects that
    to first order (Hall 1992).

    The percentile bootstrap is not used here: with five seeds it sees 4/5 of their variance, and it takes normal
    quantiles where those of t with 4 degrees of freedom are needed. Tasks are fixed, not sampled; their items are
    independent; seed s is the same seed on every task.

    Args:
      samples: the sample of one task, or those of several.
      statistic: a function of summed counts that does not depend on how many items or seeds were summed (a mean, a
        ratio, a corpus score); or one for each task.

    Raises:
      BadInput: the tasks have different numbers of seeds.
    """
    tasks = [samples] if isinstance(samples, Sample) else list(samples)
    if len({task.seeds for task in tasks}) != 1:
        raise BadInput("tasks: their numbers of seeds differ; average tasks that share their seeds")
    seeds = tasks[0].seeds
    statistics = [statistic] * len(tasks) if callable(statistic) else statistic
    parts = [_parts(task, one) for task, one in zip(tasks, statistics, strict=True)]
    share = 1 / len(tasks)
    value = share * sum(part.value for part in parts)
    by_seed = share * sum(part.by_seed for part in parts)
    variance_seeds = (seeds - 1) / seeds * (by_seed**2).sum(axis=-1)
    variance_both = share**2 * sum(part.variance_both for part in parts)
    variance_items = share**2 * sum(part.variance_items for part in parts)
    third_moment = share**3 * sum(part.third_moment for part in parts)
    between_seeds = np.maximum(variance_seeds - variance_both, 0)
    variance = variance_items + between_seeds
    satterthwaite = share**4 * sum(part.variance_items**2 / part.freedom for part in parts)
    cochran_cox = share**2 * sum(part.variance_items / part.freedom for part in parts)
    if seeds > 1:
        both = share**4 * sum(part.variance_both**2 / ((seeds - 1) * part.freedom) for part in parts)
        from_seeds = variance_seeds**2 / (seeds - 1) + both
        satterthwaite = satterthwaite + np.where(between_seeds > 0, from_seeds, 0)
        cochran_cox = cochran_cox + between_seeds / (seeds - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = (satterthwaite / variance**2 + cochran_cox / variance) / 2
        freedom = np.where(variance > 0, 1 / inverse, 1.0)
        skewness = np.where(variance > 0, third_moment / variance**1.5, 0.0)
    return Estimate(value, np.sqrt(variance), freedom, skewness, "seeds and items" if seeds > 1 else "items")


@dataclasses.dataclass(frozen=True)
class _Parts:
    """One task's contributions to the variance."""

    value: np.ndarray
    by_seed: np.ndarray  # [..., S]: the statistic minus the one without a seed
    variance_items: np.ndarray
    variance_both: np.ndarray
    third_moment: np.ndarray
    freedom: float


def _parts(task: Sample, statistic: Statistic) -> _Parts:
    counts_SCK, seeds, clusters = task.counts_SCK, task.seeds, task.clusters
    per_cluster = counts_SCK.mean(axis=-3)
    total = per_cluster.sum(axis=-2)
    value = statistic(total)
    without_cluster = statistic(total[..., None, :] - per_cluster)
    by_cluster = value[..., None] - without_cluster
    kept = (clusters - 1) / clusters
    if seeds > 1:
        without_seed_CK = (per_cluster[..., None, :, :] - counts_SCK / seeds) * (seeds / (seeds - 1))
        without_seed_K = without_seed_CK.sum(axis=-2)
        without_seed = statistic(without_seed_K)
        without_both = statistic(without_seed_K[..., None, :] - without_seed_CK)
        by_seed = value[..., None] - without_seed
        by_both = value[..., None, None] - without_seed[..., :, None] - without_cluster[..., None, :] + without_both
        variance_both = (seeds - 1) / seeds * kept * (by_both**2).sum(axis=(-1, -2))
    else:
        by_seed = np.zeros((*value.shape, 1))
        variance_both = np.zeros_like(value)
    centred = by_cluster - by_cluster.mean(axis=-1, keepdims=True)
    # The unbiased third central moment of a mean over C clusters; its terms are scaled like the variance's.
    third_moment = kept**3 * clusters**2 / ((clusters - 1) * max(clusters - 2, 1)) * (centred**3).sum(axis=-1)
    shares = task.sizes_C.astype(np.float64) ** 2
    effective = shares.sum() ** 2 / (shares**2).sum()
    return _Parts(
        value, by_seed, kept * (by_cluster**2).sum(axis=-1), variance_both, third_moment, max(effective - 1, 1.0)
    )


def _unskewed(pivot: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Hall's transformation of a t statistic, monotone and cubic."""
    return pivot + skewness * pivot**2 / 3 + skewness**2 * pivot**3 / 27 + skewness / 6


def _unskewed_inverse(quantile: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """The t statistic that `_unskewed` maps to `quantile`."""
    safe = np.where(np.abs(skewness) < 1e-6, 1.0, skewness)  # near 0 the formula loses all digits to cancellation
    inverse = 3 / safe * (np.cbrt(1 + safe * (quantile - safe / 6)) - 1)
    return np.where(np.abs(skewness) < 1e-6, quantile, inverse)
