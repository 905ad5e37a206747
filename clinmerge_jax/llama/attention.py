"""Attention backends: choosing one that fits a model and its devices, and one way to call each.

`model.forward` takes the function that `over_sequences` returns, `cache.extend` the one that `over_cache` returns. The
reference implementations are `model.attend_causally` and `cache.attend_cache`. They run on every platform, write all
scores to memory and read the whole cache.

B rows, T tokens, N query heads, G key-value heads, H head_dim.
"""

import contextlib
import enum
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama import ragged
from clinmerge_jax.llama.cache import attend_cache
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import attend_causally

_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
_LANES = 128  # the width of a TPU's vector registers
_SPLASH_BLOCKS = (512, 256, 128)  # in positions; the first that divides the sequence length is used


class Backend(enum.Enum):
    """An attention implementation."""

    REFERENCE = "reference"  # plain JAX, compiled by XLA
    CUDNN = "cudnn"  # cuDNN's flash attention
    SPLASH = "splash"  # JAX's Pallas kernel for TPUs
    RAGGED = "ragged"  # `ragged.attend_ragged`
    AUTO = "auto"  # the first in `Use.kernels` that is available


class Use(enum.Enum):
    """What attention runs over: whole sequences, or the key-value cache."""

    SEQUENCES = "whole sequences"
    CACHE = "the cache"

    @property
    def kernels(self) -> tuple[Backend, ...]:
        """The backends for this use, in the order in which `auto` tries them; the reference is last."""
        special = (Backend.SPLASH, Backend.CUDNN) if self is Use.SEQUENCES else (Backend.RAGGED,)
        return (*special, Backend.REFERENCE)


def resolve(
    wanted: str | Backend,
    use: Use,
    config: LlamaConfig,
    dtype: Any,
    device: jax.Device,
    *,
    length: int = 0,
    packed: bool = False,
) -> Backend:
    """Resolves a backend by name; never returns AUTO. The choice that AUTO makes is logged once, with the reason.

    Args:
      wanted: a Backend or its name.
      use: what attention runs over.
      config: the model.
      dtype: of queries, keys and values, or of the cache.
      device: one of the devices that compute.
      length: T of the cache.
      packed: whether rows hold several documents.

    Raises:
      BadInput: the backend is unknown, or it was requested by name and is not available here.
    """
    names = [backend.value for backend in (Backend.AUTO, *use.kernels)]
    try:
        wanted = Backend(wanted)
    except ValueError as error:
        raise BadInput(f"config.attention: {wanted!r} is unknown; give one of {', '.join(names)}") from error
    found, reasons = _first(wanted, use, config, jnp.dtype(dtype), device, length, packed)
    if found is None:
        others = " or ".join(name for name in names if name != wanted.value)
        raise BadInput(f"config.attention: {'; '.join(reasons)}; give {others}")
    return found


@functools.lru_cache(maxsize=64)
def _first(wanted: Backend, use: Use, *where: Any) -> tuple[Backend | None, tuple[str, ...]]:
    """Returns the first available backend (None if there is none), and why those tried before it are not available."""
    reasons: list[str] = []
    for backend in use.kernels if wanted is Backend.AUTO else (wanted,):
        reason = _missing(backend, use, *where)
        if reason is None:
            if wanted is Backend.AUTO:
                logging.info("attention over %s: %s", use.value, "; ".join([backend.value, *reasons]))
            return backend, tuple(reasons)
        reasons.append(f"{backend.value} {reason}")
    return None, tuple(reasons)


def _missing(
    backend: Backend, use: Use, config: LlamaConfig, dtype: jnp.dtype, device: jax.Device, length: int, packed: bool
) -> str | None:
    """Returns why a backend is not available, or None if it is."""
    if backend not in use.kernels:
        return f"does not attend over {use.value}"
    if backend is Backend.REFERENCE:
        return None
    needed = "gpu" if backend is Backend.CUDNN else "tpu"
    if device.platform != needed:
        return f"needs a {needed.upper()}, but this is a {device.platform.upper()}"
    if backend is Backend.CUDNN:
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"computes in bfloat16 or float16, not in {dtype}"
        return "does not support rows of several documents" if packed else _cudnn_fails(config, dtype, device)
    if backend is Backend.SPLASH:
        return None if importlib.util.find_spec(_SPLASH) else f"is not part of JAX {jax.__version__}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"reads a cache in bfloat16 or float32, not in {dtype}"
    if config.head_dim % _LANES:
        return f"needs a head_dim that is a multiple of {_LANES}, not {config.head_dim}"
    if not ragged.block_size(config.num_key_value_heads, length, config.head_dim, dtype.itemsize):
        return f"needs a cache whose length is a multiple of {ragged.BLOCK_STEP} tokens, not {length}"
    return None


def _cudnn_fails(config: LlamaConfig, dtype: jnp.dtype, device: jax.Device) -> str | None:
    """Tries a small gradient, because on some machines cuDNN is installed and fails (JAX issue 32430)."""

    def total(q_BTNH: jax.Array, k_BTGH: jax.Array) -> jax.Array:
        return jnp.sum(_cudnn(q_BTNH, k_BTGH, k_BTGH).astype(jnp.float32))

    try:
        with jax.default_device(device):
            q_BTNH = jnp.zeros((1, _LANES, config.num_attention_heads, config.head_dim), dtype)
            k_BTGH = jnp.zeros((1, _LANES, config.num_key_value_heads, config.head_dim), dtype)
            jax.block_until_ready(jax.jit(jax.grad(total, (0, 1)))(q_BTNH, k_BTGH))
    except (RuntimeError, ValueError) as error:  # raised by JAX, XLA and cuDNN for set-up, shapes and execution
        return f"fails here ({str(error).partition(chr(10))[0]})"
    return None


