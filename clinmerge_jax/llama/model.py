"""Llama's forward pass: one Flax NNX Block, scanned over the stacked layers.

B batch, T tokens, D hidden, N query heads, G key-value heads, H head_dim, F MLP width, V vocabulary.
Params stay plain pytrees outside; the Block is merged with one layer's parameters inside the scan.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clinmerge_jax.llama import rope
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params


class Linear(nnx.Module):
    """y = x W^T (+ b), the weight in Hugging Face's [out, in] orientation; in int8 with a scale for every row."""

    def __init__(self, outputs: int, inputs: int, bias: bool, quantized: bool = False):
        self.weight = nnx.Param(jnp.zeros((outputs, inputs), jnp.int8 if quantized else None))
        if quantized:
            self.scale = nnx.Param(jnp.ones((outputs,)))
        if bias:
            self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.has_bias = bias
        self.quantized = quantized

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum("...i,oi->...o", x, self.weight[...].astype(x.dtype))
        if self.quantized:
            y = (y.astype(jnp.float32) * self.scale[...]).astype(x.dtype)
        return y + self.bias[...] if self.has_bias else y


class RMSNorm(nnx.Module):
    """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float):
        self.weight = nnx.Param(jnp.ones((size,)))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the quotient is rounded to x's dtype first."""
    wide = x.astype(np.promote_types(x.dtype, np.float32))  # jnp's refuses mixed dtypes under strict promotion
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return weight * (wide * scale).astype(x.dtype)


Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (q_BTNH, k_BTGH, v_BTGH) -> y_BTNH


def attend_causally(
    q_BTNH: jax.Array, k_BTGH: jax.Array, v_BTGH: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """Every position to itself and what precedes it in its row, or if there are segments in its segment."""
    same_B1TT = None if segments_BT is None else (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    with jax.numpy_dtype_promotion("standard"):  # inside, bfloat16 meets float32 and strict promotion refuses
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTGH, v_BTGH, mask=same_B1TT, is_causal=True, implementation="xla"
        )


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: LlamaConfig, quantized: bool = False):
        size, bias = config.hidden_size, config.attention_bias
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(queries, size, bias, quantized)
        self.k_proj = Linear(keys, size, bias, quantized)
        self.v_proj = Linear(keys, size, bias, quantized)
        self.o_proj = Linear(size, queries, bias, quantized)
        self.head_dim = config.head_dim

    def __call__(self, x_BTD: jax.Array, rotations, attend: Attend) -> jax.Array:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTNH = rope.rotate(self.q_proj(x_BTD).reshape(heads), *rotations)
        k_BTGH = rope.rotate(self.k_proj(x_BTD).reshape(heads), *rotations)
        v_BTGH = self.v_proj(x_BTD).reshape(heads)
        return self.o_proj(attend(q_BTNH, k_BTGH, v_BTGH).reshape(*x_BTD.shape[:2], -1))


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, quantized: bool = False):
        size, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, size, bias, quantized)
        self.up_proj = Linear(width, size, bias, quantized)
        self.down_proj = Linear(size, width, bias, quantized)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: LlamaConfig, quantized: bool = False):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, quantized)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, quantized)

    def __call__(self, x_BTD: jax.Array, rotations, attend: Attend) -> jax.Array:
        with jax.named_scope("attention"):
            x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotations, attend)
        with jax.named_scope("mlp"):
            return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


@functools.cache
def abstract_block(config: LlamaConfig, quantized: bool = False) -> tuple[nnx.GraphDef, nnx.State]:
    """The Block's graph definition and the shapes of one layer's parameters; allocates nothing."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, quantized)))


def _leave(x: jax.Array, *axes: str | None) -> jax.Array:
    return x


def forward(
    params: Params,
    tokens_BT: jax.Array,
    config: LlamaConfig,
    *,
    dtype=None,
    constrain: Callable[..., jax.Array] = _leave,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    attend: Callable[..., jax.Array] = attend_causally,
) -> jax.Array:
    """Next-token logits of every position, [B, T, V], each row attending to itself and what precedes it.

    Where the embedding and the head are padded with rows beyond the vocabulary (a mesh may ask for it), V counts
    them too, and their logits are -inf.

    Args:
      params: the parameters, in any floating dtype.
      tokens_BT: integer token ids; padding belongs on the right, where causality keeps it unseen
        (dynamic RoPE beyond `max_position_embeddings` depends on the padded length).
      config: the architecture (static under jit).
      dtype: the dtype of activations and weights in the computation; None leaves the parameters'
        own. Norms and softmax are computed in float32 at least.
      constrain: is given an activation and its logical axes, and fixes how it is cut over a mesh
        (`parallel.layout.Layout.constrain`); static under jit.
      positions_BT: where each token stands in its document; None counts from the row's start.
      segments_BT: which document of its row each token belongs to, where a row holds several: a token attends to its
        own document's alone. None takes the row for one.
      attend: computes attention as `attend_causally` does (`attention.over_sequences`); static under jit.
    """
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    x_BTD, _ = _layers(params, tokens_BT, config, constrain, positions_BT, segments_BT, attend)
    return constrain(logits(params, x_BTD, config), "batch", None, "vocab")


def hidden_states(params: Params, tokens_BT: jax.Array, config: LlamaConfig) -> jax.Array:
    """What goes into every layer and what comes out of the last, [L + 1, B, T, D]; arguments as in `forward`."""
    x_BTD, into_LBTD = _layers(params, tokens_BT, config, keep=True)
    return jnp.concatenate([into_LBTD, x_BTD[None]])


def _layers(
    params: Params,
    tokens_BT: jax.Array,
    config: LlamaConfig,
    constrain: Callable[..., jax.Array] = _leave,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    attend: Callable[..., jax.Array] = attend_causally,
    *,
    keep: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """What the last layer gives, and if it is to be kept what goes into each."""
    x_BTD = constrain(params["embed_tokens"]["weight"][tokens_BT], "batch", None, None)
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    attend = functools.partial(attend, segments_BT=segments_BT)
    rotations = rope.rotations(config, positions_BT)
    graphdef, _ = abstract_block(config)

    def layer(x_BTD, layer_params):
        y_BTD = constrain(nnx.merge(graphdef, layer_params)(x_BTD, rotations, attend), "batch", None, None)
        return y_BTD, x_BTD if keep else None

    return jax.lax.scan(layer, x_BTD, params["layers"])


def logits(params: Mapping[str, Any], x_xD: jax.Array, config: LlamaConfig) -> jax.Array:
    """Next-token logits [..., V] of what the last layer gives: the final norm and the head.

    Args:
      params: `norm`, `embed_tokens` and `lm_head` of Params.
      x_xD: the last layer's output, with any leading axes.
      config: the architecture.
    """
    x_xD = rms_norm(x_xD, params["norm"]["weight"], config.rms_norm_eps)
    head_VD = params["embed_tokens" if config.tie_word_embeddings else "lm_head"]["weight"]
    with jax.named_scope("lm_head"):
        logits_xV = jnp.einsum("...d,vd->...v", x_xD, head_VD)
    if head_VD.shape[0] > config.vocab_size:
        logits_xV = jnp.where(jnp.arange(head_VD.shape[0]) < config.vocab_size, logits_xV, -jnp.inf)
    return logits_xV
