"""Held-out loss: summed cross-entropy of each document's scored tokens. B batch, T tokens, V vocabulary."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.llama.attention import Backend, Use, over_sequences, resolve
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout

_LENGTH_STEP = 64  # padded lengths are multiples of this, so few programs are compiled
_MAX_LOGITS = 1 << 26  # entries of [B, T, V] at a time
_MAX_ROWS = 32


@functools.partial(jax.jit, static_argnames=("layout", "attention"))
def _losses(
    params: Params, tokens_BT: jax.Array, targets_BT: jax.Array, layout: Layout, attention: Backend
) -> jax.Array:
    attend = over_sequences(attention, layout.map_shards)
    with jax.default_matmul_precision("highest"):  # otherwise GPUs and TPUs round float32 products
        logits = forward(
            params, tokens_BT, layout.config, dtype=jnp.float32, constrain=layout.constrain, attend=attend
        )[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BT[:, 1:])
    return layout.constrain(jnp.sum(losses, axis=1, where=targets_BT[:, 1:]), None)  # replicated on every process


def truncate(documents: Sequence[Encoded], length: int) -> tuple[list[Encoded], int]:
    """Truncates documents to `length` tokens; returns them and the number that were truncated."""
    cut = [Encoded(item.tokens[:length], item.targets[:length]) for item in documents]
    return cut, sum(len(item.tokens) > length for item in documents)


def document_losses(
    params: Params,
    layout: Layout,
    documents: Sequence[Encoded],
    progress: Callable[[int], None] = lambda documents: None,
) -> np.ndarray:
    """The summed loss in nats of each document's scored tokens, computed in float32.

    Args:
      params: in any floating dtype.
      layout: how params are sharded.
      documents: no longer than the model's context length.
      progress: called with the number of documents finished since the last call.
    """
    config = layout.config
    attention = resolve(Backend.AUTO, Use.SEQUENCES, config, jnp.float32, layout.device)
    totals = np.zeros(len(documents))
    by_length: dict[int, list[int]] = {}
    for index, document in enumerate(documents):
        rounded = -(-len(document.tokens) // _LENGTH_STEP) * _LENGTH_STEP
        # At most the context length: beyond it the padding would change dynamic RoPE scaling.
        by_length.setdefault(min(rounded, config.max_position_embeddings), []).append(index)
    for length, indices in sorted(by_length.items()):
        rows = int(np.clip(_MAX_LOGITS // (length * layout.vocab_rows), 1, _MAX_ROWS))
        rows = -(-rows // layout.parts("batch")) * layout.parts("batch")
        for start in range(0, len(indices), rows):
            chosen = indices[start : start + rows]
            tokens = np.zeros((rows, length), np.int32)  # padding is on the right and never scored
            targets = np.zeros((rows, length), bool)
            for row, index in enumerate(chosen):
                size = len(documents[index].tokens)
                tokens[row, :size] = documents[index].tokens
                targets[row, :size] = documents[index].targets
            losses = _losses(
                params,
                layout.put(tokens, "batch", None),
                layout.put(targets, "batch", None),
                layout=layout,
                attention=attention,
            )
            totals[chosen] = np.asarray(losses)[: len(chosen)]
            progress(len(chosen))
    return totals
