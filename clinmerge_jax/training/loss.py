"""Cross-entropy of target tokens and divergence from a starting model, without the logits of a whole batch.

B rows, T tokens, C chunks of S tokens, D hidden, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import logits

CHUNK = 512  # tokens of each row whose logits are in memory at a time


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["cross_entropy", "targets", "divergence"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class RowLosses:
    """Sums over each row's target tokens, [..., B].

    Attributes:
      cross_entropy: in nats, of the dtype of the logits.
      targets: how many there are, int32.
      divergence: KL(start || model) in nats; zeros where no start was given.
    """

    cross_entropy: jax.Array
    targets: jax.Array
    divergence: jax.Array


def head_params(params: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Of Params, what turns the last layer's output into logits: the final norm, and the head or what is tied to it."""
    return {name: params[name] for name in ("norm", "embed_tokens" if config.tie_word_embeddings else "lm_head")}


def row_losses(
    head: Mapping[str, Any],
    x_BTD: jax.Array,
    batch: Batch,
    config: LlamaConfig,
    *,
    start: tuple[Mapping[str, Any], jax.Array] | None = None,
    chunk: int = CHUNK,
    constrain: Callable[..., jax.Array] = lambda x, *axes: x,
) -> RowLosses:
    """The losses of a batch: token i is predicted from the state at i - 1 of its row, where `targets[i]`.

    Logits are made for `chunk` tokens of each row at a time, in float32 at least, and once more in the backward pass.
    The gradients of the head are summed over the chunks in the head's own dtype, so give it in float32.

    Args:
      head: from `head_params`; padded rows of the vocabulary have no part in it.
      x_BTD: from `llama.model.last_states`.
      batch: arrays of [B, T].
      config: the architecture.
      start: head and states of the model to stay near; None: the divergence is not computed.
      chunk: S; the last chunk is filled up.
      constrain: as in `llama.model.forward`; the vocabulary may be cut over a mesh.
    """
    rows, length = batch.tokens.shape
    size = min(chunk, length)
    labels_BT = jnp.roll(batch.tokens, -1, axis=1)
    learned_BT = jnp.roll(batch.targets, -1, axis=1).at[:, -1].set(False)

    def cut(values: jax.Array) -> jax.Array:
        filled = jnp.pad(values, [(0, 0), (0, -length % size)] + [(0, 0)] * (values.ndim - 2))
        return jnp.moveaxis(filled.reshape(rows, -1, size, *values.shape[2:]), 1, 0)

    def log_probabilities(head: Mapping[str, Any], x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        narrow = jax.tree.map(lambda leaf: leaf.astype(x_BSD.dtype), head)
        wide = np.promote_types(x_BSD.dtype, np.float32)
        logits_BSV = constrain(logits(narrow, x_BSD, config, dtype=wide), "batch", None, "vocab")
        return logits_BSV, jax.nn.logsumexp(logits_BSV, axis=-1, keepdims=True)

    @jax.checkpoint
    def add_chunk(sums, chunk):
        labels_BS, learned_BS, x_BSD, start_BSD = chunk
        logits_BSV, total_BS1 = log_probabilities(head, x_BSD)
        # A comparison that is fused into the sum: no one-hot array, and a cut vocabulary needs no gather.
        is_label_BSV = jax.lax.broadcasted_iota(jnp.int32, logits_BSV.shape, 2) == labels_BS[..., None]
        label_BS = jnp.sum(logits_BSV, axis=-1, where=is_label_BSV)
        cross_entropy_B = jnp.sum(total_BS1[..., 0] - label_BS, axis=1, where=learned_BS)
        divergence_B = jnp.zeros_like(cross_entropy_B)
        if start is not None:
            start_BSV, start_total_BS1 = jax.lax.stop_gradient(log_probabilities(start[0], start_BSD))
            probability_BSV = jnp.exp(start_BSV - start_total_BS1)
            ratio_BSV = (start_BSV - start_total_BS1) - (logits_BSV - total_BS1)
            divergence_BS = jnp.sum(probability_BSV * ratio_BSV, axis=-1, where=probability_BSV > 0)
            divergence_B = jnp.sum(divergence_BS, axis=1, where=learned_BS)
        return jax.tree.map(jnp.add, sums, (cross_entropy_B, divergence_B)), None

    zeros_B = jnp.zeros(rows, np.promote_types(x_BTD.dtype, np.float32))
    start_BTD = None if start is None else start[1]
    chunks = jax.tree.map(cut, (labels_BT, learned_BT, x_BTD, start_BTD))
    (cross_entropy_B, divergence_B), _ = jax.lax.scan(add_chunk, (zeros_B, zeros_B), chunks)
    return RowLosses(cross_entropy_B, jnp.sum(learned_BT, axis=1, dtype=jnp.int32), divergence_B)
