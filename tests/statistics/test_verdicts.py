"""Tests and verdicts."""

import numpy as np
import pytest
from scipy import stats

from clinmerge_jax.statistics import (
    difference,
    estimate,
    holm,
    mcnemar,
    minimum_detectable_difference,
    score_sample,
    verdict,
)


def _differences(centre: float):
    """Ten pairs whose difference has this mean and a standard error of about 0.1."""
    noise = np.array([-0.45, -0.35, -0.25, -0.15, -0.05, 0.05, 0.15, 0.25, 0.35, 0.45])
    return estimate(score_sample((centre + noise)[None], np.zeros((1, 10))), difference())


@pytest.mark.parametrize(
    "centre, conclusion", [(0.2, "supported"), (0.0, "undecided at this size"), (-0.5, "not supported")]
)
def test_the_verdict_compares_the_interval_with_the_bound(centre, conclusion):
    assert verdict(_differences(centre), bound=-0.1) == conclusion


def test_a_verdict_is_the_one_sided_test():
    result = _differences(0.1)
    low, _ = result.bounds(0.9)
    assert result.p_above(low) == pytest.approx(0.05)
    assert verdict(result, low - 1e-9) == "supported"
    assert verdict(result, low + 1e-9) == "undecided at this size"


def test_a_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    pilot = estimate(score_sample(rng.standard_normal((1, 40))))
    unit = minimum_detectable_difference(pilot) / pilot.standard_error
    trials = estimate(score_sample(rng.standard_normal((4000, 1, 40)) + unit / np.sqrt(40)))
    assert 0.77 < np.mean(trials.p_value() < 0.05) < 0.83


def test_holm_adjusts_the_smallest_most():
    # Ordered .005, .01, .03, .04: times 4, 3, 2, 1, and never falling.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(holm([0.6, 0.9]), [1, 1])


def test_mcnemar_looks_at_discordant_items_only():
    first = np.array([1] * 50 + [1] * 8 + [0] * 1, bool)
    second = np.array([1] * 50 + [0] * 8 + [1] * 1, bool)
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(8, 9).pvalue) == mcnemar(second, first)
    assert mcnemar(first, first) == 1
