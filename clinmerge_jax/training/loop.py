"""The training loop: steps, validation, checkpoints, interruption and resumption."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.errors import RunFailure
from clinmerge_jax.parallel import distributed
from clinmerge_jax.training.checkpoints import Checkpoints, abstract
from clinmerge_jax.training.log import TrainingLog
from clinmerge_jax.training.step import Metrics, TrainState

_LOG_SECONDS = 10.0
_LOSS, _VALIDATION = "loss", "validation_loss"


class Loader(Protocol):
    """A resumable iterator of batches; see `data.loader`."""

    def __next__(self) -> Batch:
        """This process's part of the next batch, [A, B, T]."""

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch, JSON-serialisable."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position from `get_state`."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """The schedule of the loop, in steps.

    Attributes:
      steps: the number of steps to take.
      save_every: the interval of saved states. 0 for none; states are also saved after each validation, at the end and
        on SIGTERM.
      validate_every: the interval of validations; 0 for the start and the end only.
      patience: training stops after this many validations without a new lowest loss; 0 for never.
    """

    steps: int
    save_every: int = 0
    validate_every: int = 0
    patience: int = 0

    def exhausted(self, worse: int) -> bool:
        """Whether this many validations without a new lowest loss end the training."""
        return 0 < self.patience <= worse


