"""Interpolation between where training began and what it led to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clinmerge_jax.training.weights import interpolate, join


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    start = {"layers": {"weight": jnp.asarray(rng.normal(size=(2, 64, 32)), jnp.bfloat16)}}
    return start, jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) + 0.01 * rng.normal(size=leaf.shape).astype("f4"), start
    )


def test_the_ends_are_the_models_themselves(pair):
    start, trained = pair
    jax.tree.map(np.testing.assert_array_equal, interpolate(start, trained, 0.0), start)
    jax.tree.map(np.testing.assert_array_equal, interpolate(start, trained, 1.0, jnp.float32), trained)


def test_between_them_the_sum_is_rounded_once(pair):
    start, trained = (np.asarray(tree["layers"]["weight"], np.float64) for tree in pair)
    found = np.asarray(interpolate(*pair, 0.25)["layers"]["weight"])
    exact = 0.75 * start + 0.25 * trained
    assert found.dtype == jnp.bfloat16
    assert np.mean(found == exact.astype(np.float32).astype(found.dtype)) > 0.999
    half_unit = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 8)
    assert np.all(np.abs(found.astype(np.float64) - exact) <= 1.001 * half_unit)


def test_the_share_is_traced(pair):
    shares = jnp.array([0.0, 0.5])
    both = jax.vmap(lambda share: interpolate(*pair, share))(shares)["layers"]["weight"]
    np.testing.assert_array_equal(both[0], pair[0]["layers"]["weight"])
    np.testing.assert_array_equal(both[1], interpolate(*pair, 0.5)["layers"]["weight"])


def test_joined_trees_have_the_leaves_of_both():
    left, right = {"a": {"b": 1, "c": {"d": 2}}}, {"a": {"c": {"e": 3}}, "f": 4}
    assert join(left, right) == {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": 4}
