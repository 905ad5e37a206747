"""Exact products, fixed sums: the arithmetic that both halves of every method stand on."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from clinmerge_jax.merging import exact

DTYPES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)]


def _numpy_weighted_sum(tensors, pieces, dtype):
    """The same products and sums in NumPy, which never fuses a multiplication into an addition."""
    levels = [None] * 3
    for index, tensor in enumerate(tensors):
        x = tensor.astype(np.float32)
        if tensor.dtype == np.float32:
            high = (x.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
            parts = (high, x - high)
        else:
            parts = (x,)
        for level, part in enumerate(parts):
            for piece in range(3 - level):
                product = pieces[index, piece] * part
                at = level + piece
                levels[at] = product if levels[at] is None else levels[at] + product
    return (levels[0] + (levels[1] + levels[2])).astype(dtype)


def test_coefficient_pieces_have_12_bits_and_add_up_within_2_to_minus_36():
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000), [0.0, 1.0, -1.0, 1 / 3, 1e-8]])
    pieces = exact.split_coefficients(values)
    assert pieces.dtype == np.float32
    mantissas, _ = np.frexp(pieces.astype(np.float64))
    np.testing.assert_array_equal(mantissas * 4096, np.round(mantissas * 4096))
    total = pieces.astype(np.float64).sum(axis=1)
    assert np.all(np.abs(total - values) <= np.abs(values) * 2.0**-36)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_weighted_sum_has_numpys_bits_whatever_the_compiler_fuses(dtype, count):
    rng = np.random.default_rng(1)
    tensors = [rng.standard_normal((37, 129)).astype(dtype) for _ in range(count)]
    pieces = exact.split_coefficients(rng.standard_normal(count))
    for result in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        ours = jax.jit(exact.weighted_sum, static_argnames="dtype")(tensors, pieces, dtype=result)
        expected = _numpy_weighted_sum(tensors, pieces, result)
        assert np.asarray(ours).tobytes() == expected.tobytes()


def test_parents_that_cancel_leave_their_exact_difference():
    a = np.array([[2.0, 0.0007781982421875, 3.0]], ml_dtypes.bfloat16)
    b = np.array([[-3.0, -0.00116729736328125, -3.0]], ml_dtypes.bfloat16)
    result = exact.weighted_sum([a, b], jnp.asarray(exact.split_coefficients([0.6, 0.4])), np.dtype(np.float32))
    np.testing.assert_allclose(np.asarray(result), [[0.0, 0.0, 0.6]], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 511, 512, 513, 1536, 14336])
def test_pair_sums_are_the_exact_sums_to_float32(dtype, columns):
    rng = np.random.default_rng(columns)
    a = (0.02 * rng.standard_normal((3, columns))).astype(dtype)
    b = (a.astype(np.float32) + 0.001 * rng.standard_normal((3, columns)).astype(np.float32)).astype(dtype)
    sums = np.asarray(jax.jit(exact.pair_sums)(a, b))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    expected = np.stack([(wide_a**2).sum(-1), (wide_b**2).sum(-1), ((wide_a - wide_b) ** 2).sum(-1)], axis=-1)
    np.testing.assert_allclose(sums, expected, rtol=2e-6)


def test_the_sum_of_a_row_does_not_depend_on_its_neighbours_or_on_how_rows_are_cut():
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((64, 700)).astype(np.float32) for _ in range(2))
    whole = np.asarray(jax.jit(exact.pair_sums)(a, b))
    for step in (1, 5, 17, 64):
        pieces = [np.asarray(jax.jit(exact.pair_sums)(a[i : i + step], b[i : i + step])) for i in range(0, 64, step)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_totals_are_rounded_once_and_do_not_depend_on_the_order_of_pieces():
    rng = np.random.default_rng(4)
    rows = (rng.standard_normal((1000, 3)) * 10.0 ** rng.integers(-20, 20, (1000, 3))).astype(np.float32)
    forward = exact.total([rows[:300], rows[300:]])
    backward = exact.total([rows[300:][::-1], rows[:300]])
    assert forward.tobytes() == backward.tobytes()
    for column in range(3):
        assert forward[column] == float(sum(Fraction(float(x)) for x in rows[:, column]))


def test_totals_of_values_that_are_not_finite_are_nan():
    assert np.isnan(exact.total([np.array([[1.0, np.inf, np.nan]], np.float32)]))[1:].all()
