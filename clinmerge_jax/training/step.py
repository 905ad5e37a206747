"""One step of training: gradients of a batch in micro-batches, AdamW, and what is watched. Pure, so it can be mapped.

A micro-batches, B rows of each, T tokens.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.attention import Backend, over_sequences
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.model import Remat, last_states
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.training.lora import dropout_keys, squared_change
from clinmerge_jax.training.loss import CHUNK, RowLosses, head_params, losses
from clinmerge_jax.training.optimizer import OptimizerSettings, adamw, rate_share
from clinmerge_jax.training.sharding import cut
from clinmerge_jax.training.weights import join


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step does; hashable, a static argument of jit.

    Attributes:
      optimizer: AdamW and its schedule.
      steps: of the whole run; the end of the schedule. A step takes it from the state (`init_state` puts it there), so
        settings that differ in it alone are equal and share their program.
      lora: the adapter that is trained; None: the weights themselves are.
      dtype: of layers and activations. The trained weights have their own, usually float32.
      remat: what the backward pass keeps.
      attention: the kernel, from `llama.attention.resolve`; cuDNN's takes each row for one document.
      kl: times KL(start || model) for each target token is added to the loss.
      l2: times half the squared distance to the start is added (L2-SP, Li et al. 2018, arXiv 1802.01483).
      chunk: target tokens of each part whose logits are in memory at a time, at least.

    Raises:
      BadInput: a number is out of its range.
    """

    optimizer: OptimizerSettings
    steps: int = dataclasses.field(compare=False)
    lora: LoraSettings | None = None
    dtype: Any = jnp.bfloat16
    remat: Remat = Remat.NONE
    attention: Backend = Backend.REFERENCE
    kl: float = 0.0
    l2: float = 0.0
    chunk: int = CHUNK

    def __post_init__(self):
        for field, least in (("steps", 1), ("chunk", 1), ("kl", 0), ("l2", 0)):
            if not least <= getattr(self, field) < float("inf"):
                raise BadInput(f"config.{field}: is {getattr(self, field)!r}; give {least} or more")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trained", "opt_state", "learning_rate", "steps", "seed"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes, with what differs between runs of one grid; all of it arrays.

    Attributes:
      step: steps done, int32.
      trained: the trained leaves of Params, or an adapter, in the dtype that updates are summed in.
      opt_state: of `optimizer.adamw`.
      learning_rate: the highest of the schedule, of the dtype of the weights.
      steps: of the whole run, int32; the end of the schedule.
      seed: of the dropout, uint32.
    """

    step: jax.Array
    trained: Params
    opt_state: optax.OptState
    learning_rate: jax.Array
    steps: jax.Array
    seed: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["loss", "targets", "gradient_norm", "learning_rate", "kl", "tokens", "computed", "attended", "rows"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step saw, before it changed the weights.

    Attributes:
      loss: mean cross-entropy of the target tokens in nats.
      targets: how many there were.
      gradient_norm: of the mean loss with its penalties, before clipping.
      learning_rate: that the step was taken with.
      kl: mean KL(start || model) of the target tokens in nats; 0 where it is not part of the loss.
      tokens: how many were not padding.
      computed: how many the micro-batches had, padding included, that were not empty.
      attended: pairs of a token and one that it attends to, float32, as there may be very many.
      rows: the sums of each row, [A, B]: where a loss is not finite they name the rows.
    """

    loss: jax.Array
    targets: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    kl: jax.Array
    tokens: jax.Array
    computed: jax.Array
    attended: jax.Array
    rows: RowLosses


def init_state(trained: Params, settings: StepSettings, seed: int | jax.Array = 0) -> TrainState:
    """The state before the first step; under `jax.jit` with `sharding.state_shardings` it is made where it lies."""
    dtype = jax.tree.leaves(trained)[0].dtype
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        opt_state=adamw(settings.optimizer).init(trained),
        learning_rate=jnp.asarray(settings.optimizer.learning_rate, dtype),
        steps=jnp.asarray(settings.steps, jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
    )


def _losses(
    trained: Params,
    frozen: Params,
    batch: Batch,
    settings: StepSettings,
    config: LlamaConfig,
    layout: Layout | None,
    keys: Params | None = None,
    start: Params | None = None,
) -> tuple[jax.Array, RowLosses]:
    """The loss of a batch [B, T], summed, and its rows' sums; with `start`, another model, the divergence too."""
    constrain, parts = ({}, 1) if layout is None else ({"constrain": layout.constrain}, layout.parts("batch"))
    shards = () if layout is None else (layout.map_shards,)
    attend = over_sequences(settings.attention, *shards)
    # Where a row is one document, causality hides the padding at its end.
    segments_BT = None if settings.attention is Backend.CUDNN else batch.segments

    def states(params: Params, lora: LoraSettings | None) -> jax.Array:
        narrow = {**params, "layers": jax.tree.map(lambda leaf: leaf.astype(settings.dtype), params["layers"])}
        return last_states(
            narrow if keys is None or lora is None else join(narrow, keys),
            batch.tokens,
            config,
            dtype=settings.dtype,
            positions_BT=batch.positions,
            segments_BT=segments_BT,
            remat=settings.remat,
            lora=lora,
            attend=attend,
            **constrain,
        )

    lora = settings.lora
    if lora is not None and keys is None:
        lora = dataclasses.replace(lora, dropout=0.0)
    reference = None
    if start is not None:
        reference = jax.lax.stop_gradient((head_params(start, config), states(start, None)))
    params = join(trained, frozen)
    return losses(
        head_params(params, config),
        states(params, lora),
        batch,
        config,
        kl=settings.kl,
        start=reference,
        chunk=settings.chunk,
        parts=parts,
        **constrain,
    )


