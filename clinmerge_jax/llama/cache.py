"""The key-value cache, and the forward pass of further tokens that extends it.

The layers are separate here, not stacked: a decode step reads every weight once, and on CPUs a layer sliced out of a
stack would be copied first.

B rows, C new tokens of each, T positions of the cache, D hidden, N query heads, G key-value heads, R = N/G, H head_dim,
S slots.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clinmerge_jax.llama import rope
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import abstract_block, take
from clinmerge_jax.llama.parameters import Params

_LARGEST = 127  # the int8 range used, symmetric around 0
_KEYS_STEP = 64  # a chunk's keys are padded to a multiple, so that XLA for CPUs rounds scores alike for any C


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "key_scales", "value_scales"],
    meta_fields=["positions_last"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, [S, G, T, H] or [S, G, H, T] each. The keys have their rotary positions applied.

    Attributes:
      keys: one array per layer.
      values: one array per layer.
      key_scales: [S, G, T] per layer, the factors of int8 keys; empty if the cache is not int8.
      value_scales: likewise for values.
      positions_last: whether the position axis T is the last one.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    key_scales: tuple[jax.Array, ...] = ()
    value_scales: tuple[jax.Array, ...] = ()
    positions_last: bool = False

    @property
    def length(self) -> int:
        """T."""
        return self.keys[0].shape[3 if self.positions_last else 2]

    @property
    def slots(self) -> int:
        """S."""
        return self.keys[0].shape[0]


def cache_bytes(config: LlamaConfig, slots: int, length: int, dtype: Any) -> int:
    """Returns the bytes of a Cache, summed over all devices."""
    heads = slots * length * config.num_key_value_heads
    scales = 4 * heads * (np.dtype(dtype) == np.int8)
    return 2 * config.num_hidden_layers * (heads * config.head_dim * np.dtype(dtype).itemsize + scales)


def empty_cache(config: LlamaConfig, slots: int, length: int, dtype: Any, positions_last: bool = False) -> Cache:
    """A Cache of zeros, with scales if its dtype is int8."""
    heads = (slots, config.num_key_value_heads)
    shape = (*heads, config.head_dim, length) if positions_last else (*heads, length, config.head_dim)

    def layers(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))

    if np.dtype(dtype) != np.int8:
        return Cache(layers(shape, dtype), layers(shape, dtype), positions_last=positions_last)
    scales = (layers((*heads, length), jnp.float32), layers((*heads, length), jnp.float32))
    return Cache(layers(shape, dtype), layers(shape, dtype), *scales, positions_last)


def unstack(params: Params, config: LlamaConfig, quantized: bool = False) -> dict[str, Any]:
    """Returns Params with a tuple of separate layers under "layers"; needs memory for a second copy of the layers.

    Args:
      params: the parameters of a model.
      config: the architecture.
      quantized: whether to convert the layers' matrices to int8, with a scale for each row.
    """
    layers = [jax.tree.map(operator.itemgetter(layer), params["layers"]) for layer in range(config.num_hidden_layers)]
    if quantized:
        layers = [
            {
                name: {key: _quantized_linear(one) if one["weight"].ndim == 2 else one for key, one in module.items()}
                if "weight" not in module
                else module
                for name, module in layer.items()
            }
            for layer in layers
        ]
    return {**params, "layers": tuple(layers)}


def _quantized_linear(linear: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    weight, scale = quantize(linear["weight"])
    return {**linear, "weight": weight, "scale": scale}


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantizes rows along the last axis to int8, their largest magnitude to 127; returns int8 and float32 scales."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / _LARGEST
    steps = jnp.round(wide / jnp.where(scale == 0.0, 1.0, scale)[..., None])
    return steps.astype(jnp.int8), scale


def attend_cache(
    q_BCNH: jax.Array,
    k_BGTH: jax.Array,
    v_BGTH: jax.Array,
    positions_BC: jax.Array,
    scales_BGT: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Attends from every new token to all cached positions up to its own, [B, C, N, H].

    Scores and softmax are computed in float32 at least.

    Args:
      q_BCNH: queries.
      k_BGTH: keys.
      v_BGTH: values.
      positions_BC: the position of each query.
      scales_BGT: the factors of int8 keys and of int8 values; None if the cache is not int8.
    """
    B, C, N, H = q_BCNH.shape
    G, T = k_BGTH.shape[1:3]
    wide = np.promote_types(q_BCNH.dtype, np.float32)
    q_BGRCH = q_BCNH.reshape(B, C, G, N // G, H).transpose(0, 2, 3, 1, 4)
    k_BGTH, v_BGTH = k_BGTH.astype(q_BCNH.dtype), v_BGTH.astype(q_BCNH.dtype)
    scores = jnp.einsum("bgrch,bgth->bgrct", q_BGRCH, k_BGTH, preferred_element_type=wide) * wide.type(H**-0.5)
    if scales_BGT is not None:
        scores = scores * scales_BGT[0][:, :, None, None].astype(wide)
    seen = jnp.arange(T) <= positions_BC[:, None, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(wide).min), axis=-1)
    if scales_BGT is not None:
        weights = weights * scales_BGT[1][:, :, None, None].astype(wide)
    y_BGRCH = jnp.einsum("bgrct,bgth->bgrch", weights.astype(q_BCNH.dtype), v_BGTH)
    return y_BGRCH.transpose(0, 3, 1, 2, 4).reshape(B, C, N, H)


