"""Llama's forward pass: one Flax NNX Block, scanned over the stacked layers.

Params are plain pytrees outside; inside the scan the Block is merged with one layer's parameters.

B batch, T tokens, D hidden, N query heads, G key-value heads, H head_dim, F MLP width, V vocabulary.
"""

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clinmerge_jax.llama import rope
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings, low_rank_product, targeting
from clinmerge_jax.llama.parameters import Params


class Remat(enum.Enum):
    """Which results of a layer's forward pass are stored for the backward pass; the others are recomputed."""

    NONE = "none"  # store everything
    DOTS = "dots"  # the results of the products with weights
    FULL = "full"  # only the layer's input


_POLICIES = {
    Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}


class Linear(nnx.Module):
    """y = x W^T (+ b), with the weight in Hugging Face's [out, in] orientation.

    An int8 weight has a scale for every row.
    With `lora` the product of x and the adapter's factors is added. W + B A is never formed.
    """

    def __init__(
        self, outputs: int, inputs: int, bias: bool, quantized: bool = False, lora: LoraSettings | None = None
    ):
        self.weight = nnx.Param(jnp.zeros((outputs, inputs), jnp.int8 if quantized else None))
        if quantized:
            self.scale = nnx.Param(jnp.ones((outputs,)))
        if bias:
            self.bias = nnx.Param(jnp.zeros((outputs,)))
        if lora is not None:
            self.lora_a = nnx.Param(jnp.zeros((lora.rank, inputs)))
            self.lora_b = nnx.Param(jnp.zeros((outputs, lora.rank)))
            if lora.dropout:
                self.lora_keys = nnx.Variable(jax.random.key(0)[None])  # one key for each row of x
        self.has_bias = bias
        self.quantized = quantized
        self.lora = lora

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _times(x, self.weight[...].astype(x.dtype))
        if self.quantized:
            y = (y.astype(jnp.float32) * self.scale[...]).astype(x.dtype)
        if self.lora is not None:
            keys = self.lora_keys[...] if self.lora.dropout else None
            y = y + low_rank_product(x, self.lora_a[...], self.lora_b[...], self.lora, keys)
        return y + self.bias[...] if self.has_bias else y


def _times(x_xI: jax.Array, weight_OI: jax.Array, dtype=None) -> jax.Array:
    """x W^T, leading axes merged, as XLA for CPUs is slow at gradients of W that sum over several axes."""
    y_MO = jnp.einsum("mi,oi->mo", x_xI.reshape(-1, x_xI.shape[-1]), weight_OI, preferred_element_type=dtype)
    return y_MO.reshape(*x_xI.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float):
        self.weight = nnx.Param(jnp.ones((size,)))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the quotient is rounded to x's dtype first."""
    wide = x.astype(np.promote_types(x.dtype, np.float32))  # jnp's version refuses mixed dtypes under strict promotion
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return weight * (wide * scale).astype(x.dtype)


Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (q_BTNH, k_BTGH, v_BTGH) -> y_BTNH


def take(x_BTx: jax.Array, asked_B: jax.Array | None) -> jax.Array:
    """Takes the token with index `asked_B` of each row, [B, 1, ...]; returns all tokens if `asked_B` is None."""
    if asked_B is None:
        return x_BTx
    return jnp.take_along_axis(x_BTx, jnp.expand_dims(asked_B, tuple(range(1, x_BTx.ndim))), axis=1)


_BLOCK = 128  # the smallest number of queries of a block
_BLOCKS = 8  # the most blocks; longer sequences have larger blocks


