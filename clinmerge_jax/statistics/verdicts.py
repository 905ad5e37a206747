"""Tests on estimates, and the verdict on a claim."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from clinmerge_jax.statistics.estimation import Estimate

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict of a study on the claim "the truth is above `bound`".

    Attributes:
      conclusion: "supported", "not supported" or "undecided at this size".
      p_value: one-sided, before any correction for several claims.
      lower: one-sided lower confidence bound at 1 - alpha.
      upper: the upper one, likewise.
      detectable: the smallest distance from the bound that such a study supports in 80 of 100 cases.
    """

    conclusion: str
    p_value: float
    lower: float
    upper: float
    detectable: float


def verdict(estimate: Estimate, bound: float, alpha: float = ALPHA) -> Verdict:
    """Tests superiority (bound 0) or non-inferiority (bound -margin, or 0.95 for a ratio), one-sided.

    Args:
      estimate: the estimate of one study.
      bound: the value that the truth must exceed.
      alpha: the probability of "supported" if the truth is at the bound, and likewise of "not supported".
    """
    lower, upper = (float(end) for end in estimate.bounds(1 - 2 * alpha))
    conclusion = "supported" if lower > bound else "not supported" if upper < bound else "undecided at this size"
    detectable = minimum_detectable_difference(estimate, alpha=2 * alpha)
    return Verdict(conclusion, float(estimate.p_above(bound)), lower, upper, detectable)


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
