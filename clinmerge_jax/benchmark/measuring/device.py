"""Measured limits of the device: the bandwidth of a copy, the speed of a matrix product, peak memory."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_REPEATS = 5


def copy_bandwidth(nbytes: int, most: int = 10**9) -> float:
    """Bandwidth of a copy in bytes per second, reads plus writes; the median of several copies.

    Args:
      nbytes: size of what is copied.
      most: upper limit of that size. Where a copy takes little longer than a launch, the result is too low.
    """
    values = jnp.zeros(min(nbytes, most) // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    values = jax.block_until_ready(copy(values))
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        values = jax.block_until_ready(copy(values))
        seconds.append(time.perf_counter() - start)
    return 2 * values.nbytes / float(np.median(seconds))


def product_flops(size: int, dtype: Any) -> float:
    """Operations per second of a product of two square matrices of `size` rows on one device; the best of several."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def peak_bytes() -> int | None:
    """Peak bytes in use on the first device since the process began; None where the device does not report it."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")
