"""Cross-entropy of target tokens and divergence from a starting model, without the logits of a whole batch.

B rows, T tokens, C chunks of S tokens, P parts of R rows, D hidden, V vocabulary.
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
    parts: int = 1,
    constrain: Callable[..., jax.Array] = lambda x, *axes: x,
) -> RowLosses:
    """The losses of a batch: token i is predicted from the state at i - 1 of its row, where `targets[i]`.

    Logits are made for `chunk` tokens of each row at a time, in float32 at least, and where rows are longer once more
    in the backward pass.
    Each part of the batch has a copy of the head, whose gradients are summed in float32 over the chunks and only then
    over the parts: with a part on each device that is one exchange for a batch instead of one for a chunk.

    Args:
      head: from `head_params`; padded rows of the vocabulary have no part in it.
      x_BTD: from `llama.model.last_states`.
      batch: arrays of [B, T].
      config: the architecture.
      start: head and states of the model to stay near; None: the divergence is not computed.
      chunk: S; the last chunk is filled up.
      parts: into how many a mesh cuts the rows.
      constrain: as in `llama.model.forward`; the vocabulary may be cut over a mesh.
    """
    rows, length = batch.tokens.shape
    size = min(chunk, length)
    labels_BT = jnp.roll(batch.tokens, -1, axis=1)
    learned_BT = jnp.roll(batch.targets, -1, axis=1).at[:, -1].set(False)
    wide = np.promote_types(x_BTD.dtype, np.float32)

    def cut(values: jax.Array) -> jax.Array:
        filled = jnp.pad(values, [(0, 0), (0, -length % size)] + [(0, 0)] * (values.ndim - 2))
        return jnp.moveaxis(filled.reshape(parts, rows // parts, -1, size, *values.shape[2:]), 2, 0)

    def spread(head: Mapping[str, Any]) -> Mapping[str, Any]:
        def copies(leaf: jax.Array) -> jax.Array:
            narrow = jnp.broadcast_to(leaf.astype(x_BTD.dtype), (parts, *leaf.shape))
            return constrain(narrow, "batch", *("vocab", None)[-leaf.ndim :]).astype(wide)

        return jax.tree.map(copies, head)

    def log_probabilities(head_P: Mapping[str, Any], x_PRSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        narrow_P = jax.tree.map(lambda leaf: leaf.astype(x_PRSD.dtype), head_P)
        logits_PRSV = jax.vmap(lambda head, x_RSD: logits(head, x_RSD, config, dtype=wide))(narrow_P, x_PRSD)
        logits_PRSV = constrain(logits_PRSV, "batch", None, None, "vocab")
        return logits_PRSV, jax.nn.logsumexp(logits_PRSV, axis=-1, keepdims=True)

    head_P = spread(head)
    start_P = None if start is None else jax.lax.stop_gradient(spread(start[0]))

    def add_chunk(sums, chunk):
        labels_PRS, learned_PRS, x_PRSD, start_PRSD = chunk
        logits_PRSV, total_PRS1 = log_probabilities(head_P, x_PRSD)
        # A comparison that is fused into the sum: no one-hot array, and a cut vocabulary needs no gather.
        is_label_PRSV = jax.lax.broadcasted_iota(jnp.int32, logits_PRSV.shape, 3) == labels_PRS[..., None]
        label_PRS = jnp.sum(logits_PRSV, axis=-1, where=is_label_PRSV)
        cross_entropy_PR = jnp.sum(total_PRS1[..., 0] - label_PRS, axis=-1, where=learned_PRS)
        divergence_PR = jnp.zeros_like(cross_entropy_PR)
        if start is not None:
            start_PRSV, start_total_PRS1 = jax.lax.stop_gradient(log_probabilities(start_P, start_PRSD))
            probability_PRSV = jnp.exp(start_PRSV - start_total_PRS1)
            ratio_PRSV = (start_PRSV - start_total_PRS1) - (logits_PRSV - total_PRS1)
            divergence_PRS = jnp.sum(probability_PRSV * ratio_PRSV, axis=-1, where=probability_PRSV > 0)
            divergence_PR = jnp.sum(divergence_PRS, axis=-1, where=learned_PRS)
        return jax.tree.map(jnp.add, sums, (cross_entropy_PR, divergence_PR)), None

    zeros_PR = jnp.zeros((parts, rows // parts), wide)
    start_BTD = None if start is None else start[1]
    chunks = jax.tree.map(cut, (labels_BT, learned_BT, x_BTD, start_BTD))
    # The backward pass of a single chunk follows its forward pass at once: to compute it again would save nothing.
    add = add_chunk if length == size else jax.checkpoint(add_chunk)
    (cross_entropy_PR, divergence_PR), _ = jax.lax.scan(add, (zeros_PR, zeros_PR), chunks)
    targets_B = jnp.sum(learned_BT, axis=1, dtype=jnp.int32)
    return RowLosses(cross_entropy_PR.reshape(rows), targets_B, divergence_PR.reshape(rows))
