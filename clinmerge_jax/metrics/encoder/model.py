"""The forward pass of BERT (Devlin et al. 2019, arXiv 1810.04805) and RoBERTa (Liu et al. 2019, arXiv 1907.11692).

Params hold the published values in the published orientation ([out, in]), the layers stacked on a leading axis.

B batch, T or S tokens, D hidden, N heads, H head_dim, F MLP width, L layers.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from clinmerge_jax.metrics.encoder.config import EncoderConfig

Params = Mapping[str, Mapping[str, jax.Array]]  # keys: "embeddings" and "layers", then the names in the tables below

_EMBEDDINGS = {
    "word_embeddings.weight": ("vocab", "embed"),
    "position_embeddings.weight": ("positions", "embed"),
    "token_type_embeddings.weight": ("types", "embed"),
    "LayerNorm.weight": ("embed",),
    "LayerNorm.bias": ("embed",),
}
_LAYER = {
    "attention.self.query.weight": ("embed", "embed"),
    "attention.self.query.bias": ("embed",),
    "attention.self.key.weight": ("embed", "embed"),
    "attention.self.key.bias": ("embed",),
    "attention.self.value.weight": ("embed", "embed"),
    "attention.self.value.bias": ("embed",),
    "attention.output.dense.weight": ("embed", "embed"),
    "attention.output.dense.bias": ("embed",),
    "attention.output.LayerNorm.weight": ("embed",),
    "attention.output.LayerNorm.bias": ("embed",),
    "intermediate.dense.weight": ("mlp", "embed"),
    "intermediate.dense.bias": ("mlp",),
    "output.dense.weight": ("embed", "mlp"),
    "output.dense.bias": ("embed",),
    "output.LayerNorm.weight": ("embed",),
    "output.LayerNorm.bias": ("embed",),
}


def shapes(config: EncoderConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every tensor of the embeddings and of one layer."""
    sizes = {
        "vocab": config.vocab_size,
        "positions": config.max_position_embeddings,
        "types": config.type_vocab_size,
        "embed": config.hidden_size,
        "mlp": config.intermediate_size,
    }
    tables = {"embeddings": _EMBEDDINGS, "layers": _LAYER}
    return {
        part: {name: tuple(sizes[axis] for axis in axes) for name, axes in table.items()}
        for part, table in tables.items()
    }


@functools.partial(jax.jit, static_argnames="config")
def encode(params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, config: EncoderConfig) -> jax.Array:
    """The output of the last layer in `params` (of the embeddings if there is none), [B, T, D], in float32.

    Args:
      params: the embeddings and the layers to run.
      tokens_BT: token ids with special tokens, padded on the right with `config.pad_token_id`.
      lengths_B: the number of tokens of each row, at least one. No token attends to the padding after them, and the
        states of padding are meaningless.
      config: the architecture (static).
    """
    seen_BS = jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]

    def layer(x_BTD: jax.Array, leaves: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        with jax.named_scope("attention"):
            y_BTD = _linear(leaves, "attention.output.dense", _attention(leaves, x_BTD, seen_BS, config))
            x_BTD = _layer_norm(leaves, "attention.output.LayerNorm", x_BTD + y_BTD, config)
        with jax.named_scope("mlp"):
            y_BTF = jax.nn.gelu(_linear(leaves, "intermediate.dense", x_BTD), approximate=False)
            y_BTD = _linear(leaves, "output.dense", y_BTF)
            return _layer_norm(leaves, "output.LayerNorm", x_BTD + y_BTD, config), None

    with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round float32 products otherwise
        x_BTD, _ = jax.lax.scan(layer, _embed(params["embeddings"], tokens_BT, config), params["layers"])
    return x_BTD


def _embed(leaves: Mapping[str, jax.Array], tokens_BT: jax.Array, config: EncoderConfig) -> jax.Array:
    """Sum token, position and first type embeddings; as in its training, RoBERTa's padding tokens take no position."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if config.model_type == "roberta":
        text_BT = (tokens_BT != config.pad_token_id).astype(tokens_BT.dtype)
        positions_BT = jnp.cumsum(text_BT, axis=1) * text_BT + config.pad_token_id
    x_BTD = leaves["word_embeddings.weight"][tokens_BT] + leaves["token_type_embeddings.weight"][0]
    x_BTD += leaves["position_embeddings.weight"][positions_BT]
    return _layer_norm(leaves, "LayerNorm", x_BTD, config)


def _attention(
    leaves: Mapping[str, jax.Array], x_BTD: jax.Array, seen_BS: jax.Array, config: EncoderConfig
) -> jax.Array:
    heads = (*x_BTD.shape[:2], config.num_attention_heads, -1)
    q_BTNH, k_BSNH, v_BSNH = (
        _linear(leaves, f"attention.self.{name}", x_BTD).reshape(heads) for name in ("query", "key", "value")
    )
    scores_BNTS = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH) * q_BTNH.shape[3] ** -0.5
    weights_BNTS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], scores_BNTS, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH).reshape(x_BTD.shape)


def _linear(leaves: Mapping[str, jax.Array], name: str, x_BTI: jax.Array) -> jax.Array:
    return jnp.einsum("bti,oi->bto", x_BTI, leaves[f"{name}.weight"]) + leaves[f"{name}.bias"]


def _layer_norm(leaves: Mapping[str, jax.Array], name: str, x_BTD: jax.Array, config: EncoderConfig) -> jax.Array:
    centred_BTD = x_BTD - jnp.mean(x_BTD, axis=-1, keepdims=True)
    variance_BT1 = jnp.mean(centred_BTD * centred_BTD, axis=-1, keepdims=True)
    normal_BTD = centred_BTD * jax.lax.rsqrt(variance_BT1 + config.layer_norm_eps)
    return normal_BTD * leaves[f"{name}.weight"] + leaves[f"{name}.bias"]
