"""A training run as the loop takes it: the state and its place on the mesh, its batches, its validation."""

import dataclasses
import functools
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.loader import load, local_rows
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.training.flops import peak_flops, step_flops
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import adamw
from clinmerge_jax.training.sharding import state_shardings
from clinmerge_jax.training.step import Metrics, StepSettings, TrainState, evaluate_step, init_state, train_step
from clinmerge_jax.training.weights import split


@dataclasses.dataclass(frozen=True)
class Rows:
    """How a step's rows are taken.

    Attributes:
      batch_size: rows of a step, over all processes.
      micro_batch: rows at a time; 0 for all.
      replay: further rows that are mixed in, [M, T].
      replay_share: how much of each step they are.

    Raises:
      BadInput: a number is out of its range.
    """

    batch_size: int
    micro_batch: int = 0
    replay: Batch | None = None
    replay_share: float = 0.0

    def __post_init__(self):
        if self.batch_size < 1:
            raise BadInput(f"config.batch_size: is {self.batch_size}; give 1 or more")
        if self.micro_batch < 0 or (self.micro_batch and self.batch_size % self.micro_batch):
            raise BadInput(
                f"config.micro_batch: {self.micro_batch} does not divide config.batch_size ({self.batch_size}); give a"
                " divisor, or 0 for all rows at a time"
            )
        if self.replay is not None and not 0 < self.replay_share < 1:
            raise BadInput(f"config.replay.share: is {self.replay_share}; give a share between 0 and 1")

    @property
    def at_a_time(self) -> int:
        """Rows of a micro-batch."""
        return self.micro_batch or self.batch_size


