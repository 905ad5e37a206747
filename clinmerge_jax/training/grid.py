"""Train many runs of one model in one program: `step` vmapped over runs with their own data, seed, rate and length.

There are S slots, each with one run. The longest runs start first, and a finished run's slot goes to the next. So one
program is compiled whatever the runs' lengths, memory does not grow with their number, and steps are wasted only at the
very end, when no run is left to fill a slot. All batches have one shape, planned from all runs of the grid, including
finished ones. So a run's results depend on S and that shape but not on the runs in the other slots, nor on which runs
an earlier process finished.

A micro-batches, B rows of each, T tokens.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.loader import load
from clinmerge_jax.data.sequences import Sequences
from clinmerge_jax.errors import BadInput, RunFailure
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh
from clinmerge_jax.training.batching import Batching, course, plan_courses
from clinmerge_jax.training.loop import not_finite, numbers
from clinmerge_jax.training.run import batches_of, divide, first_state, mean_loss, measures
from clinmerge_jax.training.step import Metrics, StepSettings, TrainState, step

_EACH = 8  # default number of slots per device
_RUNS, _WHOLE = PartitionSpec("data"), PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a grid.

    Attributes:
      name: its name, for messages.
      data: the sequences to learn.
      steps: the number of steps.
      seed: the seed of its training order, adapter initialisation and dropout.
      learning_rate: the peak learning rate.
      name_rows: describes rows of its batches, [K, T], in messages.
    """

    name: str
    data: Sequences
    steps: int
    seed: int
    learning_rate: float
    name_rows: Callable[[Batch], str] = lambda rows: f"{len(rows.tokens)} rows"


@dataclasses.dataclass
class _Going:
    """A member that occupies a slot."""

    member: Member
    batches: Any
    taken: int = 0
    failed: bool = False
    log: list[dict[str, float]] = dataclasses.field(default_factory=list)


Finish = Callable[[Member, Params, list[dict[str, float]]], None]


def replicas(config: LlamaConfig, devices: int = 0) -> Layout:
    """The layout of a grid: every device holds the whole model and trains its own runs.

    Args:
      config: the model.
      devices: the number of devices; 0 for all.

    Raises:
      BadInput: there are fewer devices.
    """
    found = jax.local_devices()
    if not 0 <= devices <= len(found):
        raise BadInput(f"config.mesh.data: is {devices} with {len(found)} devices; give their number, or 0 for all")
    count = devices or len(found)
    return Layout(build_mesh(MeshShape(count, 1, 1), found[:count]), config)


class Grid:
    """A grid of runs that differ only in the attributes of `Member`.

    Args:
      layout: from `replicas`.
      settings: the settings of every run's steps; their number of steps and learning rate are not used.
      rows: how a step takes its sequences.
      slots: S, the number of runs trained at a time.
      members: all runs of the grid; `train` is given those to train.

    Attributes:
      planned: a line that describes the batch shape.

    Raises:
      BadInput: the slots cannot be divided evenly among the devices.
    """

    def __init__(self, layout: Layout, settings: StepSettings, rows: Batching, slots: int, members: Sequence[Member]):
        if slots < 1 or slots % layout.mesh.size:
            raise BadInput(
                f"config.grid.at_once: {slots} runs cannot be shared by {layout.mesh.size} devices; give a multiple, or"
                " 0 to have it picked"
            )
        self.layout = layout
        self.settings = settings
        self.slots = slots
        self._rows = rows
        self._alone = one_device(layout.config)
        courses = [course(member.data, rows, member.steps, member.seed) for member in members]
        self._plan, self.planned = plan_courses(courses, rows, self._alone, settings, together=True)
        self._given: Params = {}
        self._frozen: Params = {}
        self._start: Params | None = None

    def begin(self, params: Params, frozen: frozenset[tuple[str, ...]] = frozenset()) -> None:
        """Sets the model that every run starts from.

        Args:
          params: as in `Run.begin`, replicated on every device.
          frozen: the leaves that are not trained.
        """
        self._given, self._frozen, self._start = divide(params, self.layout.config, self.settings, frozen)

    def train(
        self,
        members: Sequence[Member],
        finish: Finish,
        progress: Callable[[int, float], None] = lambda steps, loss: None,
    ) -> dict[str, str]:
        """Trains the members and calls `finish` for each when it is done.

        Metrics are read, and `finish` is called, after the next step was dispatched.

        Args:
          members: the runs to train.
          finish: receives a member, its trained leaves on one device, and its log with one row per step. A RunFailure
            that it raises fails only this run.
          progress: called with the number of runs that took a step, and their mean loss.

        Returns:
          One line for each failed run, by run name; the other runs continue.
        """
        waiting = collections.deque(sorted(members, key=lambda member: -member.steps))
        going: list[_Going | None] = [None] * self.slots
        states = _same_states(
            self._given, config=self.layout.config, settings=self.settings, slots=self.slots, mesh=self.layout.mesh
        )
        failures: dict[str, str] = {}
        clock = time.monotonic()

        def settle(metrics: Metrics, taken: dict[int, tuple[_Going, int, Batch]], done: dict[int, Params]) -> None:
            """Reads the metrics of a step, and finishes the runs whose last step it was."""
            nonlocal clock
            metrics = jax.device_get(metrics)
            seconds, losses = time.monotonic() - clock, []
            for slot, (run, number, batch) in taken.items():
                if run.failed:
                    continue
                own = jax.tree.map(lambda leaf: leaf[slot], metrics)  # noqa: B023
                values = numbers(own)
                losses.append(values["loss"])
                try:
                    if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
                        raise RunFailure(not_finite(number, own, batch, run.member.name_rows))
                    found = measures(own, seconds, self.settings, self.layout)
                    run.log.append({"step": number, **values, **found})
                    if slot in done:
                        finish(run.member, done[slot], run.log)
                except RunFailure as error:
                    run.failed = True
                    failures[run.member.name] = f"{run.member.name}: {error}"
            progress(len(losses), float(np.mean(losses)) if losses else math.nan)
            clock = time.monotonic()

        pending: tuple[Metrics, dict[int, tuple[_Going, int, Batch]], dict[int, Params]] | None = None
        while True:
            for slot, run in enumerate(going):
                if (run is None or run.failed) and waiting:
                    going[slot], states = self._enter(waiting.popleft(), states, slot)
                elif run is not None and run.failed:
                    going[slot] = None
            taken = {}
            for slot, run in enumerate(going):
                if run is not None:
                    run.taken += 1
                    taken[slot] = (run, run.taken, next(run.batches))
            if not taken:
                break
            states, metrics = grid_step(
                states, self._frozen, self._stack({slot: batch for slot, (_, _, batch) in taken.items()}), self._start,
                settings=self.settings, config=self.layout.config, mesh=self.layout.mesh,
            )  # fmt: skip
            done = {}
            for slot, (run, number, _) in taken.items():
                if number == run.member.steps:
                    done[slot] = jax.device_put(_trained_of(states, np.int32(slot)), self._alone.named())
                    going[slot] = None
            if pending is not None:
                settle(*pending)
            pending = metrics, taken, done
        if pending is not None:
            settle(*pending)
        return failures

    def loss(self, trained: Params, data: Sequences) -> float:
        """The mean loss of a finished run on the target tokens of sequences, in nats."""
        frozen = jax.device_put(self._frozen, self._alone.named())
        batches = batches_of(data, self._rows, self.settings, self._alone)
        return mean_loss(trained, frozen, batches, self.settings, self._alone)

    def _enter(self, member: Member, states: TrainState, slot: int) -> tuple[_Going, TrainState]:
        one = course(member.data, self._rows, member.steps, member.seed)
        batches = load(one.sequences, one.numbers, self._plan, one.steps, one.batch_size)
        states = _enter(
            states, self._given, np.int32(slot), np.uint32(member.seed), np.int32(member.steps),
            np.float32(member.learning_rate), config=self.layout.config, settings=self.settings,
        )  # fmt: skip
        return _Going(member, batches), states

    def _stack(self, by_slot: dict[int, Batch]) -> Batch:
        """Stacks the batches of all slots, [S, A, B, T], on their devices; the batch of a free slot is empty."""
        empty = jax.tree.map(np.zeros_like, next(iter(by_slot.values())))
        batches = [by_slot.get(slot, empty) for slot in range(self.slots)]
        sharding = NamedSharding(self.layout.mesh, _RUNS)
        return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves), sharding), *batches)


