"""Clinical skill against instruction following, on the miniature's tasks: parents, a merge, and a sweep over t."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from clinmerge_jax.evaluation import scoring
from clinmerge_jax.evaluation.answering import GENERATED, LETTERS, Evaluator, PreparedPrompts, make_evaluators
from clinmerge_jax.evaluation.systems import System
from clinmerge_jax.instructions.scores import FOLLOWING
from clinmerge_jax.metrics import METRICS, Metric
from clinmerge_jax.statistics import Interval
from clinmerge_jax.statistics.estimation import estimate
from clinmerge_jax.statistics.samples import count_sample
from clinmerge_jax.tasks.miniature.scores import FACT_F1, JOINT
from clinmerge_jax.tasks.miniature.tasks import (
    GENERATION,
    INSTRUCTIONS,
    JOINT_TASK,
    MINIATURE_TASKS,
    QUESTIONS,
    items_of,
)
from clinmerge_jax.tasks.task import Item, Kind, Task

_BOUNDS = scoring.TRIVIAL - {scoring.COPY, scoring.RANDOM, scoring.FREQUENT, scoring.FREQUENT_ASKED, scoring.NOTHING}
# Fields that `Evaluator` reads: greedy answers in the models' own dtype.
_SETTINGS = {
    "dtype": "float32", "slots": 32, "int8_weights": False, "int8_cache": False, "attention": "auto", "length": 0,
    "too_long": "refuse", "max_new_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Side:
    """One column: what is asked, and how it is scored.

    Attributes:
      name: as tables show it.
      metric: its metric, from 0 to 100.
      tasks: the tasks, whose counts are added up.
      items: how many test items of each task, from the first on.
      ways: whether prompts go through the chat template; with two ways the better one counts for models that know no
        chat.
    """

    name: str
    metric: Metric
    tasks: tuple[str, ...]
    items: int
    ways: tuple[bool, ...] = (False,)

    def asked(self) -> list[tuple[Task, list[Item]]]:
        """Each task with its items."""
        return [(MINIATURE_TASKS[name], items_of(name, "test")[: self.items]) for name in self.tasks]


CLINICAL = Side("clinical generation (fact F1)", FACT_F1, GENERATION, 20)
FOLLOWED = Side("instructions followed", FOLLOWING["prompt_strict"], (INSTRUCTIONS,), 100, (True, False))
SIDES = (
    CLINICAL,
    Side("medical questions (accuracy)", METRICS["accuracy"], (QUESTIONS,), 100),
    FOLLOWED,
    Side("both at once (joint)", JOINT, (JOINT_TASK,), 100, (True, False)),
)


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """Scores from 0 to 100 with 95 % intervals over items.

    Attributes:
      systems: of each system, its score on each of `SIDES`.
      floors: of each side, the best score of an answer that needs no model, and that answer's name.
      sweep: by t, the scores on `CLINICAL` and `FOLLOWED` of further merges.
      t: the t of the merged model; None if it is not one number.
    """

    systems: Mapping[str, Sequence[Interval]]
    floors: Sequence[tuple[float, str]]
    sweep: Mapping[str, tuple[Interval, Interval]]
    t: float | None = None

    def of(self, system: str, side: Side) -> Interval:
        """The score of a system on a side."""
        return self.systems[system][SIDES.index(side)]

    def json_lines(self, provenance: Mapping[str, Any]) -> str:
        """One JSON line for each score."""
        found = [(name, side, score) for name, row in self.systems.items() for side, score in zip(SIDES, row)]
        for t, pair in self.sweep.items():
            found += [(f"t = {t}", side, score) for side, score in zip((CLINICAL, FOLLOWED), pair)]
        lines = [
            {
                "model": name,
                "task": ", ".join(side.tasks),
                "metric": side.metric.name,
                **dataclasses.asdict(score),
                "items": side.items * len(side.tasks),
                "provenance": provenance,
            }
            for name, side, score in found
        ]
        return "".join(json.dumps(line) + "\n" for line in lines)


def digest() -> str:
    """SHA-256 of everything that is asked, of how it is answered, and of how it is scored."""
    content: list[Any] = [_SETTINGS]
    for side in SIDES:
        for task, items in side.asked():
            asked = [[item.id, item.source, repr(item.target)] for item in items]
            form = [dataclasses.asdict(task.form), list(task.stop), task.max_new_tokens]
            content.append([side.name, side.metric.signature, side.ways, form, asked])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def count_items(raw: int, chat: int, sweep: int) -> int:
    """How many items `measure` asks of these numbers of systems."""
    sizes = {side: side.items * len(side.tasks) for side in SIDES}
    both_ways = sum(sizes[side] * len(side.ways) for side in SIDES)
    return raw * both_ways + chat * sum(sizes.values()) + sweep * (sizes[CLINICAL] + sizes[FOLLOWED])


def measure(
    raw: Sequence[System],
    chat: Sequence[System],
    sweep: Mapping[str, System],
    mesh: Mapping[str, int],
    progress: Callable[[int], None],
) -> TradeOff:
    """Asks all systems, loading one at a time.

    Args:
      raw: models that were not trained on chat; asked in every way of a side, so that none is a straw man.
      chat: models that know the chat template.
      sweep: further merges, by t.
      mesh: devices along each axis.
      progress: called with the number of items answered since the last call.
    """
    asked = {side: side.asked() for side in SIDES}
    evaluators = make_evaluators([*raw, *chat, *sweep.values()], ConfigDict({**_SETTINGS, "mesh": dict(mesh)}))
    plan = {system: {side: side.ways for side in SIDES} for system in raw}
    plan |= {system: {side: side.ways[:1] for side in SIDES} for system in chat}
    plan |= {system: {side: side.ways[:1] for side in (CLINICAL, FOLLOWED)} for system in sweep.values()}
    prompts = {
        (system, side, chat): [_prepare(evaluators[system], task, items, chat) for task, items in asked[side]]
        for system, sides in plan.items()
        for side, ways in sides.items()
        for chat in ways
    }
    length = max(one.length for cell in prompts.values() for one in cell)  # one for all, so programs compile once
    scores: dict[System, dict[Side, Interval]] = {}
    for system, sides in plan.items():
        evaluators[system].load(length)
        scores[system] = {
            side: max(
                (_score(evaluators[system], side, prompts[system, side, chat], length, progress) for chat in ways),
                key=lambda found: found.estimate,
            )
            for side, ways in sides.items()
        }
        evaluators[system].unload()
    return TradeOff(
        {system.name: [scores[system][side] for side in SIDES] for system in (*raw, *chat)},
        [_floor(side, asked[side]) for side in SIDES],
        {t: (scores[system][CLINICAL], scores[system][FOLLOWED]) for t, system in sweep.items()},
    )


def _prepare(evaluator: Evaluator, task: Task, items: Sequence[Item], chat: bool) -> PreparedPrompts:
    return evaluator.ask(task, items, (), chat, LETTERS if task.kind is Kind.CHOICE else GENERATED)


def _score(
    evaluator: Evaluator, side: Side, cell: Sequence[PreparedPrompts], length: int, progress: Callable[[int], None]
) -> Interval:
    counts, clusters = [], []
    for one in cell:
        outputs, _ = evaluator.answers(dataclasses.replace(one, length=length), 0, progress)
        found = scoring.count(one.task, [side.metric], one.items, outputs, one.mode == GENERATED)
        counts.append(found[side.metric.name])
        clusters += [item.cluster or item.id for item in one.items]
    return _interval(side.metric, counts, clusters)


def _interval(metric: Metric, counts: Sequence[Any], clusters: Sequence[str]) -> Interval:
    joined = [row for part in counts for row in part]
    found = estimate(count_sample([joined], clusters=clusters), metric.score).interval()
    return Interval(found.estimate, max(found.low, 0.0), min(found.high, 100.0))


def _floor(side: Side, asked: Sequence[tuple[Task, list[Item]]]) -> tuple[float, str]:
    totals: dict[str, Any] = {}
    for task, items in asked:
        for name, outputs in scoring.trivial_baselines(task, items, ()).items():
            if name not in _BOUNDS:
                counts = scoring.floor(task, [side.metric], items, name, outputs)[side.metric.name].sum(axis=0)
                totals[name] = totals.get(name, 0) + counts
    return max((float(side.metric.score(total)), name) for name, total in totals.items())
