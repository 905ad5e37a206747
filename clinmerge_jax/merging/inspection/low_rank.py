"""The best low-rank approximation of a matrix, as two factors.

For a matrix D and a rank: the product B A that minimises the sum of squares |D - B A|^2 (Eckart and Young 1936,
doi 10.1007/BF02288367).

Legend: O out, I in, R rank.
"""

import math

import numpy as np

_SEED = 0  # of the random start of the Krylov space
_BLOCKS = 10  # number of blocks of that space
_MORE_COLUMNS = 8  # columns of each block beyond the rank
_PIECE_ENTRIES = 1 << 24


def factor(d_OI: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Two factors of a given rank whose product approximates a matrix with the least sum of squared errors.

    If the rank is small compared with the shorter side, the leading singular vectors are computed in a block Krylov
    space from a random start with a fixed seed (Musco and Musco 2015, arXiv 1504.05477, algorithm 2), in a fraction of
    the time. Even of random noise, whose singular values hardly decay, this keeps all but some ten-thousandths of what
    the optimal factors keep. Otherwise the full singular value decomposition is truncated.

    Args:
      d_OI: float32.
      rank: from 1 to the shorter side.

    Returns:
      A (R, I) and B (O, R) in float32; each is scaled by the square roots of the singular values.
    """
    width = rank + _MORE_COLUMNS
    if 2 * _BLOCKS * width > min(d_OI.shape):
        u_OR, s_R, v_RI = np.linalg.svd(d_OI, full_matrices=False)
    else:
        start = np.random.default_rng(_SEED).standard_normal((d_OI.shape[1], width), dtype=np.float32)
        basis = block = np.linalg.qr(d_OI @ start).Q
        for _ in range(_BLOCKS - 1):
            block = d_OI @ (d_OI.T @ block)
            block -= basis @ (basis.T @ block)
            basis = np.concatenate([basis, np.linalg.qr(block).Q], axis=1)
            block = basis[:, -width:]
        basis = np.linalg.qr(basis).Q  # blocks of rounding errors are not orthogonal to the others
        u_OR, s_R, v_RI = np.linalg.svd(basis.T @ d_OI, full_matrices=False)
        u_OR = basis @ u_OR[:, :rank]
    root_R = np.sqrt(s_R[:rank])
    return root_R[:, None] * v_RI[:rank], u_OR[:, :rank] * root_R


def squared_remainder(d_OI: np.ndarray, a_RI: np.ndarray, b_OR: np.ndarray, scaling: float = 1.0) -> float:
    """The sum of squared errors of the factors, |D - scaling B A|^2, in float64.

    Args:
      d_OI: float32.
      a_RI: float32.
      b_OR: float32.
      scaling: factor of the product.
    """
    step = max(1, _PIECE_ENTRIES // d_OI.shape[1])
    squares = []
    for row in range(0, len(d_OI), step):
        rest = d_OI[row : row + step] - np.float32(scaling) * (b_OR[row : row + step] @ a_RI)
        squares.append(float(np.sum(np.square(rest, dtype=np.float64))))
    return math.fsum(squares)
