"""Tests on estimates, and the verdict on a claim."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from clinmerge_jax.statistics.estimation import Estimate

ALPHA = 0.05


def verdict(estimate: Estimate, bound: float, alpha: float = ALPHA) -> str:
    """The verdict of a study on the claim "the truth is above `bound`", one-sided.

    Bound 0 tests superiority; -margin, or 0.95 for a ratio, non-inferiority.

    Args:
      estimate: the estimate of one study.
      bound: the value that the truth must exceed.
      alpha: the probability of "supported" if the truth is at the bound, and likewise of "not supported".

    Returns:
      "supported", "not supported" or "undecided at this size".
    """
    lower, upper = estimate.bounds(1 - 2 * alpha)
    return "supported" if lower > bound else "not supported" if upper < bound else "undecided at this size"


def minimum_detectable_difference(estimate: Estimate, power: float = 0.8, alpha: float = ALPHA) -> float:
    """The true difference that a two-sided test at `alpha` detects with probability `power` in a study like this one.

    (t[1 - alpha / 2] + t[power]) standard errors (Bloom 1995).
    """
    quantiles = stats.t.ppf(1 - alpha / 2, estimate.freedom) + stats.t.ppf(power, estimate.freedom)
    return float(quantiles * estimate.standard_error)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusts p-values of several claims: the chance of any false positive is at most alpha (Holm 1979)."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def mcnemar(first_I: np.ndarray, second_I: np.ndarray) -> float:
    """Two-sided exact p-value against "both are right equally often" (McNemar 1947; binomial, not chi-squared).

    Args:
      first_I: whether the first system got each item right, for one seed and independent items.
      second_I: the same for the second system.
    """
    first_I, second_I = np.asarray(first_I, bool), np.asarray(second_I, bool)
    only_first = int(np.sum(first_I & ~second_I))
    discordant = int(np.sum(first_I != second_I))
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
