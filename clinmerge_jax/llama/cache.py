"""Keys and values of what was read already, and the forward pass of what comes next.

B rows, C new tokens of each, T positions of the cache, D hidden, N query heads, G key-value heads, R = N/G, H head_dim,
S slots. The layers are not stacked here but lie one by one: a decode step reads every weight once, and on CPUs a layer
that is cut out of a stack would be copied first.
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
from clinmerge_jax.llama.model import abstract_block
from clinmerge_jax.llama.parameters import Params


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, [S, G, T, H] each, rotated already."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @property
    def length(self) -> int:
        """T."""
        return self.keys[0].shape[2]

    @property
    def slots(self) -> int:
        """S."""
        return self.keys[0].shape[0]


def cache_bytes(config: LlamaConfig, slots: int, length: int, dtype: Any) -> int:
    """Bytes of a Cache over all devices."""
    entries = slots * length * config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * entries * np.dtype(dtype).itemsize


def empty_cache(config: LlamaConfig, slots: int, length: int, dtype: Any) -> Cache:
    """A Cache of zeros."""
    shape = (slots, config.num_key_value_heads, length, config.head_dim)

    def layers() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))

    return Cache(layers(), layers())


def unstack(params: Params, config: LlamaConfig) -> dict[str, Any]:
    """Params with the layers one by one, in a tuple under "layers"; takes the layers' memory once more."""
    layers = (jax.tree.map(operator.itemgetter(layer), params["layers"]) for layer in range(config.num_hidden_layers))
    return {**params, "layers": tuple(layers)}


def attend_cache(q_BCNH: jax.Array, k_BGTH: jax.Array, v_BGTH: jax.Array, positions_BC: jax.Array) -> jax.Array:
    """Every new token to all cached positions up to its own; scores and softmax in float32, [B, C, N, H]."""
    B, C, N, H = q_BCNH.shape
    G, T = k_BGTH.shape[1:3]
    wide = np.promote_types(q_BCNH.dtype, np.float32)
    q_BGRCH = q_BCNH.reshape(B, C, G, N // G, H).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bgrch,bgth->bgrct", q_BGRCH, k_BGTH, preferred_element_type=wide) * wide.type(H**-0.5)
    seen = jnp.arange(T) <= positions_BC[:, None, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(wide).min), axis=-1).astype(v_BGTH.dtype)
    y_BGRCH = jnp.einsum("bgrct,bgth->bgrch", weights, v_BGTH)
    return y_BGRCH.transpose(0, 3, 1, 2, 4).reshape(B, C, N, H)


def extend(
    params: Mapping[str, Any],
    cache: Cache,
    tokens_BC: jax.Array,
    positions_BC: jax.Array,
    config: LlamaConfig,
    constrain: Callable[..., jax.Array] = lambda x, *axes: x,
) -> tuple[jax.Array, Cache]:
    """Reads further tokens of every row.

    Args:
      params: from `unstack`.
      cache: of B rows.
      tokens_BC: the tokens.
      positions_BC: where each stands in its row; what stands at T or beyond is padding and leaves no trace.
      config: the architecture.
      constrain: as in `model.forward`.

    Returns:
      What the last layer gives, [B, C, D], for `model.logits`; and the cache with the new keys and values.
    """
    x_BCD = constrain(params["embed_tokens"]["weight"][tokens_BC], "batch", None, None)
    # Requests end within the context, where dynamic RoPE has its plain frequencies.
    inside_BC = jnp.minimum(positions_BC, config.max_position_embeddings - 1)
    rotations = rope.rotations(config, inside_BC)
    graphdef, _ = abstract_block(config)
    rows_B1 = jnp.arange(tokens_BC.shape[0])[:, None]
    keys, values = list(cache.keys), list(cache.values)
    for index, layer in enumerate(params["layers"]):

        def attend(q_BCNH, k_BCGH, v_BCGH, index=index):
            at = (rows_B1, slice(None), positions_BC)
            keys[index] = keys[index].at[at].set(k_BCGH.astype(keys[index].dtype), mode="drop")
            values[index] = values[index].at[at].set(v_BCGH.astype(values[index].dtype), mode="drop")
            return attend_cache(q_BCNH, keys[index], values[index], positions_BC)

        x_BCD = constrain(nnx.merge(graphdef, layer)(x_BCD, rotations, attend), "batch", None, None)
    return x_BCD, Cache(tuple(keys), tuple(values))