def attend_causally(
    q_BTNH: jax.Array, k_BTGH: jax.Array, v_BTGH: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """Attends from every position to itself and to earlier ones of its row, or of its segment where segments are given.

    Scores and softmax are computed in float32 at least. (jax.nn.dot_product_attention rounds float64 to float32, and
    its bfloat16 gradient needs implicit promotion.) Long rows are split into blocks of queries, and a block skips the
    keys after its last query. That halves the products and limits memory to the scores of one block, which the
    backward pass recomputes. J query heads share a key-value head; a block has C queries and S keys.
    """
    B, T, G, H = k_BTGH.shape
    size = max(_BLOCK, -(-T // _BLOCKS))
    # Heads before positions: XLA for CPUs is slow at products whose batch axes are not adjacent.
    q_BGJTH = q_BTNH.reshape(B, T, G, -1, H).transpose(0, 2, 3, 1, 4)
    k_BGTH, v_BGTH = k_BTGH.transpose(0, 2, 1, 3), v_BTGH.transpose(0, 2, 1, 3)
    positions_1T = jnp.arange(T)[None]
    attend = _attend_block if T <= size else jax.checkpoint(_attend_block, prevent_cse=False)
    blocks = []
    for start in range(0, T, size):
        end = min(start + size, T)
        seen_BCS = positions_1T[:, start:end, None] >= positions_1T[:, None, :end]
        if segments_BT is not None:
            seen_BCS &= segments_BT[:, start:end, None] == segments_BT[:, None, :end]
        blocks.append(attend(q_BGJTH[:, :, :, start:end], k_BGTH[:, :, :end], v_BGTH[:, :, :end], seen_BCS))
    return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


def _attend_block(q_BGJCH: jax.Array, k_BGSH: jax.Array, v_BGSH: jax.Array, seen_BCS: jax.Array) -> jax.Array:
    B, G, J, C, H = q_BGJCH.shape
    wide = np.promote_types(q_BGJCH.dtype, np.float32)
    q_BGMH = q_BGJCH.reshape(B, G, J * C, H)
    scores_BGMS = jnp.einsum("bgmh,bgsh->bgms", q_BGMH, k_BGSH, preferred_element_type=wide) * H**-0.5
    scores_BGJCS = scores_BGMS.reshape(B, G, J, C, -1)
    scores_BGJCS = jnp.where(seen_BCS[:, None, None], scores_BGJCS, -jnp.inf)
    weights_BGJCS = jax.nn.softmax(scores_BGJCS, axis=-1).astype(v_BGSH.dtype)
    y_BGMH = jnp.einsum("bgms,bgsh->bgmh", weights_BGJCS.reshape(B, G, J * C, -1), v_BGSH)
    return y_BGMH.reshape(B, G, J, C, H)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: LlamaConfig, quantized: bool = False, lora: LoraSettings | None = None):
        size, bias = config.hidden_size, config.attention_bias or config.qkv_bias
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(queries, size, bias, quantized, targeting(lora, "q_proj"))
        self.k_proj = Linear(keys, size, bias, quantized, targeting(lora, "k_proj"))
        self.v_proj = Linear(keys, size, bias, quantized, targeting(lora, "v_proj"))
        self.o_proj = Linear(size, queries, config.attention_bias, quantized, targeting(lora, "o_proj"))
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm
        self.head_dim = config.head_dim

    def __call__(self, x_BTD: jax.Array, rotations, attend: Attend, asked_B: jax.Array | None) -> jax.Array:
        x_BQD = take(x_BTD, asked_B)
        q_BQNH, k_BTGH, v_BTGH = (
            one(x_BxD).reshape(*x_BxD.shape[:2], -1, self.head_dim)
            for one, x_BxD in ((self.q_proj, x_BQD), (self.k_proj, x_BTD), (self.v_proj, x_BTD))
        )
        if self.qk_norm:
            q_BQNH, k_BTGH = self.q_norm(q_BQNH), self.k_norm(k_BTGH)
        q_BQNH, k_BTGH = (
            rope.rotate(q_BQNH, *(take(one, asked_B) for one in rotations)),
            rope.rotate(k_BTGH, *rotations),
        )
        return self.o_proj(attend(q_BQNH, k_BTGH, v_BTGH).reshape(*x_BQD.shape[:2], -1))


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, quantized: bool = False, lora: LoraSettings | None = None):
        size, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, size, bias, quantized, targeting(lora, "gate_proj"))
        self.up_proj = Linear(width, size, bias, quantized, targeting(lora, "up_proj"))
        self.down_proj = Linear(size, width, bias, quantized, targeting(lora, "down_proj"))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down_proj(_swish_gated(self.gate_proj(x_BTD), self.up_proj(x_BTD)))


@functools.partial(jax.checkpoint, prevent_cse=False)
def _swish_gated(gate_BTF: jax.Array, up_BTF: jax.Array) -> jax.Array:
    """silu(gate) * up, storing only the two inputs for the backward pass; silu would store three more arrays."""
    return jax.nn.silu(gate_BTF) * up_BTF


class Block(nnx.Module):
    """One pre-norm decoder layer, [B, T, D]; [B, 1, D] if `asked_B` gives the one token needed of each row."""

    def __init__(self, config: LlamaConfig, quantized: bool = False, lora: LoraSettings | None = None):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, quantized, lora)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, quantized, lora)

    def __call__(self, x_BTD: jax.Array, rotations, attend: Attend, asked_B: jax.Array | None = None) -> jax.Array:
        with jax.named_scope("attention"):
            x_BQD = take(x_BTD, asked_B) + self.self_attn(self.input_layernorm(x_BTD), rotations, attend, asked_B)
        with jax.named_scope("mlp"):
            return x_BQD + self.mlp(self.post_attention_layernorm(x_BQD))