def pick_slots(runs: int, devices: int) -> int:
    """The default number of slots of a grid: eight per device, or fewer if there are fewer runs."""
    return devices * max(1, min(_EACH, -(-runs // devices)))


@functools.partial(jax.jit, static_argnames=("settings", "config", "mesh"), donate_argnames="states")
def grid_step(
    states: TrainState,
    frozen: Params,
    batches: Batch,
    start: Params | None = None,
    *,
    settings: StepSettings,
    config: LlamaConfig,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    """Takes one step of every run, without communication between devices.

    Args:
      states: stacked states, [S, ...].
      frozen, start: as in `step`, shared by all runs.
      batches: arrays of [S, A, B, T].
      settings, config: as in `step`.
      mesh: the device mesh; its data axis shards the slots.

    Returns:
      The results of `step`, stacked.
    """
    every = jax.vmap(functools.partial(step, settings=settings, config=config), in_axes=(0, None, 0, None))
    specs = (_RUNS, _WHOLE, _RUNS, _WHOLE)
    share = jax.shard_map(every, mesh=mesh, in_specs=specs, out_specs=_RUNS, check_vma=False)
    return share(states, frozen, batches, start)


@functools.partial(jax.jit, static_argnames=("config", "settings", "slots", "mesh"))
def _same_states(given: Params, *, config: LlamaConfig, settings: StepSettings, slots: int, mesh: Mesh) -> TrainState:
    state = first_state(given, config, settings, jnp.uint32(0), jnp.int32(1))
    return jax.lax.with_sharding_constraint(
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), state), NamedSharding(mesh, _RUNS)
    )


@functools.partial(jax.jit, static_argnames=("config", "settings"), donate_argnames="states")
def _enter(
    states: TrainState,
    given: Params,
    slot: jax.Array,
    seed: jax.Array,
    steps: jax.Array,
    learning_rate: jax.Array,
    *,
    config: LlamaConfig,
    settings: StepSettings,
) -> TrainState:
    """Puts the initial state of a run into a slot."""
    fresh = first_state(given, config, settings, seed, steps)
    fresh = dataclasses.replace(fresh, learning_rate=learning_rate.astype(fresh.learning_rate.dtype))

    def put(leaf: jax.Array, one: jax.Array) -> jax.Array:
        here = (jnp.arange(len(leaf)) == slot).reshape(-1, *[1] * one.ndim)
        return jnp.where(here, one, leaf)

    return jax.tree.map(put, states, fresh)


@jax.jit
def _trained_of(states: TrainState, slot: jax.Array) -> Params:
    """The trained leaves of the run in a slot."""
    return jax.tree.map(lambda leaf: leaf[slot], states.trained)
