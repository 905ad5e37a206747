"""One training step: gradients accumulated over micro-batches, AdamW, and metrics. Pure, so it can be vmapped.

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
    """The settings of a step; hashable, a static argument of jit.

    Attributes:
      optimizer: AdamW and its schedule.
      steps: the number of steps of the whole run, at which the schedule ends. A step reads it from the state, where
        `init_state` puts it. So settings that differ only in it are equal and share one program.
      lora: the adapter to train; None trains the weights themselves.
      dtype: the dtype of layers and activations. Trained weights have their own, usually float32.
      remat: which values are kept for the backward pass.
      attention: the kernel, from `llama.attention.resolve`; cuDNN's treats each row as one document.
      kl: the weight of KL(start || model) per target token in the loss.
      l2: the weight of half the squared distance to the start (L2-SP, Li et al. 2018, arXiv 1802.01483).
      chunk: the minimum number of target tokens per part whose logits are in memory at a time.

    Raises:
      BadInput: a number is out of range.
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
    """The training state, including the values that differ between runs of a grid; all arrays.

    Attributes:
      step: number of steps done, int32.
      trained: the trained leaves of Params, or an adapter, in the dtype in which updates are accumulated.
      opt_state: the state of `optimizer.adamw`.
      learning_rate: the peak of the schedule, in the dtype of the weights.
      steps: the number of steps of the whole run, at which the schedule ends, int32.
      seed: the dropout seed, uint32.
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
    """Metrics of a step, for the weights before the update.

    Attributes:
      loss: mean cross-entropy of the target tokens in nats.
      targets: number of target tokens.
      gradient_norm: norm of the gradient of the mean loss with penalties, before clipping.
      learning_rate: the learning rate of the step.
      kl: mean KL(start || model) of the target tokens in nats; 0 if it is not part of the loss.
      tokens: number of tokens without padding.
      computed: number of tokens, padding included, of the micro-batches that are not empty.
      attended: number of pairs of a token and a token that it attends to; float32, as it may be very large.
      rows: the sums of each row, [A, B]; they identify rows whose loss is not finite.
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
    """The state before the first step; under `jax.jit` with `sharding.state_shardings` it is created sharded."""
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
    """The summed loss of a batch [B, T] and the sums of its rows; with a `start` model also the divergence."""
    constrain, parts = ({}, 1) if layout is None else ({"constrain": layout.constrain}, layout.parts("batch"))
    shards = () if layout is None else (layout.map_shards,)
    attend = over_sequences(settings.attention, *shards)
    # cuDNN's rows hold one document each, so the causal mask already hides the padding at the end.
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
    """Takes one step on the mean loss over all target tokens of the batch, however it is divided into micro-batches.

    Args:
      state: the state before the step.
      frozen: the other leaves of Params (all of them with an adapter), preferably in the dtype of the computation.
      batch: arrays of [A, B, T]. Micro-batches are processed one after the other and their gradients summed in the
        weights' dtype. Empty micro-batches are skipped, except when the step is vmapped over runs.
      start: the initial values of the trained leaves, in any dtype; needed for `kl` and `l2` without an adapter. With
        an adapter, the start is the model without it.
      settings, config: settings of the step and the architecture (static under jit).
      layout: the layout of arrays on a mesh (static under jit); None for one device.

    Returns:
      The state after the step, and the metrics.
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
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes integer step counts and floats
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
    """The loss sums of each row of a batch [B, T], without dropout; arguments as in `step`."""
    return _losses(trained, frozen, batch, settings, config, layout)[1]


_STATIC = ("settings", "config", "layout")
train_step = jax.jit(step, static_argnames=_STATIC, donate_argnames="state")
evaluate_step = jax.jit(evaluate, static_argnames=_STATIC)
