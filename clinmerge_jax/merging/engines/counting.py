"""How often each code occurs: the answer to reductions with `bins`, for every kind of device."""

import jax
import jax.numpy as jnp
import numpy as np

_AT_ONCE = 1 << 16  # entries; as many as stay in a cache
_LOW = 256


def count_on_host(codes: np.ndarray, bins: int) -> np.ndarray:
    """Counts of the codes from 0 to bins - 1, int64 [bins], on a CPU."""
    codes = codes.reshape(-1)
    counts = np.zeros(np.iinfo(codes.dtype).max + 1, np.int64)
    for start in range(0, len(codes), _AT_ONCE):
        counts += np.bincount(codes[start : start + _AT_ONCE], minlength=len(counts))
    return counts[:bins]


def count_on_device(codes: jax.Array, bins: int, platform: str) -> jax.Array:
    """The same under jit, int32 [bins], for at most 2^31 - 1 entries; `platform` says what it will run on.

    Accelerators count by products of one-hot rows, upper times lower bits, since additions at random places are slow
    there: the sums are of at most 2^16 ones, which float32 holds exactly.
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
