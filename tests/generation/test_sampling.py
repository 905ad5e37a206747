"""Which tokens are left and how they are drawn, against transformers' own processors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation.sampling import (
    Kind,
    Sampling,
    Settings,
    choose,
    keep_likely,
    penalize,
)

ROWS, VOCABULARY = 7, 50
LOGITS = (3 * np.random.default_rng(0).standard_normal((ROWS, VOCABULARY))).astype(np.float32)


def _settings(**fields):
    return Settings.of([Sampling(**fields)] * ROWS)


@pytest.mark.parametrize(
    ("fields", "warper"),
    [
        ({"top_k": 5}, lambda: transformers.TopKLogitsWarper(5)),
        ({"top_p": 0.7}, lambda: transformers.TopPLogitsWarper(0.7)),
        ({"top_p": 0.01}, lambda: transformers.TopPLogitsWarper(0.01)),
        ({"min_p": 0.1}, lambda: transformers.MinPLogitsWarper(0.1)),
    ],
)
def test_what_is_left_is_what_transformers_leaves(fields, warper):
    ours = np.asarray(jax.jit(keep_likely)(LOGITS, _settings(temperature=1.0, **fields)))
    theirs = warper()(None, torch.tensor(LOGITS)).numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert 0 < np.isfinite(ours).sum() < ours.size


def test_filters_follow_one_another():
    ours = keep_likely(LOGITS, _settings(temperature=1.0, top_k=20, top_p=0.8, min_p=0.05))
    theirs = torch.tensor(LOGITS)
    for warper in (
        transformers.TopKLogitsWarper(20), transformers.TopPLogitsWarper(0.8), transformers.MinPLogitsWarper(0.05),
    ):  # fmt: skip
        theirs = warper(None, theirs)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_penalties_are_transformers():
    seen = np.random.default_rng(1).integers(0, VOCABULARY, (ROWS, 9))
    mask = np.zeros((ROWS, VOCABULARY), bool)
    np.put_along_axis(mask, seen, True, axis=1)
    ours = penalize(jnp.asarray(LOGITS), mask, _settings(repetition_penalty=1.3).repetition_penalty)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(seen), torch.tensor(LOGITS))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def _draws(logits, count, **fields):
    rows = [Sampling(seed=seed, **fields) for seed in range(count)]
    logits = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
    return np.asarray(choose(logits, Settings.of(rows), None, jnp.zeros(count, jnp.int32), Kind.of(rows)))


def test_draws_follow_the_probabilities():
    logits = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    count = 20000
    for temperature in (0.5, 1.0, 2.0):
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        found = np.bincount(_draws(logits, count, temperature=temperature), minlength=4) / count
        assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / count))
    found = np.bincount(_draws(logits, count, temperature=1.0, top_k=2), minlength=4) / count
    assert found[0] == found[3] == 0 and abs(found[2] - 1 / (1 + np.exp(-1))) < 0.02


def test_a_draw_depends_on_its_own_seed_and_position_alone():
    rows = [Sampling(temperature=1.0, top_p=0.9, seed=seed) for seed in range(ROWS)]
    positions = jnp.arange(ROWS, dtype=jnp.int32)
    kind = Kind.of(rows)
    whole = np.asarray(choose(jnp.asarray(LOGITS), Settings.of(rows), None, positions, kind))
    turned = np.asarray(choose(jnp.asarray(LOGITS[::-1]), Settings.of(rows[::-1]), None, positions[::-1], kind))
    np.testing.assert_array_equal(whole, turned[::-1])
    other = np.asarray(choose(jnp.asarray(LOGITS), Settings.of(rows), None, positions + 1, kind))
    assert (other != whole).any()


def test_greedy_rows_stay_greedy_beside_others():
    rows = [Sampling(temperature=float(index % 2), seed=index) for index in range(ROWS)]
    found = choose(jnp.asarray(LOGITS), Settings.of(rows), None, jnp.zeros(ROWS, jnp.int32), Kind.of(rows))
    np.testing.assert_array_equal(found[::2], LOGITS.argmax(axis=1)[::2])


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}, {"repetition_penalty": 0.0},
     {"temperature": float("nan")}],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(BadInput, match=f"config.{next(iter(fields))}: is"):
        dataclasses.replace(Sampling(), **fields)
