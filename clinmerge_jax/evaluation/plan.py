"""What an evaluation is to do: one cell for each model, task, way of asking and seed."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation import scoring
from clinmerge_jax.evaluation.answering import GENERATED, LETTERS
from clinmerge_jax.evaluation.metrics import Metric
from clinmerge_jax.evaluation.questions import Questions
from clinmerge_jax.evaluation.results import Cell, key_of
from clinmerge_jax.evaluation.systems import System
from clinmerge_jax.evaluation.tasks.task import Kind

_MODES = (LETTERS, GENERATED)
# What shapes an answer, beside the model and the questions.
SHAPING = (
    "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "dtype", "int8_weights",
    "int8_cache", "attention", "too_long", "length", "slots",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Planned:
    """A cell that is to be made.

    Attributes:
      key: of its Result.
      cell: what it is of.
      system: that answers.
      questions: that are asked.
      metrics: by which answers are scored.
    """

    key: str
    cell: Cell
    system: System
    questions: Questions
    metrics: Sequence[Metric]


def check(config: ConfigDict, systems: Sequence[System], questions: Sequence[Questions]) -> None:
    """Refuses fields that do not fit one another.

    Raises:
      BadInput: naming the field.
    """
    modes = _modes(config)
    for mode in modes:
        if mode not in _MODES or modes.count(mode) > 1:
            raise BadInput(f"config.choices: {config.choices!r} is unknown; give letters, generated, or both")
    if config.limit < 0:
        raise BadInput(f"config.limit: is {config.limit}; give how many items, or 0 for all")
    if config.draws < 0:
        raise BadInput(f"config.draws: is {config.draws}; give how often to resample, or 0 for t-intervals")
    if config.human_sheet and not config.save_generations:
        raise BadInput("config.human_sheet: needs the answers; set config.save_generations=True too")
    names = {system.name for system in systems}
    if config.compare_to and config.compare_to not in names:
        raise BadInput(f"config.compare_to: {config.compare_to!r} is no model; there are {', '.join(sorted(names))}")
    taken = {scoring.COPY, scoring.FIXED, scoring.ANOTHER, scoring.LEAD, scoring.RANDOM, scoring.FREQUENT,
             scoring.REFERENCE, scoring.NOTHING}  # fmt: skip
    for name in names & taken:
        raise BadInput(f"config.model: {name!r} is the name of a floor; give the model another one")
    for one in questions:
        one.shots(config.shots, 0)


def _modes(config: ConfigDict) -> list[str]:
    return [mode.strip() for mode in config.choices.split(",")]


def _seeds(config: ConfigDict) -> list[int]:
    try:
        seeds = [int(seed) for seed in str(config.seeds).split(",")]
    except ValueError as error:
        raise BadInput(f"config.seeds: {config.seeds!r} is no list of whole numbers; give such as 0,1,2") from error
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"config.seeds: {config.seeds!r} names a seed twice; name each once")
    return seeds


def plan(config: ConfigDict, systems: Sequence[System], questions: Sequence[Questions]) -> Iterator[Planned]:
    """The cells, model by model. Without examples and draws other seeds would answer the same, so one is taken.

    Args:
      config: of the job.
      systems: that are asked.
      questions: that they are asked.
    """
    seeds = _seeds(config)
    for system, one in itertools.product(systems, questions):
        task = one.task
        modes = _modes(config) if task.kind is Kind.CHOICE and system.checkpoint is not None else [GENERATED]
        for mode in modes:
            chat = config.chat_template if task.chat is None else task.chat
            drawn = config.shots > 0 or (config.temperature > 0 and mode == GENERATED)
            stored = system.checkpoint is None
            for seed in seeds if drawn and not stored else seeds[:1]:
                cell = Cell(
                    system.name, system.seed, one.name, mode, chat and not stored, 0 if stored else config.shots, seed
                )
                metrics = scoring.metrics_of(task, mode == GENERATED, one.extra)
                identity = {
                    "cell": dataclasses.asdict(cell),
                    "system": system.fingerprint(one.name),
                    "questions": one.digest(),
                    "form": dataclasses.asdict(task.form),
                    "stop": list(task.stop),
                    "new_tokens": task.max_new_tokens,
                    "metrics": {metric.name: metric.signature for metric in metrics},
                    "shaping": None if stored else {name: config[name] for name in SHAPING},
                }
                yield Planned(key_of(identity), cell, system, one, metrics)