@functools.cache
def abstract_block(
    config: LlamaConfig, quantized: bool = False, lora: LoraSettings | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """The Block's graph definition and the shapes of one layer's parameters; allocates nothing."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, quantized, lora)))


def _leave(x: jax.Array, *axes: str | None) -> jax.Array:
    return x


def forward(
    params: Params,
    tokens_BT: jax.Array,
    config: LlamaConfig,
    *,
    dtype=None,
    constrain: Callable[..., jax.Array] = _leave,
    attend: Callable[..., jax.Array] = attend_causally,
) -> jax.Array:
    """Computes next-token logits of every position, [B, T, V], with causal attention within each row.

    If the embedding and the head are padded with rows beyond the vocabulary (a mesh may need it), V includes them, and
    their logits are -inf.

    Args:
      params: the parameters, in any floating dtype.
      tokens_BT: integer token ids. Padding belongs on the right, where the causal mask hides it (but dynamic RoPE
        beyond `max_position_embeddings` depends on the padded length).
      config: the architecture (static under jit).
      dtype: the dtype of activations and weights in the computation; None for the parameters' own. Norms and softmax
        are computed in float32 at least.
      constrain: takes an activation and its logical axes, and fixes its sharding over a mesh
        (`parallel.layout.Layout.constrain`); static under jit.
      attend: computes attention as `attend_causally` does (`attention.over_sequences`); static under jit.
    """
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    x_BTD = last_states(params, tokens_BT, config, constrain=constrain, attend=attend)
    return constrain(logits(params, x_BTD, config), "batch", None, "vocab")


def last_states(
    params: Params,
    tokens_BT: jax.Array,
    config: LlamaConfig,
    *,
    dtype=None,
    constrain: Callable[..., jax.Array] = _leave,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    remat: Remat = Remat.NONE,
    lora: LoraSettings | None = None,
    attend: Callable[..., jax.Array] = attend_causally,
) -> jax.Array:
    """Computes the last layer's output before the final norm, [B, T, D], for `logits`.

    Args:
      params: as in `forward`; with `lora` the targeted layers also hold the adapter's factors, and its dropout keys if
        it has dropout.
      dtype: the dtype of the activations, and so of the layers' leaves, if it differs from the embedding's; None for
        the embedding's.
      tokens_BT, config, constrain, attend: as in `forward`.
      positions_BT: the position of each token in its document; None counts from the start of the row.
      segments_BT: the document that each token belongs to, for rows that hold several documents. A token attends only
        to its own document. None treats a row as one document.
      remat: what is stored for the backward pass (static under jit).
      lora: the adapter in the layers (static under jit).
    """
    return _layers(params, tokens_BT, config, constrain, positions_BT, segments_BT, dtype, remat, lora, attend)[0]


def hidden_states(params: Params, tokens_BT: jax.Array, config: LlamaConfig) -> jax.Array:
    """Returns the input of every layer and the output of the last, [L + 1, B, T, D]; arguments as in `forward`."""
    x_BTD, into_LBTD = _layers(params, tokens_BT, config, keep=True)
    return jnp.concatenate([into_LBTD, x_BTD[None]])


def _layers(
    params: Params,
    tokens_BT: jax.Array,
    config: LlamaConfig,
    constrain: Callable[..., jax.Array] = _leave,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    dtype=None,
    remat: Remat = Remat.NONE,
    lora: LoraSettings | None = None,
    attend: Callable[..., jax.Array] = attend_causally,
    *,
    keep: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the last layer's output, and the input of every layer if `keep`, else None."""
    x_BTD = constrain(params["embed_tokens"]["weight"][tokens_BT], "batch", None, None)
    x_BTD = x_BTD if dtype is None else x_BTD.astype(dtype)
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    attend = functools.partial(attend, segments_BT=segments_BT)
    rotations = rope.rotations(config, positions_BT, x_BTD.dtype)
    graphdef, _ = abstract_block(config, lora=lora)

    def layer(x_BTD, layer_params):
        y_BTD = constrain(nnx.merge(graphdef, layer_params)(x_BTD, rotations, attend), "batch", None, None)
        return y_BTD, x_BTD if keep else None

    if remat is not Remat.NONE:
        layer = jax.checkpoint(layer, policy=_POLICIES[remat], prevent_cse=False)  # a scan already prevents it
    return jax.lax.scan(layer, x_BTD, params["layers"])


def logits(params: Mapping[str, Any], x_xD: jax.Array, config: LlamaConfig, *, dtype=None) -> jax.Array:
    """Applies the final norm and the head to the last layer's output; returns next-token logits [..., V].

    Args:
      params: `norm`, `embed_tokens` and `lm_head` of Params.
      x_xD: the last layer's output, with any leading axes.
      config: the architecture.
      dtype: the dtype of the logits, if wider than that of the states; the product is not rounded to the states' dtype.
    """
    x_xD = rms_norm(x_xD, params["norm"]["weight"], config.rms_norm_eps)
    head_VD = params["embed_tokens" if config.tie_word_embeddings else "lm_head"]["weight"]
    with jax.named_scope("lm_head"):
        logits_xV = _times(x_xD, head_VD, dtype)
    if head_VD.shape[0] > config.vocab_size:
        logits_xV = jnp.where(jnp.arange(head_VD.shape[0]) < config.vocab_size, logits_xV, -jnp.inf)
    return logits_xV
