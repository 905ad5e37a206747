"""Coefficients of linear and slerp from what is known of whole tensors."""

import math

import numpy as np
import pytest

from clinmerge_jax.merging.methods import COLLINEAR_COSINE, METHODS, PairTotals, TensorSpec


def _totals(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return PairTotals(float(a @ a), float(b @ b), float((a - b) @ (a - b)))


def _factors(method, values, sources, pair=None):
    """What the host half comes to, its one question answered with the totals of a pair."""
    spec = TensorSpec("tensor", 1, 2, values, sources)
    METHODS[method].check(spec)
    host_half = METHODS[method].coefficients(spec)
    try:
        next(host_half)
        host_half.send(np.array([[pair.a_squared, pair.b_squared, pair.difference_squared]]))
    except StopIteration as done:
        return done.value


def test_linear_divides_by_the_sum_of_the_weights_unless_told_not_to():
    weights = [{"weight": 1.0}, {"weight": 2.0}, {"weight": 3.0}]
    assert _factors("linear", {"normalize": 1.0}, weights) == [1 / 6, 2 / 6, 3 / 6]
    assert _factors("linear", {"normalize": 0.0}, weights) == [1.0, 2.0, 3.0]


def test_linear_refuses_weights_that_add_up_to_zero():
    with pytest.raises(ValueError, match="add up to 0"):
        _factors("linear", {"normalize": 1.0}, [{"weight": 1.0}, {"weight": -1.0}])


def test_slerp_of_orthogonal_vectors_moves_along_the_quarter_circle():
    pair = _totals([1.0, 0.0], [0.0, 1.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        expected = [math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)]
        np.testing.assert_allclose(_factors("slerp", {"t": t}, [{}, {}], pair), expected, atol=1e-15)


def test_slerp_of_unit_vectors_stays_on_the_sphere():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    c0, c1 = _factors("slerp", {"t": 0.3}, [{}, {}], _totals(a, b))
    assert np.linalg.norm(c0 * a + c1 * b) == pytest.approx(1.0, abs=1e-12)


def test_slerp_takes_the_straight_line_above_the_collinear_cosine():
    a = np.array([1.0, 0.0])
    for cosine, straight in ((COLLINEAR_COSINE + 1e-5, True), (COLLINEAR_COSINE - 1e-5, False)):
        b = np.array([cosine, math.sqrt(1 - cosine**2)])
        pair = _totals(a, b)
        assert pair.collinear is straight
        assert (_factors("slerp", {"t": 0.25}, [{}, {}], pair) == [0.75, 0.25]) is straight
        assert _totals(a, -b).collinear is straight


def test_the_ends_of_slerp_are_the_parents():
    pair = _totals([1.0, 2.0, 3.0], [3.0, -1.0, 0.5])
    assert _factors("slerp", {"t": 0.0}, [{}, {}], pair) == [1.0, 0.0]
    assert _factors("slerp", {"t": 1.0}, [{}, {}], pair) == [0.0, 1.0]


def test_zero_tensors_have_a_cosine_and_a_distance():
    nothing = _totals([0.0, 0.0], [0.0, 0.0])
    assert (nothing.cosine, nothing.relative_distance) == (1.0, 0.0)
    one_sided = _totals([0.0, 0.0], [1.0, 0.0])
    assert (one_sided.cosine, one_sided.relative_distance) == (0.0, math.inf)
