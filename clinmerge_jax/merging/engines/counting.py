"""Counts how often each code occurs (the answer to reductions with `bins`), on the host or on a device."""

import jax
import jax.numpy as jnp
import numpy as np

_AT_ONCE = 1 << 16  # entries counted at once; few enough to stay in a CPU cache
_LOW = 256


def count_on_host(codes: np.ndarray, bins: int) -> np.ndarray:
    """Counts the codes from 0 to bins - 1 with NumPy, int64 [bins]."""
    codes = codes.reshape(-1)
    counts = np.zeros(np.iinfo(codes.dtype).max + 1, np.int64)
    for start in range(0, len(codes), _AT_ONCE):
        counts += np.bincount(codes[start : start + _AT_ONCE], minlength=len(counts))
    return counts[:bins]


def count_on_device(codes: jax.Array, bins: int, platform: str) -> jax.Array:
    """Counts the codes from 0 to bins - 1 under jit, int32 [bins], for at most 2^31 - 1 entries.

    On accelerators it multiplies one-hot rows (upper bits by lower bits), because scatter-adds at random positions are
    slow there. Each product sums at most 2^16 ones, which float32 holds exactly. `platform` is that of the device.
    """
    codes = codes.reshape(-1).astype(jnp.int32)
    if platform == "cpu":
        return jnp.zeros(bins, jnp.int32).at[codes].add(1, mode="drop")
    codes = jnp.pad(codes, (0, -len(codes) % _AT_ONCE), constant_values=bins).reshape(-1, _AT_ONCE)

    def add(counts: jax.Array, some: jax.Array) -> tuple[jax.Array, None]:
        high = some[:, None] // _LOW == jnp.arange(bins // _LOW)
        low = some[:, None] % _LOW == jnp.arange(_LOW)
        there = jnp.einsum(
            "nh,nl->hl", high.astype(jnp.bfloat16), low.astype(jnp.bfloat16), preferred_element_type=jnp.float32
        )
        return counts + there.astype(jnp.int32), None

    counts, _ = jax.lax.scan(add, jnp.zeros((bins // _LOW, _LOW), jnp.int32), codes)
    return counts.reshape(-1)
