"""Elementwise sums and dot products whose bits do not depend on partitioning or compilation.

Two things make float32 results depend on the compiler and the partition: fused multiply-adds, and
the order of sums. Here every product is exact, so that fusing it into an addition changes nothing,
and every sum has an explicit order that depends only on the row.

A product is exact because its factors have 12 significant bits at most: bfloat16 has 8, float16 has
11, float32 is split into two halves of 12, and coefficients into three pieces of 12 (Dekker 1971,
"A floating-point technique for extending the available precision"). R rows, C columns.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

_PIECE_BITS = 12
TILE = 256  # columns that are summed first, before tiles are; a shard of whole tiles needs no communication for that


def split_coefficients(coefficients: ArrayLike) -> np.ndarray:
    """Splits float64 coefficients [..., N] into three float32 pieces of 12 bits, [..., N, 3], within 2^-36."""
    rest = np.asarray(coefficients, np.float64)
    pieces = []
    for _ in range(3):
        mantissa, exponent = np.frexp(rest)
        piece = np.ldexp(np.round(np.ldexp(mantissa, _PIECE_BITS)), exponent - _PIECE_BITS)
        pieces.append(piece)
        rest = rest - piece
    return np.stack(pieces, axis=-1).astype(np.float32)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits float32 into a sum of two values of 12 significant bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high


def weighted_sum(tensors: Sequence[jax.Array], coefficients_N3: jax.Array, dtype) -> jax.Array:
    """sum_i c_i W_i, in float32 with one rounding to `dtype` at the end.

    The high products of all tensors are added first, then the small ones, so that parents which
    nearly cancel keep their difference.

    Args:
      tensors: N arrays of equal shape in bfloat16, float16 or float32.
      coefficients_N3: from `split_coefficients`, traced; further axes broadcast against those of the tensors.
      dtype: of the result.
    """
    levels: list[jax.Array | None] = [None, None, None]

    def add(level: int, product: jax.Array) -> None:
        levels[level] = product if levels[level] is None else levels[level] + product

    for index, tensor in enumerate(tensors):
        x = tensor.astype(jnp.float32)
        if tensor.dtype == jnp.float32:
            parts = _halves(x)
        else:
            parts = (x,)
        for part_level, part in enumerate(parts):
            for piece in range(3 - part_level):
                add(part_level + piece, coefficients_N3[index, piece] * part)
    high, middle, low = levels
    return (high + (middle + low)).astype(dtype)


def square(x: jax.Array) -> jax.Array:
    """x^2 in float32 from exact products."""
    if x.dtype != jnp.float32:
        x = x.astype(jnp.float32)
        return x * x
    high, low = _halves(x)
    return high * high + (2.0 * (high * low) + low * low)


def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y in float32 from exact products, so that a fused addition to it gives the same bits."""
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    return x_high * y_high + ((x_high * y_low + x_low * y_high) + x_low * y_low)


def _halving_sum(x: jax.Array) -> jax.Array:
    """Sums the last axis by folding its second half onto the first until one column is left."""
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        upper = x[..., half:]
        if x.shape[-1] % 2:
            upper = jnp.pad(upper, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
        x = x[..., :half] + upper
    return x[..., 0]


Gather = Callable[[jax.Array], jax.Array]


def alone(x: jax.Array) -> jax.Array:
    """The `Gather` of a device that holds whole rows: the identity."""
    return x


def row_sums(x_RC: jax.Array, gather: Gather = alone) -> jax.Array:
    """The sum of each row, [R]: tiles of 256 columns, zero-padded, each folded in half repeatedly, then the tiles.

    Args:
      x_RC: whole rows, or whole tiles of rows whose other tiles are on other devices.
      gather: joins the tiles' sums [R, tiles] of all devices that share the rows.
    """
    rows, columns = x_RC.shape
    tile = min(TILE, columns)
    x_RC = jnp.pad(x_RC, ((0, 0), (0, -columns % tile)))
    return _halving_sum(gather(_halving_sum(x_RC.reshape(rows, -1, tile))))


def square_sum(x_RC: jax.Array, gather: Gather = alone) -> jax.Array:
    """|x|^2 of each row, [R] in float32; `gather` as in `row_sums`."""
    return row_sums(square(x_RC), gather)


def pair_sums(a_RC: jax.Array, b_RC: jax.Array, gather: Gather = alone) -> jax.Array:
    """Per row |a|^2, |b|^2 and |a - b|^2, [R, 3] in float32; `gather` as in `row_sums`."""
    difference = a_RC.astype(jnp.float32) - b_RC.astype(jnp.float32)
    return jnp.stack([square_sum(x, gather) for x in (a_RC, b_RC, difference)], axis=-1)


def total(sums: Sequence[np.ndarray]) -> np.ndarray:
    """Adds per-row sums over all pieces in float64, with one rounding per total, whatever the order (`math.fsum`).

    Args:
      sums: arrays [R_i, K].

    Returns:
      K totals in float64; NaN where a summand is not finite.
    """
    columns = np.concatenate(sums, axis=0).astype(np.float64).T
    return np.array([math.fsum(column) if np.isfinite(column).all() else np.nan for column in columns])