def extend(
    params: Mapping[str, Any],
    cache: Cache,
    tokens_BC: jax.Array,
    positions_BC: jax.Array,
    config: LlamaConfig,
    constrain: Callable[..., jax.Array] = lambda x, *axes: x,
    over_cache: Callable[..., jax.Array] = attend_cache,
    fresh: bool = False,
    asked_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Runs the model on further tokens of every row, and adds their keys and values to the cache.

    Args:
      params: from `unstack`.
      cache: a cache of B rows.
      tokens_BC: the tokens.
      positions_BC: the position of each token in its row. Positions of T and beyond mark padding; its keys and values
        are dropped (but see `fresh`).
      config: the architecture.
      constrain: as in `model.forward`.
      over_cache: computes attention as `attend_cache` does (`attention.over_cache`).
      fresh: whether every row starts here: token c of a row has position c, or is padding after the row's last token.
        Then tokens attend only to the C new keys instead of all T, and the new keys and values are written as one
        slice. Keys and values of the padding are written too, but they are overwritten before any token attends to
        them. The previous contents of the rows do not matter. Static under jit.
      asked_B: for each row the index of the new token whose output is needed; None for all tokens. For the other tokens
        the last layer computes only keys and values.

    Returns:
      The last layer's output, [B, C, D] or [B, 1, D], for `model.logits`; and the cache with the new keys and values.
    """
    x_BCD = constrain(params["embed_tokens"]["weight"][tokens_BC], "batch", None, None)
    # Requests end within the context, where dynamic RoPE does not scale. Padding beyond it must not trigger scaling.
    inside_BC = jnp.minimum(positions_BC, config.max_position_embeddings - 1)
    rotations = rope.rotations(config, inside_BC)
    graphdef, _ = abstract_block(config, "scale" in params["layers"][0]["self_attn"]["q_proj"])
    rows_B1, heads_G = jnp.arange(tokens_BC.shape[0])[:, None], jnp.arange(config.num_key_value_heads)
    grown = {kind: list(getattr(cache, kind)) for kind in ("keys", "values", "key_scales", "value_scales")}
    in_int8 = bool(cache.key_scales)

    def put(kind: str, index: int, new_BCGx: jax.Array) -> jax.Array:
        layer = grown[kind][index]
        last = cache.positions_last and layer.ndim == 4
        if fresh:
            new_BGCx = new_BCGx.swapaxes(1, 2).astype(layer.dtype)
            start = (0,) * layer.ndim
            written = new_BGCx.swapaxes(2, 3) if last else new_BGCx
            grown[kind][index] = jax.lax.dynamic_update_slice(layer, written, start)
            more = -new_BGCx.shape[2] % _KEYS_STEP
            return jnp.pad(new_BGCx, [(0, more if axis == 2 else 0) for axis in range(layer.ndim)])
        if cache.positions_last:
            at = (rows_B1, *[slice(None)] * (layer.ndim - 2), positions_BC)
        else:  # heads by index too: with a slice, XLA for TPUs lays G next to H and copies the cache in every step
            at = (rows_B1[..., None], heads_G, positions_BC[..., None])
        grown[kind][index] = layer.at[at].set(new_BCGx.astype(layer.dtype), mode="drop")
        return grown[kind][index].swapaxes(2, 3) if last else grown[kind][index]

    for index, layer in enumerate(params["layers"]):
        asked_here_B = asked_B if index == config.num_hidden_layers - 1 else None
        positions_BQ = take(positions_BC, asked_here_B)

        def attend(q_BQNH, k_BCGH, v_BCGH, index=index, positions_BQ=positions_BQ):
            scales = None
            if in_int8:
                (k_BCGH, k_scale), (v_BCGH, v_scale) = quantize(k_BCGH), quantize(v_BCGH)
                scales = put("key_scales", index, k_scale), put("value_scales", index, v_scale)
            return over_cache(q_BQNH, put("keys", index, k_BCGH), put("values", index, v_BCGH), positions_BQ, scales)

        x_BCD = constrain(nnx.merge(graphdef, layer)(x_BCD, rotations, attend, asked_here_B), "batch", None, None)
    return x_BCD, dataclasses.replace(cache, **{kind: tuple(layers) for kind, layers in grown.items()})
