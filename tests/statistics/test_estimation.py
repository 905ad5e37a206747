"""Estimates over seeds and items."""

import time

import numpy as np
import pytest
from scipy import stats

from clinmerge_jax.errors import BadInput
from clinmerge_jax.statistics import (
    bootstrap_interval,
    count_sample,
    difference,
    estimate,
    mean,
    ratio,
    score_sample,
)


def _symmetric(rng: np.random.Generator, items: int) -> np.ndarray:
    half = rng.standard_normal(items // 2)
    return np.concatenate([half, -half])


def test_one_seed_and_symmetric_items_give_the_t_interval():
    scores = 3 + _symmetric(np.random.default_rng(0), 30)
    ours = estimate(score_sample(scores[None]))
    low, high = stats.t.interval(0.95, 29, scores.mean(), stats.sem(scores))
    np.testing.assert_allclose(ours.bounds(), (low, high), rtol=1e-9)
    np.testing.assert_allclose(ours.p_value(2.8), stats.ttest_1samp(scores, 2.8).pvalue, rtol=1e-9)
    assert ours.over == "items"


def test_items_that_all_agree_give_the_t_interval_over_seeds():
    seeds = np.array([0.1, 0.4, 0.3, 0.2, 0.7])
    ours = estimate(score_sample(np.repeat(seeds[:, None], 8, axis=1)))
    low, high = stats.t.interval(0.95, 4, seeds.mean(), stats.sem(seeds))
    np.testing.assert_allclose(ours.bounds(), (low, high), rtol=1e-6)
    assert ours.over == "seeds and items"


def test_items_of_one_cluster_count_as_one():
    scores = np.random.default_rng(1).standard_normal(20)
    copied = estimate(score_sample(np.repeat(scores, 3)[None], clusters=np.repeat(np.arange(20), 3)))
    np.testing.assert_allclose(copied.bounds(), estimate(score_sample(scores[None])).bounds())


def test_skewed_items_move_both_ends_towards_their_tail():
    scores = np.random.default_rng(2).exponential(size=30)[None]
    interval = estimate(score_sample(scores)).interval()
    assert interval.high - interval.estimate > 1.2 * (interval.estimate - interval.low)


def test_p_values_agree_with_the_ends_of_the_interval():
    result = estimate(score_sample(np.random.default_rng(3).exponential(size=(5, 30))))
    low, high = result.bounds()
    np.testing.assert_allclose([result.p_value(low), result.p_value(high)], 0.05, rtol=1e-6)
    np.testing.assert_allclose([result.p_above(low), result.p_above(high)], [0.025, 0.975], rtol=1e-6)


def test_the_mean_over_tasks_adds_the_variance_of_items_and_keeps_seeds_together():
    rng = np.random.default_rng(4)
    by_items = [score_sample(rng.standard_normal((1, n))) for n in (20, 50)]
    errors = [estimate(task).standard_error for task in by_items]
    np.testing.assert_allclose(estimate(by_items).standard_error, np.hypot(*errors) / 2)
    seeds = np.repeat(rng.standard_normal((5, 1)), 10, axis=1)
    np.testing.assert_allclose(estimate([score_sample(seeds), score_sample(-seeds)]).standard_error, 0, atol=1e-12)


def test_a_statistic_of_summed_counts_is_not_the_mean_over_items():
    counts = np.array([[[1.0, 10], [90, 100]]])
    assert estimate(count_sample(counts), lambda sums: sums[..., 0] / sums[..., 1]).value == pytest.approx(91 / 110)


def test_a_system_without_seeds_stands_beside_every_seed_of_the_other():
    rng = np.random.default_rng(5)
    trained, parent = rng.random((5, 12)), rng.random((1, 12))
    once = estimate(score_sample(trained, parent), ratio())
    repeated = estimate(score_sample(trained, np.repeat(parent, 5, axis=0)), ratio())
    assert once.interval() == repeated.interval()


def test_scores_that_never_vary_leave_no_doubt():
    result = estimate(score_sample(np.ones((5, 4)), np.zeros((5, 4))), difference())
    assert result.bounds() == (1, 1) and result.p_above(0) < 1e-50 and result.p_value(1) == 1


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_bootstrap_agrees_with_the_estimate_on_many_items(seeds):
    scores = np.random.default_rng(6).random((seeds, 400))
    ours, drawn = estimate(score_sample(scores)).interval(), bootstrap_interval(score_sample(scores), seed=1)
    assert drawn.estimate == ours.estimate
    np.testing.assert_allclose([drawn.low, drawn.high], [ours.low, ours.high], atol=0.15 * (ours.high - ours.low))


@pytest.mark.alone
def test_10000_paired_draws_over_1273_items_take_well_under_a_second(figures):
    rng = np.random.default_rng(7)
    pair = score_sample(rng.random((5, 1273)), rng.random((5, 1273)))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        bootstrap_interval(pair, difference())
        seconds.append(time.perf_counter() - start)
    figures.append(f"10,000 paired draws over 5 seeds and 1,273 items: {min(seconds):.2f} s")
    assert min(seconds) < 1


def test_the_same_seed_gives_the_same_draws():
    pair = score_sample(np.random.default_rng(8).random((5, 30)))
    assert bootstrap_interval(pair, seed=3) == bootstrap_interval(pair, seed=3) != bootstrap_interval(pair, seed=4)


@pytest.mark.parametrize(
    "systems, clusters, message",
    [
        ([np.ones((5, 3)), np.ones((5, 4))], None, "cannot be paired"),
        ([np.ones((5, 3)), np.ones((4, 3))], None, "cannot be paired"),
        ([np.array([[0.0, np.nan]])], None, "not finite"),
        ([np.ones((1, 3))], ["a", "b"], "2 ids for 3 items"),
        ([np.ones((1, 3))], ["a", "a", "a"], "fewer than two"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(systems, clusters, message):
    with pytest.raises(BadInput, match=message):
        score_sample(*systems, clusters=clusters)


def test_tasks_of_different_seeds_are_not_averaged():
    with pytest.raises(BadInput, match="numbers of seeds differ"):
        estimate([score_sample(np.ones((5, 3))), score_sample(np.ones((4, 3)))], mean)
