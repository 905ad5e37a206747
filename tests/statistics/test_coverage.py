"""Simulated studies: how often intervals hold the truth and tests reject it. T trials, S seeds, I items.

40 items in 20 encounters of 1 to 3, 5 seeds; effects of encounters and of items are exponential (skewness 2), those of
seeds, and of seeds on items, normal. Design, random seed and limits were fixed before the first run and have not been
changed since; how degrees of freedom are joined was chosen on studies of other random seeds.
"""

import dataclasses

import numpy as np
import pytest

from clinmerge_jax.statistics import (
    bootstrap_interval,
    difference,
    estimate,
    ratio,
    score_sample,
)

_SEED = 20261125
_SEEDS = 5
_ENCOUNTERS = np.repeat(np.arange(20), np.tile([1, 2, 3, 2], 5))
_SEED_EFFECTS = (0.2, 0.4, 0.8)  # standard deviation; an item's is 1, and 0.5 of each seed on each item
_MARGIN = 0.3


@dataclasses.dataclass(frozen=True)
class _Limits:
    coverage: tuple[float, float]
    false_positives: tuple[float, float]


_TRIALS = [
    pytest.param(1_000, _Limits((0.925, 0.975), (0.03, 0.07)), id="1000"),
    pytest.param(10_000, _Limits((0.935, 0.965), (0.04, 0.06)), id="10000", marks=pytest.mark.slow),
]


def _items(rng: np.random.Generator, trials: int) -> np.ndarray:
    """Centred effects of each item and its encounter, [T, I], of variance 1."""
    encounters = rng.exponential(size=(trials, 20))[:, _ENCOUNTERS]
    return np.sqrt(0.5) * (encounters + rng.exponential(size=(trials, 40)) - 2)


def _scores(rng: np.random.Generator, items_TI: np.ndarray, seed_effect: float) -> np.ndarray:
    """Scores [T, S, I] of a system whose true mean is 0."""
    trials, items = items_TI.shape
    seeds = seed_effect * rng.standard_normal((trials, _SEEDS, 1))
    return items_TI[:, None] + seeds + 0.5 * rng.standard_normal((trials, _SEEDS, items))


def _pair(rng: np.random.Generator, trials: int, seed_effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Two systems that find the same items hard, each with skewed effects of its own; both have true mean 0."""
    shared = _items(rng, trials)
    return tuple(_scores(rng, shared + 0.5 * _items(rng, trials), seed_effect) for _ in range(2))


def _holds(bounds: tuple[np.ndarray, np.ndarray], truth: float) -> float:
    low, high = bounds
    return float(np.mean((low <= truth) & (truth <= high)))


def _within(share: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= share <= limits[1]


@pytest.mark.parametrize("trials, limits", _TRIALS)
@pytest.mark.parametrize("seed_effect", _SEED_EFFECTS)
def test_intervals_cover_as_often_as_they_say(seed_effect, trials, limits, figures):
    rng = np.random.default_rng(_SEED)
    scores = _scores(rng, _items(rng, trials), seed_effect)
    covered = _holds(estimate(score_sample(scores, clusters=_ENCOUNTERS)).bounds(), 0)
    figures.append(f"seed effect {seed_effect}, {trials} trials: 95 % intervals cover {covered:.2%}")
    assert _within(covered, limits.coverage)


@pytest.mark.parametrize("trials, limits", _TRIALS)
@pytest.mark.parametrize("seed_effect", _SEED_EFFECTS)
def test_intervals_of_ratios_cover_as_often_as_they_say(seed_effect, trials, limits, figures):
    first, second = _pair(np.random.default_rng(_SEED), trials, seed_effect)
    covered = _holds(estimate(score_sample(first + 8, second + 8, clusters=_ENCOUNTERS), ratio()).bounds(), 1)
    figures.append(f"seed effect {seed_effect}, {trials} trials: 95 % intervals of a ratio cover {covered:.2%}")
    assert _within(covered, limits.coverage)


@pytest.mark.parametrize("trials, limits", _TRIALS)
@pytest.mark.parametrize("seed_effect", _SEED_EFFECTS)
def test_paired_and_non_inferiority_tests_err_as_often_as_they_say(seed_effect, trials, limits, figures):
    first, second = _pair(np.random.default_rng(_SEED), trials, seed_effect)
    equal = estimate(score_sample(first, second, clusters=_ENCOUNTERS), difference())
    worse = estimate(score_sample(first - _MARGIN, second, clusters=_ENCOUNTERS), difference())
    paired, inferior = np.mean(equal.p_value() < 0.05), np.mean(worse.p_above(-_MARGIN) < 0.05)
    figures.append(f"seed effect {seed_effect}, {trials} trials: false positives paired {paired:.2%}, {inferior:.2%}")
    assert _within(paired, limits.false_positives) and _within(inferior, limits.false_positives)


@pytest.mark.parametrize("seed_effect, most", [(0.2, 0.935), (0.4, 0.9), (0.8, 0.75)])
def test_item_only_intervals_cover_too_rarely_once_seeds_vary(seed_effect, most, figures):
    rng = np.random.default_rng(_SEED)
    scores = _scores(rng, _items(rng, 10_000), seed_effect)
    means = scores.mean(axis=-2, keepdims=True)  # over the seeds, as if there were no other ones
    covered = _holds(estimate(score_sample(means, clusters=_ENCOUNTERS)).bounds(), 0)
    figures.append(f"seed effect {seed_effect}: item-only intervals cover {covered:.2%}")
    assert covered < most


@pytest.mark.parametrize(
    "trials, limits",
    [
        pytest.param(200, _Limits((0.90, 0.99), (0, 1)), id="200"),
        pytest.param(10_000, _Limits((0.935, 0.965), (0, 1)), id="10000", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("seed_effect", _SEED_EFFECTS)
def test_bootstrap_intervals_of_a_difference_cover_as_often_as_they_say(seed_effect, trials, limits, figures):
    first, second = _pair(np.random.default_rng(_SEED), trials, seed_effect)
    intervals = [
        bootstrap_interval(score_sample(a, b, clusters=_ENCOUNTERS), difference(), draws=1000, seed=trial)
        for trial, (a, b) in enumerate(zip(first, second))
    ]
    covered = float(np.mean([interval.low <= 0 <= interval.high for interval in intervals]))
    figures.append(f"seed effect {seed_effect}, {trials} trials: paired bootstrap intervals cover {covered:.2%}")
    assert _within(covered, limits.coverage)
