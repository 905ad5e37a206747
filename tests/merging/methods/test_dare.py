"""DARE and DELLA: keep rates, rescaling and expectation, within what chance allows; density 1 exactly.

Seeds are fixed, so these tests do not flicker; limits are five standard deviations.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from method_runner import agreeing_sum, run_method, siblings

from clinmerge_jax.merging.methods import TensorSpec
from clinmerge_jax.merging.methods.dare import mask_keys, uniform_bits
from clinmerge_jax.merging.methods.order import ranks

SHAPE = (400, 500)
SIGMAS = 5.0


def _kept(name, density, seed=0, tensor="a.weight", each=(), shape=SHAPE, change=None, **values):
    """Where a merge of one model with a base of zeros is not zero."""
    change = np.ones(shape, np.float32) if change is None else change
    one = {"weight": 1.0, "density": density, **dict(each)}
    merged = run_method(name, [np.zeros_like(change), change], [one], seed, tensor, rescale=False, **values)
    return merged != 0


def _within(rate, expected, count):
    assert abs(rate - expected) <= SIGMAS * math.sqrt(expected * (1 - expected) / count), (rate, expected)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_dare_keeps_the_density(name, density):
    kept = _kept(name, density)
    _within(kept.mean(), density, kept.size)
    for axis in (0, 1):  # no row and no column is favoured: their counts spread as a binomial's do
        counts = kept.sum(axis=axis)
        n = kept.shape[axis]
        spread = counts.var() / (n * density * (1 - density))
        assert abs(spread - 1) <= SIGMAS * math.sqrt(2 / len(counts)) + 1 / n, spread


def test_masks_are_independent_of_neighbours_models_tensors_and_seeds():
    one = _kept("dare_linear", 0.5)
    others = {
        "seed": _kept("dare_linear", 0.5, seed=1),
        "tensor": _kept("dare_linear", 0.5, tensor="b.weight"),
        "column": np.roll(one, 1, axis=1),
        "row": np.roll(one, 1, axis=0),
    }
    for what, other in others.items():
        agreement = (one == other).mean()
        assert abs(agreement - 0.5) <= SIGMAS * 0.5 / math.sqrt(one.size), what
    keys = mask_keys(TensorSpec("t", 1, 1, {}, [{}, {}, {}]))
    assert len({tuple(key) for key in keys}) == 3
    two = [np.asarray(uniform_bits(SHAPE, jnp.uint32(0), key)) >> 31 for key in keys[:2]]
    assert abs((two[0] == two[1]).mean() - 0.5) <= SIGMAS * 0.5 / math.sqrt(one.size)


def test_bits_are_uniform():
    words = np.asarray(uniform_bits(SHAPE, jnp.uint32(0), mask_keys(TensorSpec("t", 1, 1, {}, [{}]))[0]))
    for bit in range(32):
        _within((words >> np.uint32(bit) & 1).mean(), 0.5, words.size)
    counts = np.bincount(words.ravel() >> np.uint32(24), minlength=256)
    expected = words.size / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - 255) <= SIGMAS * math.sqrt(2 * 255)


def test_masks_do_not_depend_on_the_piece():
    key = mask_keys(TensorSpec("t", 1, 1, {}, [{}]))[0]
    whole = np.asarray(uniform_bits((9, 7), jnp.uint32(0), key))
    np.testing.assert_array_equal(uniform_bits((4, 7), jnp.uint32(5), key), whole[5:])


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_mergekits_rescale_keeps_the_l1_norm_and_the_papers_divides_by_the_density(name):
    base, model = siblings(1, SHAPE, dtype=np.float32)
    base = np.zeros_like(base)
    each = {"weight": 1.0, "density": 0.3}
    rescaled = run_method(name, [base, model], each).astype(np.float64)
    assert np.abs(rescaled).sum() == pytest.approx(np.abs(model.astype(np.float64)).sum(), rel=1e-6)
    kept = rescaled != 0
    assert np.ptp(rescaled[kept] / model[kept]) < 1e-5  # one factor for all
    papers = run_method(name, [base, model], each, inverse_density=True)
    np.testing.assert_allclose(papers[kept], model[kept] / 0.3, rtol=1e-6)
    np.testing.assert_array_equal(papers != 0, kept)
    plain = run_method(name, [base, model], each, rescale=False)
    np.testing.assert_array_equal(plain[kept], model[kept])


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_the_papers_scale_keeps_the_expectation(name):
    """Over seeds the mean of what is merged is the change itself; DELLA's with equal chances for all ranks."""
    base, model = siblings(1, (20, 50))
    each = {"weight": 1.0, "density": 0.4, **({"epsilon": 1e-6} if name.startswith("della") else {})}
    draws = 200
    merged = [run_method(name, [base, model], each, seed, inverse_density=True) for seed in range(draws)]
    change = (model - base).astype(np.float64)
    mean = np.mean([one.astype(np.float64) - base for one in merged], axis=0)
    deviation = np.abs(change) * math.sqrt(0.6 / 0.4 / draws)
    moved = change != 0
    z = (mean - change)[moved] / deviation[moved]
    assert np.abs(z).max() <= SIGMAS and abs(z.mean()) <= SIGMAS / math.sqrt(z.size)
    assert abs(z.std() - 1) <= SIGMAS / math.sqrt(2 * z.size)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_density_1_keeps_everything_and_0_nothing(name):
    arrays = siblings(2)
    weights = [{"weight": 0.5, "density": 1.0}, {"weight": 0.3, "density": 1.0}]
    whole = run_method(name, arrays, weights)
    base, *models = (array.astype(np.float64) for array in arrays)
    changes = [model - base for model in models]
    if name in ("dare_ties", "della"):
        expected = base + agreeing_sum(changes, (0.5, 0.3), normalize=name == "della")
    else:
        expected = base + 0.5 * changes[0] + 0.3 * changes[1]
        np.testing.assert_array_equal(whole, run_method("task_arithmetic", arrays, weights))
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(run_method(name, arrays, {"weight": 1.0, "density": 0.0}), arrays[0])


