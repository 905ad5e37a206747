"""Rotary position embeddings, with the scalings that Llama checkpoints use.

B batch, T tokens, N heads, H head_dim, F = H/2 frequencies.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.llama.config import LlamaConfig


def inverse_frequencies(config: LlamaConfig, length: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Computes the frequencies, [F], in radians per position.

    Args:
      config: gives the rope type and its factors.
      length: the number of positions in use, a traced integer. Only "dynamic" uses it, and only beyond
        `max_position_embeddings` (NTK-aware scaling).
      dtype: the dtype of the result.

    Raises:
      ValueError: the rope type is unknown.
    """
    rope, size = config.rope, config.head_dim
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    if rope.rope_type == "dynamic":
        limit = config.max_position_embeddings
        length = jnp.maximum(length, limit).astype(dtype)
        stretch = rope.factor * length / limit - (rope.factor - 1.0)
        theta = rope.theta * stretch ** (size / (size - 2))
        return 1.0 / theta ** jnp.asarray(exponents, dtype)
    frequencies = rope.theta**-exponents
    if rope.rope_type == "linear":
        frequencies = frequencies / rope.factor
    elif rope.rope_type == "llama3":
        frequencies = _llama3(frequencies, config)
    elif rope.rope_type != "default":
        raise ValueError(f"unknown rope_type {rope.rope_type!r}")
    return jnp.asarray(frequencies, dtype)


def _llama3(frequencies: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Llama 3.1's scaling: low frequencies are divided by the factor, high ones kept, those between interpolated."""
    rope = config.rope
    wavelengths = 2 * math.pi / frequencies
    turns = rope.original_max_position_embeddings / wavelengths
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / rope.factor


def rotations(config: LlamaConfig, positions_BT: jax.Array, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of each position's angles, two arrays [B, T, F], in float32 or a wider dtype."""
    wide = np.promote_types(dtype, np.float32)
    frequencies_F = inverse_frequencies(config, jnp.max(positions_BT) + 1, wide)
    angles_BTF = positions_BT[..., None].astype(wide) * frequencies_F
    return jnp.cos(angles_BTF), jnp.sin(angles_BTF)


def rotate(x_BTNH: jax.Array, cos_BTF: jax.Array, sin_BTF: jax.Array) -> jax.Array:
    """Rotates each head by its position: coordinate f pairs with f + H/2 (Hugging Face's half-split order)."""
    cos = cos_BTF[:, :, None, :].astype(x_BTNH.dtype)
    sin = sin_BTF[:, :, None, :].astype(x_BTNH.dtype)
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