MapShards = Callable[[Callable[..., jax.Array], Sequence[Sequence[str | None]], Sequence[str | None]], Callable]


def _as_is(function: Callable[..., jax.Array], inputs: Any, output: Any) -> Callable[..., jax.Array]:
    return function


_ROWS = ("batch", None)
_QUERIES = ("batch", None, "heads", None)
_KEYS = ("batch", None, "kv_heads", None)
_CACHED = ("batch", "kv_heads", None, None)


def over_sequences(backend: Backend, map_shards: MapShards = _as_is) -> Callable[..., jax.Array]:
    """Returns a differentiable function like `model.attend_causally` that uses the given backend.

    Args:
      backend: from `resolve`.
      map_shards: makes a function run on each device's shards (`parallel.layout.Layout.map_shards`), because XLA
        cannot shard a kernel.
    """
    if backend is Backend.REFERENCE:
        return attend_causally
    kernel = {Backend.CUDNN: _cudnn, Backend.SPLASH: _splash}[backend]

    def attend(
        q_BTNH: jax.Array, k_BTGH: jax.Array, v_BTGH: jax.Array, segments_BT: jax.Array | None = None
    ) -> jax.Array:
        rows = () if segments_BT is None else (segments_BT,)
        axes = (_QUERIES, _KEYS, _KEYS, *[_ROWS] * len(rows))
        with _products_of(q_BTNH.dtype):
            return map_shards(kernel, axes, _QUERIES)(q_BTNH, k_BTGH, v_BTGH, *rows)

    return attend


def over_cache(backend: Backend, map_shards: MapShards = _as_is) -> Callable[..., jax.Array]:
    """Returns a function like `cache.attend_cache` that uses the given backend.

    Backends other than the reference take one new token per row. A row whose token's position is beyond the cache gets
    an arbitrary result.

    Args:
      backend: from `resolve`.
      map_shards: as in `over_sequences`.
    """
    if backend is Backend.REFERENCE:
        return attend_cache

    def attend(
        q_B1NH: jax.Array, k_BGTH: jax.Array, v_BGTH: jax.Array, positions_B1: jax.Array, scales_BGT: None = None
    ) -> jax.Array:
        inside_B = jnp.squeeze(positions_B1 < k_BGTH.shape[2], 1)
        lengths_B = jnp.where(inside_B, jnp.squeeze(positions_B1, 1) + 1, 1).astype(jnp.int32)
        kernel = map_shards(ragged.attend_ragged, (("batch", "heads", None), _CACHED, _CACHED, ("batch",)),
                            ("batch", "heads", None))  # fmt: skip
        with _products_of(q_B1NH.dtype):
            return kernel(jnp.squeeze(q_B1NH, 1), k_BGTH, v_BGTH, lengths_B)[:, None]

    return attend


def _products_of(dtype: jnp.dtype) -> contextlib.AbstractContextManager:
    """Resets the matmul precision unless dtype is float32: Pallas refuses one for bfloat16.

    Products of two bfloat16 numbers are exact in float32 without it.
    """
    return contextlib.nullcontext() if dtype == jnp.float32 else jax.default_matmul_precision("default")


def _cudnn(q_BTNH: jax.Array, k_BTGH: jax.Array, v_BTGH: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
    if segments_BT is not None:
        raise BadInput(
            "config.attention: cudnn does not support rows of several documents; give reference, or one document per"
            " row"
        )
    return jax.nn.dot_product_attention(q_BTNH, k_BTGH, v_BTGH, is_causal=True, implementation="cudnn")


def _splash(q_BTNH: jax.Array, k_BTGH: jax.Array, v_BTGH: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
    """Calls splash attention, with T padded to a multiple of 128 on the right, where the causal mask hides the padding.

    Queries are multiplied by H**-0.5 in float32 at least, and then rounded to their dtype.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, T, N, H = q_BTNH.shape
    more = -T % _LANES
    block = next(size for size in _SPLASH_BLOCKS if (T + more) % size == 0)
    mask = masks.MultiHeadMask([masks.CausalMask((T + more, T + more))] * N)
    sizes = {field: block for field in splash.BlockSizes.__dataclass_fields__ if field.startswith("block_")}
    kernel = splash.make_splash_mha(mask, block_sizes=splash.BlockSizes(**sizes), head_shards=1, q_seq_shards=1)

    def heads_first(x_BTxH: jax.Array) -> jax.Array:
        return jnp.pad(x_BTxH, ((0, 0), (0, more), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    if segments_BT is None:
        ids = None
    else:
        segments_BT = jnp.pad(segments_BT.astype(jnp.int32), ((0, 0), (0, more)), constant_values=-1)
        ids = splash.SegmentIds(segments_BT, segments_BT)
    wide = np.promote_types(q_BTNH.dtype, np.float32)
    scaled_BTNH = (q_BTNH.astype(wide) * wide.type(H**-0.5)).astype(q_BTNH.dtype)
    y_BNTH = jax.vmap(kernel)(heads_first(scaled_BTNH), heads_first(k_BTGH), heads_first(v_BTGH), ids)
    return y_BNTH.transpose(0, 2, 1, 3)[:, :T]