def test_della_keeps_by_rank_within_the_row():
    change = np.random.default_rng(0).standard_normal((4000, 101)).astype(np.float32)
    density, epsilon = 0.5, 0.2
    kept = _kept("della_linear", density, each={"epsilon": epsilon}, change=change)
    rank = np.argsort(np.argsort(np.abs(change), axis=1), axis=1)
    np.testing.assert_array_equal(ranks(jnp.abs(change)), rank)
    for place in (0, 25, 50, 75, 100):
        expected = density - epsilon + 2 * epsilon * place / 100
        _within(kept[rank == place].mean(), expected, len(change))
    _within(kept.mean(), density, kept.size)
    slope = np.polyfit(np.arange(101), [kept[rank == place].mean() for place in range(101)], 1)[0]
    assert slope == pytest.approx(2 * epsilon / 100, rel=0.05)


def test_a_negative_epsilon_turns_dellas_order_round():
    change = np.random.default_rng(0).standard_normal((4000, 11)).astype(np.float32)
    kept = _kept("della_linear", 0.5, each={"epsilon": -0.2}, change=change)
    rank = np.argsort(np.argsort(np.abs(change), axis=1), axis=1)
    _within(kept[rank == 0].mean(), 0.7, len(change))
    _within(kept[rank == 10].mean(), 0.3, len(change))


def test_of_equal_magnitudes_the_lower_column_ranks_lower():
    np.testing.assert_array_equal(ranks(jnp.array([[1.0, 0.0, 1.0, 0.0, 2.0]])), [[2, 0, 3, 1, 4]])


def test_densities_that_leave_the_range_are_refused():
    arrays = siblings(1, (2, 4))
    with pytest.raises(ValueError, match="density - epsilon and density \\+ epsilon must lie between 0 and 1"):
        run_method("della", arrays, {"weight": 1.0, "density": 0.1, "epsilon": 0.15})
    with pytest.raises(ValueError, match="density is 1.5"):
        run_method("dare_ties", arrays, {"weight": 1.0, "density": 1.5})
