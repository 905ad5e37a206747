"""Factors of a matrix, against the whole singular value decomposition."""

import numpy as np
import pytest

from clinmerge_jax.merging.inspection import low_rank
from clinmerge_jax.merging.inspection.low_rank import factor, squared_remainder


def _decaying(rows, columns, power):
    generator = np.random.default_rng(4)
    u = np.linalg.qr(generator.normal(size=(rows, rows))).Q
    v = np.linalg.qr(generator.normal(size=(columns, columns))).Q
    side = min(rows, columns)
    return ((u[:, :side] * np.arange(1, side + 1) ** -power) @ v[:side]).astype(np.float32)


@pytest.mark.parametrize("shape", [(400, 500), (500, 400)])
@pytest.mark.parametrize("rank", [1, 12, 13, 399, 400])  # up to 12 in a Krylov space
@pytest.mark.parametrize("power", [0.1, 1.0])
def test_factors_keep_what_the_best_ones_keep(shape, rank, power):
    matrix = _decaying(*shape, power)
    a, b = factor(matrix, rank)
    assert a.shape == (rank, shape[1]) and b.shape == (shape[0], rank) and a.dtype == b.dtype == np.float32
    squares = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))
    kept = 1 - np.square(matrix - b.astype(np.float64) @ a).sum() / squares.sum()
    best = squares[:rank].sum() / squares.sum()
    assert best * 0.999 < kept < best + 1e-6
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-4)


@pytest.mark.parametrize("rank", [3, 12, 100])  # of a matrix of rank 3
def test_factors_of_more_than_a_matrix_has_lose_nothing(rank):
    generator = np.random.default_rng(6)
    matrix = generator.normal(size=(400, 3)) @ generator.normal(size=(3, 500))
    a, b = factor(matrix.astype(np.float32), rank)
    assert np.linalg.norm(matrix - b @ a) < 1e-5 * np.linalg.norm(matrix)
    again = factor(matrix.astype(np.float32), rank)
    assert a.tobytes() == again[0].tobytes() and b.tobytes() == again[1].tobytes()


def test_what_factors_leave_is_added_over_pieces_in_float64(monkeypatch):
    generator = np.random.default_rng(8)
    d, a, b = (generator.normal(size=shape).astype(np.float32) for shape in ((50, 30), (4, 30), (50, 4)))
    expected = np.square(d - 0.5 * b.astype(np.float64) @ a).sum()
    whole = squared_remainder(d, a, b, 0.5)
    monkeypatch.setattr(low_rank, "_PIECE_ENTRIES", 70)
    assert whole == pytest.approx(expected, rel=1e-6) == squared_remainder(d, a, b, 0.5)
