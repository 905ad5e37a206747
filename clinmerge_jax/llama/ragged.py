"""Pallas kernel for TPUs: attention of one new token of every row over the filled part of its cache.

The kernel takes the layout of `cache.Cache` and reads only those blocks of a row's T positions that are filled. JAX's
own kernels do not fit: `ragged_paged_attention` needs keys and values interleaved by heads, which would copy the cache
in every step, and `paged_attention` rounds float32 keys and values to bfloat16.

B rows, T positions of the cache, N query heads, G key-value heads, R = N/G, H head_dim, K positions of a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK_STEP = 64  # T must be a multiple of it
_MOST = 512  # the most positions of a block
_VMEM_BYTES = 8 << 20  # for the blocks of keys and values, two of each


def block_size(heads: int, length: int, head_dim: int, itemsize: int) -> int:
    """Returns K, the largest multiple of `BLOCK_STEP` that divides T and whose blocks fit; 0 if none does."""
    fit = _VMEM_BYTES // (4 * heads * head_dim * itemsize)
    sizes = range(BLOCK_STEP, min(_MOST, fit, length) + 1, BLOCK_STEP)
    return max((size for size in sizes if length % size == 0), default=0)


def attend_ragged(q_BNH: jax.Array, k_BGTH: jax.Array, v_BGTH: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Attends from every query to the first `lengths_B` positions of its row, [B, N, H].

    Scores and softmax are computed in float32. The softmax is accumulated block by block with a running maximum and sum
    (Milakov and Gimelshein 2018, arXiv 1805.02867).

    Args:
      q_BNH: queries.
      k_BGTH: keys, in the queries' dtype.
      v_BGTH: values, likewise.
      lengths_B: the number of filled positions of each row, int32, from 1 to T.
    """
    B, N, H = q_BNH.shape
    G, T = k_BGTH.shape[1:3]
    R, K = N // G, block_size(G, T, H, k_BGTH.dtype.itemsize)

    def of_row(row, step, lengths):
        return row, 0, 0, 0

    def of_block(row, step, lengths):  # steps after the last filled block stay on it, so they read nothing new
        return row, 0, jnp.minimum(step, jax.lax.div(lengths[row] - 1, K)), 0

    y_BGRH = pl.pallas_call(
        functools.partial(_attend_block, scale=H**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, T // K),
            in_specs=[
                pl.BlockSpec((None, G, R, H), of_row),
                pl.BlockSpec((None, G, K, H), of_block),
                pl.BlockSpec((None, G, K, H), of_block),
            ],
            out_specs=pl.BlockSpec((None, G, R, H), of_row),
            scratch_shapes=[
                pltpu.VMEM((G, R, 1), jnp.float32),
                pltpu.VMEM((G, R, 1), jnp.float32),
                pltpu.VMEM((G, R, H), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((B, G, R, H), q_BNH.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="attend_ragged",
    )(lengths_B, q_BNH.reshape(B, G, R, H), k_BGTH, v_BGTH)
    return y_BGRH.reshape(B, N, H)


def _attend_block(lengths, q_GRH, k_GKH, v_GKH, y_GRH, most_GR1, sum_GR1, weighted_GRH, *, scale: float) -> None:
    """Processes one block of one row; all arguments but `lengths` and `scale` are references to VMEM."""
    step, length, size = pl.program_id(1), lengths[pl.program_id(0)], k_GKH.shape[1]

    @pl.when(step == 0)
    def _():
        most_GR1[...] = jnp.full_like(most_GR1, jnp.finfo(jnp.float32).min)
        sum_GR1[...] = jnp.zeros_like(sum_GR1)
        weighted_GRH[...] = jnp.zeros_like(weighted_GRH)

    @pl.when(step * size < length)
    def _():
        scores_GRK = scale * jnp.einsum("grh,gkh->grk", q_GRH[...], k_GKH[...], preferred_element_type=jnp.float32)
        places_GRK = step * size + jax.lax.broadcasted_iota(jnp.int32, scores_GRK.shape, 2)
        scores_GRK = jnp.where(places_GRK < length, scores_GRK, jnp.finfo(jnp.float32).min)
        larger_GR1 = jnp.maximum(most_GR1[...], jnp.max(scores_GRK, axis=-1, keepdims=True))
        shrink_GR1 = jnp.exp(most_GR1[...] - larger_GR1)
        weights_GRK = jnp.exp(scores_GRK - larger_GR1)
        most_GR1[...] = larger_GR1
        sum_GR1[...] = shrink_GR1 * sum_GR1[...] + jnp.sum(weights_GRK, axis=-1, keepdims=True)
        weighted_GRH[...] = shrink_GR1 * weighted_GRH[...] + jnp.einsum(
            "grk,gkh->grh", weights_GRK.astype(v_GKH.dtype), v_GKH[...], preferred_element_type=jnp.float32
        )

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        y_GRH[...] = (weighted_GRH[...] / sum_GR1[...]).astype(y_GRH.dtype)