@dataclasses.dataclass(frozen=True)
class _Progress:
    """The validation history that is saved beside the state."""

    best: float | None = None
    best_step: int = 0
    worse: int = 0  # validations since the best


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: the state after the last step.
      step: the number of the last step.
      best_step: the step with the lowest validation loss; 0 without validation.
      stopped_early: whether training stopped because patience ran out.
    """

    state: TrainState
    step: int
    best_step: int
    stopped_early: bool


class Interrupted(RunFailure):
    """The process received SIGTERM and has saved its state."""


def train(
    state: TrainState,
    take: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    loader: Loader,
    settings: LoopSettings,
    checkpoints: Checkpoints | None = None,
    log: Callable[[int], TrainingLog | None] = lambda after: None,
    *,
    validate: Callable[[TrainState], float] | None = None,
    measures: Callable[[Metrics, float], dict[str, float]] = lambda metrics, seconds: {},
    name_rows: Callable[[Batch], str] = lambda rows: f"{len(rows.tokens)} rows",
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Outcome:
    """Trains from the last saved state, or from the start, to the last step.

    The metrics of a step are read after the next one was dispatched, so that devices do not wait for the host.

    Args:
      state: the initial state, on its devices; it is donated.
      take: takes one step.
      loader: yields this process's batches.
      settings: the schedule of the loop.
      checkpoints: the saved states of this run; None saves nothing.
      log: opens the log to continue after a given step; returns None for no log.
      validate: computes the validation loss.
      measures: further numbers for the log, from a step's metrics and its duration in seconds.
      name_rows: describes rows, [K, T], in messages.
      progress: called with each finished step and its loss.

    Raises:
      RunFailure: a loss is not finite; the message names the rows.
      Interrupted: after SIGTERM, once the state is saved.
    """
    done, state, known = _resume(state, loader, checkpoints)
    rows_log = log(done)
    pending: tuple[int, Metrics, Batch] | None = None
    clock = said = time.monotonic()

    def note(number: int, values: dict[str, float]) -> None:
        if rows_log is not None:
            rows_log.add(number, values)

    def settle() -> None:
        """Reads the metrics of the step that was dispatched last."""
        nonlocal pending, clock, said
        if pending is None:
            return
        number, metrics, batch = pending
        pending = None
        values = numbers(metrics)
        seconds, clock = time.monotonic() - clock, time.monotonic()
        if not math.isfinite(values[_LOSS]) or not math.isfinite(values["gradient_norm"]):
            raise RunFailure(not_finite(number, metrics, batch, name_rows))
        note(number, {**values, **measures(metrics, seconds)})
        progress(number, values[_LOSS])
        if clock - said > _LOG_SECONDS or number == settings.steps:
            logging.info("step %d of %d, loss %.4f", number, settings.steps, values[_LOSS])
            said = clock

    def save(number: int, loss: float | None) -> None:
        settle()  # checks the loss first, so no state with a non-finite loss is saved
        if checkpoints is None:
            return
        position = {"loader": loader.get_state(), **dataclasses.asdict(known)}
        checkpoints.save(number, state, position, loss)

    step, stopped = done, settings.exhausted(known.worse)
    try:
        if validate is not None and not done:
            note(0, {_VALIDATION: validate(state)})  # of the start, for comparison; never selected as the best
            clock = time.monotonic()
        with _told_to_stop() as told:
            while step < settings.steps and not stopped:
                step += 1
                batch = next(loader)
                state, metrics = take(state, batch)
                settle()
                pending = (step, metrics, batch)
                last, loss = step == settings.steps, None
                if validate is not None and (last or _due(step, settings.validate_every)):
                    settle()
                    loss = validate(state)
                    note(step, {_VALIDATION: loss})
                    logging.info("step %d of %d, validation loss %.4f", step, settings.steps, loss)
                    known = _judged(known, step, loss)
                    stopped = settings.exhausted(known.worse)
                    clock = time.monotonic()
                interrupted = told(step) and not (last or stopped)
                if last or stopped or interrupted or loss is not None or _due(step, settings.save_every):
                    save(step, loss)
                if interrupted:
                    raise Interrupted(
                        f"stopped after step {step} of {settings.steps}; run the same command again to continue"
                    )
    finally:
        with rows_log or contextlib.nullcontext():  # closes the log even if the last state cannot be written
            if checkpoints is not None:
                checkpoints.wait()
    return Outcome(state, step, known.best_step, step < settings.steps)


def _resume(state: TrainState, loader: Loader, checkpoints: Checkpoints | None) -> tuple[int, TrainState, _Progress]:
    """Restores the progress of the run.

    1. If a step was saved: take its state, the loader's position and the validation history.
    2. Otherwise: begin at the start.
    """
    step = None if checkpoints is None else checkpoints.latest()
    if step is None:
        logging.info("training from the start")
        return 0, state, _Progress()
    logging.info("continuing after step %d", step)
    state, position = checkpoints.restore(step, abstract(state))
    loader.set_state(position.pop("loader"))
    return step, state, _Progress(**position)


def _due(number: int, every: int) -> bool:
    return bool(every) and number % every == 0


def _judged(known: _Progress, number: int, loss: float) -> _Progress:
    if math.isfinite(loss) and (known.best is None or loss <= known.best):  # Orbax too keeps the last of equals
        return _Progress(loss, number, 0 if known.best is None or loss < known.best else known.worse + 1)
    return dataclasses.replace(known, worse=known.worse + 1)


def numbers(metrics: Metrics) -> dict[str, float]:
    """The metrics of a step that go into the log."""
    return {name: float(getattr(metrics, name)) for name in (_LOSS, "targets", "gradient_norm", "learning_rate", "kl")}


def not_finite(number: int, metrics: Metrics, batch: Batch, name_rows: Callable[[Batch], str]) -> str:
    """The error message for a step whose loss or gradient is not finite.

    Args:
      number: the number of the step.
      metrics: its metrics.
      batch: this process's part of its batch.
      name_rows: describes rows, [K, T].
    """
    losses = np.asarray(multihost_utils.process_allgather(metrics.rows.cross_entropy, tiled=True)).reshape(-1)
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), batch)
    where = "the gradient is not finite though every row's loss is"
    if not np.isfinite(losses).all():
        found = ~np.isfinite(losses)
        whole = len(rows.tokens) == len(losses)
        named = name_rows(jax.tree.map(lambda leaf: leaf[found], rows)) if whole else f"{found.sum()} rows"
        where = f"the loss of {named} is not finite"
    return f"step {number}: {where}; lower config.learning_rate, or leave these rows out"


@contextlib.contextmanager
def _told_to_stop() -> Iterator[Callable[[int], bool]]:
    """Yields a function that tells after each step whether all processes stop because one received SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # other threads cannot catch signals
        yield lambda step: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda step: distributed.all_stop(step, came.is_set())
    finally:
        signal.signal(signal.SIGTERM, before)
