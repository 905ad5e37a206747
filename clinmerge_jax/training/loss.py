"""Cross-entropy of target tokens and KL divergence from the start, without the logits of a whole batch.

B rows, T tokens, P parts of M positions, C chunks of S of them, D hidden, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import logits

CHUNK = 256  # minimum number of target tokens per part whose logits are in memory at a time
_CHUNKS = 16  # maximum number of chunks per part


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["cross_entropy", "targets", "divergence"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class RowLosses:
    """Sums over each row's target tokens, [..., B].

    Attributes:
      cross_entropy: in nats, in the dtype of the logits.
      targets: number of target tokens, int32.
      divergence: KL(start || model) in nats; zeros if no start was given.
    """

    cross_entropy: jax.Array
    targets: jax.Array
    divergence: jax.Array


def head_params(params: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """The part of Params that makes logits from the last states: the final norm, and the head or the tied embedding."""
    return {name: params[name] for name in ("norm", "embed_tokens" if config.tie_word_embeddings else "lm_head")}


def losses(
    head: Mapping[str, Any],
    x_BTD: jax.Array,
    batch: Batch,
    config: LlamaConfig,
    *,
    kl: float = 0.0,
    start: tuple[Mapping[str, Any], jax.Array] | None = None,
    chunk: int = CHUNK,
    parts: int = 1,
    constrain: Callable[..., jax.Array] = lambda x, *axes: x,
) -> tuple[jax.Array, RowLosses]:
    """The loss of a batch: token i is predicted from the state at i - 1 of its row, where `targets[i]`.

    Positions that predict no target are skipped: the others are gathered first, and logits are made for a chunk of them
    at a time, in at least float32. A chunk's gradient is computed directly after its logits, so logits are neither
    stored nor recomputed (as in Hsu et al. 2024, arXiv 2410.10989).
    Each part of the batch has a copy of the head. Its gradients are summed in at least float32 over the chunks and only
    then over the parts: with one part per device that takes one exchange per batch instead of one per chunk.

    Args:
      head: from `head_params`; padded rows of the vocabulary do not contribute.
      x_BTD: the last states, from `llama.model.last_states`.
      batch: arrays of [B, T].
      config: the architecture.
      kl: the weight of the divergence.
      start: head and states of the starting model; None: the divergence is not computed.
      chunk: the minimum of S.
      parts: the number of shards that the mesh makes of the rows.
      constrain: as in `llama.model.forward`; the vocabulary may be sharded over the mesh.

    Returns:
      The sum over the batch of cross-entropy plus `kl` times divergence, which is differentiable; and the sums of each
      row, which carry no gradient.
    """
    rows, length = batch.tokens.shape
    positions = rows // parts * length
    size = min(max(chunk, -(-positions // _CHUNKS)), positions)
    learned_BT = jnp.roll(batch.targets, -1, axis=1).at[:, -1].set(False)
    learned_PM = learned_BT.reshape(parts, positions)
    order_PM = jnp.argsort(~learned_PM, axis=1, stable=True)  # target positions first
    wide = np.promote_types(x_BTD.dtype, np.float32)

    def cut(values: jax.Array) -> jax.Array:
        """Divides an array [B, T, ...] into chunks, [C, P, S, ...]."""
        values = constrain(values.reshape(parts, positions, *values.shape[2:]), "batch", *[None] * (values.ndim - 1))
        found = jax.vmap(lambda one, order: one.at[order].get(unique_indices=True, mode="promise_in_bounds"))(
            values, order_PM
        )
        found = jnp.pad(found, [(0, 0), (0, -positions % size)] + [(0, 0)] * (found.ndim - 2))
        return jnp.moveaxis(found.reshape(parts, -1, size, *found.shape[2:]), 1, 0)

    def spread(head: Mapping[str, Any]) -> Mapping[str, Any]:
        def copies(leaf: jax.Array) -> jax.Array:
            narrow = jnp.broadcast_to(leaf.astype(x_BTD.dtype), (parts, *leaf.shape))
            return constrain(narrow, "batch", *("vocab", None)[-leaf.ndim :]).astype(wide)

        return jax.tree.map(copies, head)

    def log_probabilities(head_P: Mapping[str, Any], x_PSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        narrow_P = jax.tree.map(lambda leaf: leaf.astype(x_PSD.dtype), head_P)
        logits_PSV = jax.vmap(lambda head, x_SD: logits(head, x_SD, config, dtype=wide))(narrow_P, x_PSD)
        logits_PSV = constrain(logits_PSV, "batch", None, "vocab")
        return logits_PSV, jax.nn.logsumexp(logits_PSV, axis=-1, keepdims=True)

    def of_chunk(head_P: Mapping[str, Any], x_PSD: jax.Array, chunk: Any) -> tuple[jax.Array, Any]:
        labels_PS, learned_PS, start_PSD = chunk
        logits_PSV, total_PS1 = log_probabilities(head_P, x_PSD)
        # The comparison is fused into the sum: no one-hot array, and a sharded vocabulary needs no gather.
        is_label_PSV = jax.lax.broadcasted_iota(jnp.int32, logits_PSV.shape, 2) == labels_PS[..., None]
        label_PS = jnp.sum(logits_PSV, axis=-1, where=is_label_PSV)
        cross_entropy_PS = jnp.where(learned_PS, total_PS1[..., 0] - label_PS, 0)
        divergence_PS = jnp.zeros_like(cross_entropy_PS)
        if start is not None:
            start_PSV, start_total_PS1 = jax.lax.stop_gradient(log_probabilities(start_P, start_PSD))
            probability_PSV = jnp.exp(start_PSV - start_total_PS1)
            ratio_PSV = (start_PSV - start_total_PS1) - (logits_PSV - total_PS1)
            divergence_PS = jnp.sum(probability_PSV * ratio_PSV, axis=-1, where=probability_PSV > 0)
            divergence_PS = jnp.where(learned_PS, divergence_PS, 0)
        return jnp.sum(cross_entropy_PS) + kl * jnp.sum(divergence_PS), (cross_entropy_PS, divergence_PS)

    start_P = None if start is None else jax.lax.stop_gradient(spread(start[0]))
    labels_BT = jnp.roll(batch.tokens, -1, axis=1)
    rest = jax.tree.map(cut, (labels_BT, learned_BT, None if start is None else start[1]))
    total, found = _in_chunks(of_chunk, spread(head), cut(x_BTD), rest)
    inverse_PM = jnp.argsort(order_PM, axis=1)

    def of_rows(values_CPS: jax.Array) -> jax.Array:
        values_PM = jnp.moveaxis(values_CPS, 0, 1).reshape(parts, -1)[:, :positions]
        return jnp.sum(jnp.take_along_axis(values_PM, inverse_PM, axis=1).reshape(rows, length), axis=1)

    cross_entropy_B, divergence_B = map(of_rows, jax.lax.stop_gradient(found))
    return total, RowLosses(cross_entropy_B, jnp.sum(learned_BT, axis=1, dtype=jnp.int32), divergence_B)


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)


def _in_chunks(of_chunk: Callable[..., Any], head_P: Any, x_CPSD: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
    """Sums `of_chunk` over chunks and stacks its other outputs; chunks without a target are skipped.

    Args:
      of_chunk: maps head, states and rest of a chunk to a number, which is differentiated, and arrays [P, S].
      head_P: the head, differentiated.
      x_CPSD: the states of all chunks, differentiated.
      rest: labels, target mask and start states, [C, P, S, ...], not differentiated.
    """

    def scan(head_P: Any, x_CPSD: jax.Array, rest: Any, add: Callable[..., Any], zero: Any) -> Any:
        def body(sums: Any, chunk: Any) -> Any:
            x_PSD, rest = chunk

            def skip() -> Any:
                each = jax.eval_shape(add, sums, head_P, x_PSD, rest)[1]
                return sums, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), each)

            if len(x_CPSD) == 1:
                return add(sums, head_P, x_PSD, rest)
            return jax.lax.cond(jnp.any(rest[1]), lambda: add(sums, head_P, x_PSD, rest), skip)

        return jax.lax.scan(body, zero, (x_CPSD, rest))

    zero = jnp.zeros((), jax.tree.leaves(head_P)[0].dtype)

    @jax.custom_vjp
    def total(head_P: Any, x_CPSD: jax.Array, rest: Any) -> Any:
        def add(sum_so_far: jax.Array, *chunk: Any) -> Any:
            more, found = of_chunk(*chunk)
            return sum_so_far + more, found

        return scan(head_P, x_CPSD, rest, add, zero)

    def forward(head_P: Any, x_CPSD: Any, rest: Any) -> Any:
        trained = any(leaf.perturbed for leaf in jax.tree.leaves(head_P, is_leaf=_is_primal))
        head_P, x_CPSD, rest = jax.tree.map(lambda leaf: leaf.value, (head_P, x_CPSD, rest), is_leaf=_is_primal)

        def add(sums: Any, head_P: Any, x_PSD: jax.Array, rest: Any) -> Any:
            sum_so_far, slope_P = sums
            argnums = (0, 1) if trained else (1,)
            (more, found), slopes = jax.value_and_grad(of_chunk, argnums, has_aux=True)(head_P, x_PSD, rest)
            if trained:
                slope_P = jax.tree.map(jnp.add, slope_P, slopes[0])
            return (sum_so_far + more, slope_P), (found, slopes[-1])

        none = jax.tree.map(jnp.zeros_like, head_P) if trained else None
        (sum_of_all, slope_P), (found, slope_CPSD) = scan(head_P, x_CPSD, rest, add, (zero, none))
        return (sum_of_all, found), (slope_P, slope_CPSD)

    def backward(slopes: Any, cotangents: Any) -> Any:
        slope_P, slope_CPSD = jax.tree.map(lambda leaf: leaf * cotangents[0].astype(leaf.dtype), slopes)
        return slope_P, slope_CPSD, None

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total(head_P, x_CPSD, rest)
