"""The k-th largest without a sort: the entries that a stable sort would take, whatever is equal to what."""

import concurrent.futures

import jax.numpy as jnp
import numpy as np
import pytest
from method_runner import ask, largest

from clinmerge_jax.merging.methods import order


def _magnitudes(pieces, first_row, args):
    return [jnp.abs(piece) for piece in pieces]


def _ask(questions, arrays):
    return ask(questions, [jnp.asarray(array) for array in arrays])


def _chosen(selection, array, first_row=0):
    return np.asarray(order.selected(jnp.abs(array), jnp.uint32(first_row), selection.as_array()))


KINDS = {
    "all different": lambda rng: rng.standard_normal((7, 31)),
    "few values": lambda rng: rng.integers(-3, 4, (7, 31)) / 8,
    "all equal": lambda rng: np.full((7, 31), -2.5),
    "mostly zero": lambda rng: rng.standard_normal((7, 31)) * (rng.random((7, 31)) < 0.1),
    "of every size": lambda rng: rng.standard_normal((7, 31)) * 10.0 ** rng.integers(-30, 30, (7, 31)),
    "one column": lambda rng: rng.integers(0, 3, (64, 1)) * 1.0,
    "one row": lambda rng: rng.integers(0, 3, (1, 64)) * 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_selection_is_that_of_a_stable_sort(kind):
    array = KINDS[kind](np.random.default_rng(0)).astype(np.float32)
    size = array.size
    for k in {0, 1, 2, size // 3, size // 2, size - 1, size}:
        (selection,), _ = _ask(order.largest(_magnitudes, (0,), [k], size, array.shape[1]), [array])
        np.testing.assert_array_equal(_chosen(selection, array), largest(array, k), f"k = {k}")


def test_pieces_choose_by_their_place_in_the_tensor():
    array = np.ones((6, 5), np.float32)
    (selection,), _ = _ask(order.largest(_magnitudes, (0,), [17], 30, 5), [array])
    whole = largest(array, 17)
    for first, last in ((0, 3), (3, 4), (4, 6)):
        np.testing.assert_array_equal(_chosen(selection, array[first:last], first), whole[first:last])


def test_several_selections_share_their_passes():
    arrays = [np.random.default_rng(seed).standard_normal((9, 40)).astype(np.float32) for seed in range(3)]
    found, passes = _ask(order.largest(_magnitudes, (0, 1, 2, 0), [36, 180, 90, 200], 360, 40), arrays)
    assert passes == 2
    for selection, which, k in zip(found, (0, 1, 2, 0), (36, 180, 90, 200)):
        np.testing.assert_array_equal(_chosen(selection, arrays[which]), largest(arrays[which], k))


def test_nothing_and_everything_cost_no_pass():
    array = np.ones((4, 4), np.float32)
    _, passes = _ask(order.largest(_magnitudes, (0, 0), [0, 16], 16, 4), [array])
    assert passes == 0


def test_the_kth_largest_is_numpys():
    array = np.random.default_rng(1).standard_normal((13, 17)).astype(np.float32)
    ks = [1, 5, 110, 221]
    found, _ = _ask(order.kth_largest(_magnitudes, (0,) * 4, ks), [array])
    values = np.array([one.bits for one in found]).view(np.float32)
    np.testing.assert_array_equal(values, np.sort(np.abs(array), axis=None)[::-1][np.array(ks) - 1])
    assert all(one.wanted == one.equal == 1 for one in found)


@pytest.mark.parametrize("columns", [1, 7, 300])
def test_ranks_are_a_stable_sorts_on_every_kind_of_device(columns):
    rng = np.random.default_rng(columns)
    for array in (rng.random((500, columns)), rng.integers(0, 4, (500, columns)), np.zeros((3, columns))):
        array = array.astype(np.float32)
        expected = np.argsort(np.argsort(array, axis=1, kind="stable"), axis=1)
        np.testing.assert_array_equal(order.ranks(jnp.asarray(array)), expected)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            np.testing.assert_array_equal(order.ranks_on_host(array, pool), expected)
