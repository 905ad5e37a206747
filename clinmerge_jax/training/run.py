"""A training run for the loop: its state on the mesh, batches, validation and measurements."""

import dataclasses
import functools
import resource
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.loader import load, local_rows
from clinmerge_jax.data.sequences import Sequences
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.training.batching import Batching, course, plan_courses, plan_groups
from clinmerge_jax.training.flops import peak_flops, step_flops
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import adamw
from clinmerge_jax.training.sharding import state_shardings
from clinmerge_jax.training.step import (
    Metrics,
    StepSettings,
    TrainState,
    evaluate_step,
    init_state,
    train_step,
)
from clinmerge_jax.training.weights import split


class Run:
    """A training run of one model on one set of sequences.

    Args:
      layout: the model's layout on the mesh.
      settings: the settings of the steps.
      data: the sequences to learn.
      rows: how a step takes the sequences.
      seed: the seed of the training order.

    Attributes:
      plan: the batch shapes.
      planned: a line that describes the batch shapes.

    Raises:
      BadInput: the mesh does not divide the rows evenly.
    """

    def __init__(self, layout: Layout, settings: StepSettings, data: Sequences, rows: Batching, seed: int = 0):
        self.layout = layout
        self.settings = settings
        self._rows = rows
        self._course = course(data, rows, settings.steps, seed)
        self.plan, self.planned = plan_courses([self._course], rows, layout, settings)
        self.frozen: Params = {}  # the frozen leaves, in the dtype of the computation
        self._start: Params | None = None

    def begin(self, params: Params, frozen: frozenset[tuple[str, ...]] = frozenset(), seed: int = 0) -> TrainState:
        """Makes the state before the first step, and keeps the frozen leaves.

        Args:
          params: the model, in float32 for full fine-tuning, in the dtype of the computation with an adapter; its
            arrays are donated.
          frozen: the leaves that are not trained.
          seed: the seed of adapter initialisation and dropout.
        """
        given, self.frozen, self._start = divide(params, self.layout.config, self.settings, frozen)
        steps = np.int32(self.settings.steps)
        return _begin(given, np.uint32(seed), steps, settings=self.settings, layout=self.layout)

    def loader(self) -> Any:
        """An iterator of this process's batches, starting at the first step; see `data.loader.load`."""
        one = self._course
        return load(
            one.sequences,
            one.numbers,
            self.plan,
            one.steps,
            one.batch_size,
            functools.partial(local_rows, self.layout.named("batch")),
        )

    def take(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one step."""
        return train_step(
            state, self.frozen, self._place(batch), self._start,
            settings=self.settings, config=self.layout.config, layout=self.layout,
        )  # fmt: skip

    def _place(self, batch: Batch) -> Batch:
        """Makes a global batch from this process's part, [A, B, T]."""
        sharding, parts = self.layout.named(None, "batch", None), self.layout.parts("batch")
        held = local_rows(self.layout.named("batch"), parts)

        def place(local: np.ndarray) -> jax.Array:
            micro_batches, rows, tokens = local.shape
            shape = (micro_batches, rows * parts // (held.stop - held.start), tokens)
            return jax.make_array_from_process_local_data(sharding, local, shape)

        return jax.tree.map(place, batch)

    def loss(self, data: Sequences) -> Callable[[TrainState], float]:
        """A function from a state to its mean loss on the target tokens of `data`, in nats."""
        batches = batches_of(data, self._rows, self.settings, self.layout)
        return lambda state: mean_loss(state.trained, self.frozen, batches, self.settings, self.layout)

    def measures(self, metrics: Metrics, seconds: float) -> dict[str, float]:
        """Speed and memory of a step; see `measures`."""
        return measures(metrics, seconds, self.settings, self.layout)


def divide(
    params: Params, config: LlamaConfig, settings: StepSettings, frozen: frozenset[tuple[str, ...]] = frozenset()
) -> tuple[Params, Params, Params | None]:
    """Divides a model into the arguments of `step`.

    Args:
      params: the model, in float32 for full fine-tuning, in the dtype of the computation with an adapter.
      config: its architecture.
      settings: the settings of the steps.
      frozen: the leaves that full fine-tuning leaves untrained; not used with an adapter.

    Returns:
      The trained leaves (none with an adapter), the frozen leaves, and a copy of the trained leaves as the start, or
      None if the loss does not need it.
    """
    if settings.lora is not None:
        return {}, params, None
    dtype, start = settings.dtype, None
    trained, still = split(params, config, frozen)
    if settings.kl or settings.l2:
        # Copy even in the same dtype, because the trained leaves are donated.
        start = jax.tree.map(lambda leaf: jnp.array(leaf, dtype if settings.kl else leaf.dtype), trained)
    return trained, jax.tree.map(lambda leaf: leaf.astype(dtype), still), start


def first_state(
    trained: Params, config: LlamaConfig, settings: StepSettings, seed: jax.Array, steps: jax.Array
) -> TrainState:
    """The state before the first step.

    Args:
      trained: the trained leaves from `divide`.
      config, settings: the model's architecture and the settings of the steps.
      seed: the seed of adapter initialisation and dropout, uint32.
      steps: the number of steps of the run, int32. The number in the settings is not used, so that one program serves
        runs of any length.
    """
    if settings.lora is not None:
        trained = init_adapter(config, settings.lora, jax.random.key(seed))
    return dataclasses.replace(init_state(trained, settings, seed), steps=steps)


@functools.partial(jax.jit, static_argnames=("settings", "layout"), donate_argnames="given")
def _begin(given: Params, seed: jax.Array, steps: jax.Array, *, settings: StepSettings, layout: Layout) -> TrainState:
    state = first_state(given, layout.config, settings, seed, steps)
    return jax.lax.with_sharding_constraint(state, state_shardings(state, adamw(settings.optimizer), layout))


def batches_of(data: Sequences, rows: Batching, settings: StepSettings, layout: Layout) -> list[Batch]:
    """Batches of [A, B, T] in a few shapes that contain every sequence once."""
    plan, groups = plan_groups(data, rows, layout, settings)
    return [plan.batch(data, group) for group in groups]


def mean_loss(
    trained: Params, frozen: Params, batches: Sequence[Batch], settings: StepSettings, layout: Layout
) -> float:
    """The mean loss on the target tokens of batches, in nats.

    Args:
      trained, frozen: the leaves of the model.
      batches: from `batches_of`.
      settings, layout: those of the model's runs.
    """
    total = count = 0.0
    for batch in batches:
        for index in np.flatnonzero(batch.segments.any(axis=(1, 2))):
            placed = jax.tree.map(lambda leaf: layout.put(leaf[index], "batch", None), batch)  # noqa: B023
            found = evaluate_step(trained, frozen, placed, settings=settings, config=layout.config, layout=layout)
            total += float(jnp.sum(found.cross_entropy))
            count += float(jnp.sum(found.targets))
    return total / count


def measures(metrics: Metrics, seconds: float, settings: StepSettings, layout: Layout) -> dict[str, float]:
    """Speed and memory of a step.

    Args:
      metrics: the metrics of the step.
      seconds: the duration of the step.
      settings, layout: those of the run.

    Returns:
      `tokens_per_second` without padding; `not_padding`, the share of computed tokens that are not padding;
      `flops_per_second`, the operations that these tokens need; `mfu`, their share of the devices' peak, where that is
      known; `peak_bytes` of memory, of the device or on CPUs of the process.
    """
    tokens, needed = int(metrics.tokens), {"frozen": settings.lora is not None, "predicted": int(metrics.targets)}
    flops = step_flops(layout.config, tokens, int(metrics.attended), **needed) / seconds
    found = {
        "tokens_per_second": tokens / seconds,
        "not_padding": tokens / int(metrics.computed),
        "flops_per_second": flops,
    }
    peak = peak_flops(layout.device)
    if peak is not None:
        found["mfu"] = flops / (peak * layout.mesh.size)
    statistics = layout.device.memory_stats() if layout.device.platform != "cpu" else None
    found["peak_bytes"] = (statistics or {}).get("peak_bytes_in_use") or _resident_bytes()
    return found


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def name_rows(data: Sequence[Sequences], ids: Sequence[Sequence[str]]) -> Callable[[Batch], str]:
    """A function from rows, [K, T], to a text with the ids of the documents in them.

    Args:
      data: the sets that rows come from.
      ids: for each set, the document id of every segment of every sequence.
    """

    @functools.cache
    def known() -> dict[bytes, str]:
        pairs = (zip(one.split(), names, strict=True) for one, names in zip(data, ids, strict=True))
        return {tokens.tobytes(): name for some in pairs for tokens, name in some}

    def name(rows: Batch) -> str:
        found = []
        for tokens, segments in zip(rows.tokens, rows.segments):
            inside = [tokens[segments == segment] for segment in range(1, segments.max(initial=0) + 1)]
            found.append(", ".join(dict.fromkeys(known()[one.tobytes()] for one in inside)))
        return "the rows with " + "; ".join(found)

    return name
