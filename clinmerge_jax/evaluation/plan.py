"""Plans an evaluation: one cell for each model, task, way of answering and seed."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation import choices, scoring
from clinmerge_jax.evaluation.answering import GENERATED, LETTERS
from clinmerge_jax.evaluation.composed import EITHER
from clinmerge_jax.evaluation.systems import System
from clinmerge_jax.evaluation.task_data import TaskData
from clinmerge_jax.metrics import Metric
from clinmerge_jax.results.records import COMPUTED, Cell, key_of
from clinmerge_jax.tasks.task import Kind

_MODES = (LETTERS, GENERATED)
# Config fields besides `COMPUTED` that shape an answer: those of generated answers, and those of sampled ones.
_WRITTEN = ("max_new_tokens", "repetition_penalty")
_DRAWN = ("temperature", "top_k", "top_p", "seed")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A planned cell.

    Attributes:
      key: the key of its Result.
      answers: a digest of everything that determines the answers; it does not depend on the metrics.
      cell: the cell.
      system: the system that answers.
      questions: the task data.
      metrics: the metrics that score the answers.
      settings: the config fields that shape the answers.
    """

    key: str
    answers: str
    cell: Cell
    system: System
    questions: TaskData
    metrics: Sequence[Metric]
    settings: dict[str, Any]


def check(config: ConfigDict, systems: Sequence[System], questions: Sequence[TaskData]) -> None:
    """Checks that the config fields fit one another, the systems and the tasks.

    Raises:
      BadInput: naming the field.
    """
    modes = _modes(config)
    for mode in modes:
        if mode not in _MODES or modes.count(mode) > 1:
            raise BadInput(f"config.choices: {config.choices!r} is unknown; give letters, generated, or both")
    for field in ("limit", "human_sheet", "shots", "length", "max_new_tokens"):
        if config[field] < 0:
            raise BadInput(f"config.{field}: is {config[field]}; give a whole number from 0 on")
    if config.draws < 0 or 0 < config.draws < 1000:
        raise BadInput(f"config.draws: is {config.draws}; give 1000 or more, or 0 for t-intervals")
    if not (math.isfinite(config.margin) and config.margin >= 0):
        raise BadInput(f"config.margin: is {config.margin}; give points from 0 on")
    if config.human_sheet and not config.save_generations:
        raise BadInput("config.human_sheet: needs the answers; set config.save_generations=True too")
    if config.human_sheet and not any(one.task.kind is Kind.GENERATION for one in questions):
        raise BadInput("config.human_sheet: no task of this run generates text; leave it at 0")
    if config.harness_tasks and all(system.checkpoint is None for system in systems):
        raise BadInput("config.harness_tasks: lm-eval's tasks need a model, not stored answers; give a model")
    shared_out = [one.name for one in systems if one.composition is not None and one.composition.kind == EITHER]
    if config.harness_tasks and shared_out:
        raise BadInput(f"config.harness_tasks: {shared_out[0]} is several models, and lm-eval asks one; leave it out")
    if config.harness_tasks and config.temperature > 0:
        raise BadInput("config.temperature: lm-eval's tasks set their own sampling; leave it at 0")
    names = {system.name for system in systems}
    for other in others(config):
        if other not in names:
            raise BadInput(f"config.compare_to: {other!r} is not a model; choose from {', '.join(sorted(names))}")
    for name in names & scoring.TRIVIAL:
        raise BadInput(f"config.model: {name!r} is the name of a floor; give the model another name")
    for one in questions:
        one.shots(config.shots, 0)


def others(config: ConfigDict) -> list[str]:
    """The names of the models that the config compares with."""
    return [name.strip() for name in config.compare_to.split(",") if name.strip()]


def _modes(config: ConfigDict) -> list[str]:
    return [mode.strip() for mode in config.choices.split(",")]


def _seeds(config: ConfigDict) -> list[int]:
    try:
        seeds = [int(seed) for seed in str(config.seeds).split(",")]
    except ValueError as error:
        raise BadInput(
            f"config.seeds: {config.seeds!r} is not a list of whole numbers; give a list such as 0,1,2"
        ) from error
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"config.seeds: {config.seeds!r} names a seed twice; name each once")
    return seeds


def plan(config: ConfigDict, systems: Sequence[System], questions: Sequence[TaskData]) -> Iterator[Planned]:
    """Yields the cells, model by model.

    Without few-shot examples or sampling every seed gives the same answers, so only the first seed is planned.

    Args:
      config: the job's config.
      systems: the systems under evaluation.
      questions: the data of each task.
    """
    for system, one in itertools.product(systems, questions):
        if system.checkpoint is None:
            yield _planned(config, system, one, Cell(system.name, system.seed, one.name, GENERATED, stored=True))
            continue
        chat = config.chat_template if system.chat is None else system.chat
        chat = chat if one.task.chat is None else one.task.chat
        for mode in _modes(config) if one.task.kind is Kind.CHOICE else [GENERATED]:
            varies = config.shots > 0 or (config.temperature > 0 and mode == GENERATED)
            for seed in _seeds(config) if varies else _seeds(config)[:1]:
                cell = Cell(system.name, system.seed, one.name, mode, chat, config.shots, seed)
                yield _planned(config, system, one, cell)


def _planned(config: ConfigDict, system: System, one: TaskData, cell: Cell) -> Planned:
    task = one.task
    metrics = scoring.metrics_of(task, cell.mode == GENERATED, one.extra)
    fields: tuple[str, ...] = ()
    if not cell.stored:
        drawn = cell.mode == GENERATED and config.temperature > 0
        fields = (*COMPUTED, *(_WRITTEN if cell.mode == GENERATED else ()), *(_DRAWN if drawn else ()))
    settings = {name: config[name] for name in fields}
    answers = key_of(
        {
            "cell": dataclasses.asdict(cell),
            "system": system.fingerprint(one.name),
            "questions": one.digest,
            "shots": one.shots_digest(cell.shots, cell.example_seed),
            "form": dataclasses.asdict(task.form),
            "stop": list(task.stop),
            "new_tokens": task.max_new_tokens,
            "settings": settings,
        }
    )
    scored = {metric.name: metric.signature for metric in metrics}
    key = key_of({"answers": answers, "metrics": scored, "scoring": scoring.VERSION, "reading": choices.READING})
    return Planned(key, answers, cell, system, one, metrics, settings)