def step(
    state: TrainState,
    frozen: Params,
    batch: Batch,
    start: Params | None = None,
    *,
    settings: StepSettings,
    config: LlamaConfig,
    layout: Layout | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one step on the mean over the target tokens of the whole batch, however it is divided.

    Args:
      state: before the step.
      frozen: the other leaves of Params (all of them with an adapter), at best in the dtype to compute in.
      batch: arrays of [A, B, T]; one micro-batch after the other, their gradients summed in the weights' dtype. Empty
        ones are skipped (not where the step is mapped over runs: there all are computed).
      start: the trained leaves as they began, in any dtype: for `kl` and `l2` without an adapter. With one, the
        start is the model without it.
      settings, config: what to do with which model (static under jit).
      layout: how arrays are cut over a mesh (static under jit); None for one device.

    Returns:
      The state after the step, and what was seen.
    """
    micro_batches, rows = batch.tokens.shape[:2]
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    drops = settings.lora is not None and settings.lora.dropout > 0
    start_params = None
    if settings.kl:
        start_params = frozen if settings.lora is not None else join(start, frozen)

    def summed(trained: Params, micro_batch: Batch, rows_B: jax.Array) -> tuple[jax.Array, RowLosses]:
        keys = dropout_keys(config, settings.lora, key, rows_B) if drops else None
        return _losses(trained, frozen, micro_batch, settings, config, layout, keys, start_params)

    def add(gradients: Params, part: tuple[Batch, jax.Array]) -> tuple[Params, RowLosses]:
        more, rows = jax.grad(summed, has_aux=True)(state.trained, *part)
        return cut(jax.tree.map(jnp.add, gradients, more), layout), rows

    def skip(gradients: Params, part: tuple[Batch, jax.Array]) -> tuple[Params, RowLosses]:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(add, gradients, part)[1])
        return gradients, nothing

    def accumulate(gradients: Params, part: tuple[Batch, jax.Array]) -> tuple[Params, RowLosses]:
        if micro_batches == 1:
            return add(gradients, part)
        return jax.lax.cond(jnp.any(part[0].segments), add, skip, gradients, part)

    zeros = cut(jax.tree.map(jnp.zeros_like, state.trained), layout)
    numbers_AB = jnp.arange(micro_batches * rows).reshape(micro_batches, rows)
    gradients, found = jax.lax.scan(accumulate, zeros, (batch, numbers_AB))
    targets = jnp.sum(found.targets, dtype=jnp.int32)
    count = jnp.maximum(targets, 1)
    gradients = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), gradients)
    if settings.l2:
        pulls = jax.grad(lambda trained: settings.l2 / 2 * _squared_distance(trained, start, settings))(state.trained)
        gradients = jax.tree.map(jnp.add, gradients, pulls)
    rate = state.learning_rate
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes integer step counts with floats
        share = rate_share(settings.optimizer, state.steps.astype(rate.dtype))
        rate = rate * share(state.step.astype(rate.dtype)).astype(rate.dtype)
        changes, opt_state = adamw(settings.optimizer).update(gradients, state.opt_state, state.trained)
    trained = jax.tree.map(lambda leaf, change: leaf - rate.astype(leaf.dtype) * change, state.trained, changes)
    divisor = count.astype(found.cross_entropy.dtype)
    metrics = Metrics(
        loss=jnp.sum(found.cross_entropy) / divisor,
        targets=targets,
        gradient_norm=optax.tree.norm(gradients),
        learning_rate=rate,
        kl=jnp.sum(found.divergence) / divisor,
        tokens=jnp.sum(batch.segments > 0, dtype=jnp.int32),
        computed=jnp.sum(jnp.any(batch.segments, axis=(1, 2)), dtype=jnp.int32) * batch.tokens[0].size,
        attended=jnp.sum(batch.positions + 1, where=batch.segments > 0, dtype=jnp.float32),
        rows=found,
    )
    return dataclasses.replace(state, step=state.step + 1, trained=cut(trained, layout), opt_state=opt_state), metrics


def _squared_distance(trained: Params, start: Params | None, settings: StepSettings) -> jax.Array:
    if settings.lora is not None:
        return squared_change(trained, settings.lora)
    parts = jax.tree.map(lambda leaf, first: jnp.sum((leaf - first.astype(leaf.dtype)) ** 2), trained, start)
    return sum(jax.tree.leaves(parts))


def evaluate(
    trained: Params,
    frozen: Params,
    batch: Batch,
    *,
    settings: StepSettings,
    config: LlamaConfig,
    layout: Layout | None = None,
) -> RowLosses:
    """The sums of each row of a batch [B, T] without dropout; arguments as in `step`."""
    return _losses(trained, frozen, batch, settings, config, layout)[1]


_STATIC = ("settings", "config", "layout")
train_step = jax.jit(step, static_argnames=_STATIC, donate_argnames="state")
evaluate_step = jax.jit(evaluate, static_argnames=_STATIC)