class Run:
    """One model, how it is trained, and on what.

    Args:
      layout: how the model lies.
      settings: of the steps.
      data: what is learned, [N, T].
      rows: how a step takes them.
      seed: of the order.

    Raises:
      BadInput: the mesh does not cut the rows evenly.
    """

    def __init__(self, layout: Layout, settings: StepSettings, data: Batch, rows: Rows, seed: int = 0):
        parts = layout.parts("batch")
        if rows.at_a_time % parts:
            field = "micro_batch" if rows.micro_batch else "batch_size"
            raise BadInput(
                f"config.{field}: {rows.at_a_time} rows cannot be cut into the mesh's {parts} parts; give a multiple"
            )
        self.layout = layout
        self.settings = settings
        self._rows = rows
        self._data = data
        self._seed = seed
        self._frozen: Params = {}
        self._start: Params | None = None

    def begin(self, params: Params, frozen: frozenset[tuple[str, ...]] = frozenset(), seed: int = 0) -> TrainState:
        """The state before the first step; keeps what is not trained.

        Args:
          params: the model, in float32 where its weights are trained, and in the dtype of the computation with an
            adapter; its arrays are given away.
          frozen: leaves that stay as they are.
          seed: of the adapter's start and of dropout.
        """
        given, self._frozen, self._start = divide(params, self.layout.config, self.settings, frozen)
        steps = np.int32(self.settings.steps)
        return _begin(given, np.uint32(seed), steps, settings=self.settings, layout=self.layout)

    @property
    def frozen(self) -> Params:
        """The leaves that are not trained, in the dtype of the computation."""
        return self._frozen

    def loader(self) -> Any:
        """This process's batches, from the first step on; see `data.loader.load`."""
        at_a_time = self._rows.at_a_time
        return load(
            self._data,
            self.settings.steps,
            at_a_time,
            self._rows.batch_size // at_a_time,
            self._seed,
            local_rows(self.layout.named("batch"), at_a_time),
            self._rows.replay,
            self._rows.replay_share,
        )

    def take(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step."""
        placed = self._place(batch, self._rows.at_a_time)
        return train_step(
            state, self._frozen, placed, self._start,
            settings=self.settings, config=self.layout.config, layout=self.layout,
        )  # fmt: skip

    def _place(self, batch: Batch, rows: int) -> Batch:
        """A process's part of a batch, [A, B, T], as a global one."""
        sharding = self.layout.named(None, "batch", None)

        def place(local: np.ndarray) -> jax.Array:
            shape = (local.shape[0], rows, local.shape[2])
            return jax.make_array_from_process_local_data(sharding, local, shape)

        return jax.tree.map(place, batch)

    def loss(self, data: Batch) -> Callable[[TrainState], float]:
        """A function that gives the mean loss of a state in nats on the target tokens of rows, [N, T]."""
        return lambda state: mean_loss(
            state.trained, self._frozen, data, self._rows.at_a_time, self.settings, self.layout
        )

    def measures(self, batch: Batch, seconds: float) -> dict[str, float]:
        """Of a step with this process's part of a batch: tokens and operations a second, and memory in bytes."""
        return measures(batch, seconds, self.settings, self.layout)


def divide(
    params: Params, config: LlamaConfig, settings: StepSettings, frozen: frozenset[tuple[str, ...]] = frozenset()
) -> tuple[Params, Params, Params | None]:
    """A model as `step` takes it.

    Args:
      params: the model, in float32 where its weights are trained, and in the dtype of the computation with an adapter.
      config: its architecture.
      settings: of the steps.
      frozen: leaves that stay as they are where there is no adapter.

    Returns:
      What is trained (nothing, with an adapter), what is not, and the start where the loss asks for it.
    """
    if settings.lora is not None:
        return {}, params, None
    dtype, start = settings.dtype, None
    trained, still = split(params, config, frozen)
    if settings.kl or settings.l2:
        # A copy even of the same dtype: the trained leaves are given away.
        start = jax.tree.map(lambda leaf: jnp.array(leaf, dtype if settings.kl else leaf.dtype), trained)
    return trained, jax.tree.map(lambda leaf: leaf.astype(dtype), still), start


def first_state(
    trained: Params, config: LlamaConfig, settings: StepSettings, seed: jax.Array, steps: jax.Array
) -> TrainState:
    """The state before the first step.

    Args:
      trained: the first part of `divide`.
      config, settings: of the model and its steps.
      seed: of the adapter's start and of dropout, uint32.
      steps: of the run, int32; what the settings say of it is not used, so that one program serves runs of any length.
    """
    if settings.lora is not None:
        trained = init_adapter(config, settings.lora, jax.random.key(seed))
    return dataclasses.replace(init_state(trained, settings, seed), steps=steps)


@functools.partial(jax.jit, static_argnames=("settings", "layout"), donate_argnames="given")
def _begin(given: Params, seed: jax.Array, steps: jax.Array, *, settings: StepSettings, layout: Layout) -> TrainState:
    state = first_state(given, layout.config, settings, seed, steps)
    return jax.lax.with_sharding_constraint(state, state_shardings(state, adamw(settings.optimizer), layout))


def mean_loss(trained: Params, frozen: Params, data: Batch, size: int, settings: StepSettings, layout: Layout) -> float:
    """The mean loss in nats on the target tokens of rows, [N, T].

    Args:
      trained, frozen: of the model.
      data: the rows.
      size: how many are taken at a time.
      settings, layout: of the model's runs.
    """

    def pieces() -> Iterator[Batch]:
        for start in range(0, len(data.tokens), size):
            piece = jax.tree.map(lambda leaf: leaf[start : start + size], data)  # noqa: B023
            missing = size - len(piece.tokens)
            yield jax.tree.map(lambda leaf: np.pad(leaf, ((0, missing), (0, 0))), piece)  # noqa: B023

    total = count = 0.0
    for piece in pieces():
        placed = jax.tree.map(lambda leaf: layout.put(leaf, "batch", None), piece)
        found = evaluate_step(trained, frozen, placed, settings=settings, config=layout.config, layout=layout)
        total += float(jnp.sum(found.cross_entropy))
        count += float(jnp.sum(found.targets))
    return total / count


def measures(batch: Batch, seconds: float, settings: StepSettings, layout: Layout) -> dict[str, float]:
    """Of a step with this process's part of a batch: tokens and operations a second, and memory in bytes.

    The other parts are taken to be as full as this one.
    """
    inside = batch.segments > 0
    held = local_rows(layout.named("batch"), layout.parts("batch"))
    shares = layout.parts("batch") / (held.stop - held.start)
    tokens = int(inside.sum()) * shares
    attended = int((batch.positions[inside] + 1).sum()) * shares
    flops = step_flops(layout.config, tokens, attended, frozen=settings.lora is not None) / seconds
    found = {"tokens_per_second": tokens / seconds, "flops_per_second": flops}
    peak = peak_flops(layout.device)
    if peak is not None:
        found["mfu"] = flops / (peak * layout.mesh.size)
    statistics = layout.device.memory_stats() if layout.device.platform != "cpu" else None
    found["peak_bytes"] = (statistics or {}).get("peak_bytes_in_use") or _resident_bytes()
    return found


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def name_rows(data: Sequence[Batch], contents: Sequence[Sequence[str]]) -> Callable[[np.ndarray], str]:
    """A function that gives rows of tokens, [K, T], the ids of the documents in them.

    Args:
      data: the sets that rows come from, [N, T] each.
      contents: the ids in each row, of all sets one after the other.
    """

    def name(tokens: np.ndarray) -> str:
        everything = np.concatenate([one.tokens for one in data])
        found = [int(np.flatnonzero((everything == row).all(axis=1))[0]) for row in tokens]
        return "the rows with " + "; ".join(", ".join(contents[row]) for row in found)

    return name
