"""Bootstrap intervals over documents."""

import numpy as np

from clinmerge_jax.statistics import documents
from clinmerge_jax.statistics.documents import bootstrap
from clinmerge_jax.statistics.interval import Interval


def test_the_estimate_is_the_mean_over_tokens_not_over_documents():
    interval = bootstrap(np.array([[10.0, 1.0]]), np.array([10, 100]), lambda means: means[..., 0])
    assert interval.estimate == 0.1


def test_intervals_cover_the_mean_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(documents, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        counts = rng.integers(50, 150, 60)
        totals = counts * (2.0 + 0.3 * rng.standard_normal(60))
        interval = bootstrap(totals[None], counts, lambda means: means[..., 0], seed=trial)
        hits += interval.low <= 2.0 <= interval.high
    assert 180 <= hits <= 198


def test_a_comparison_of_models_is_paired():
    rng = np.random.default_rng(1)
    counts = np.full(100, 50)
    hard = 50 * rng.uniform(1, 5, 100)
    interval = bootstrap(np.stack([hard, hard + 5.0]), counts, lambda means: means[..., 1] - means[..., 0])
    assert abs(interval.low - 0.1) < 1e-9 and abs(interval.high - 0.1) < 1e-9


def test_the_same_seed_gives_the_same_interval():
    totals, counts = np.arange(20.0)[None], np.arange(20) + 1
    first, second = (bootstrap(totals, counts, lambda means: means[..., 0], seed=5) for _ in range(2))
    assert first == second


def test_the_text_of_an_interval():
    assert Interval(1.23456, 1.2, 1.3).format() == "1.235 [1.200, 1.300]"
