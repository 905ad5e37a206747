"""What Results say: scores with intervals, and differences between systems. S seeds, I items, K counts."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from clinmerge_jax.metrics.metric import Metric
from clinmerge_jax.results.records import BOUNDS, COMPUTED, Result
from clinmerge_jax.statistics import (
    Estimate,
    Interval,
    Sample,
    Verdict,
    bootstrap_interval,
    count_sample,
    difference,
    estimate,
    holm,
    mcnemar,
    minimum_detectable_difference,
    ratio,
    verdict,
)

RETAINED = 0.95  # of the other's score, what must be kept to speak of retention


@dataclasses.dataclass(frozen=True)
class Group:
    """Results that can be compared: the same items of a task, asked in the same way but for the chat template.

    Attributes:
      task: with its split.
      mode: how it was answered.
      shots: few-shot examples.
      settings: of the config that shaped the answers.
      clusters: of the items.
      systems: by label, the Results of its seeds; floors and bounds have one. A label is a system's name, with "(chat)"
        or "(raw)" where the group has both.
      floors: the labels of those that no model answered.
      title: as tables head it.
    """

    task: str
    mode: str
    shots: int
    settings: Mapping[str, Any]
    clusters: Sequence[str]
    systems: Mapping[str, Sequence[Result]]
    floors: frozenset[str]
    title: str

    @property
    def computed(self) -> str:
        """Of the settings those that letters and written answers share: tasks that agree in them are one family."""
        return json.dumps({name: self.settings.get(name) for name in COMPUTED})

    def seeds(self, *systems: str) -> list[dict[int, list[Result]]]:
        """The Results of some systems by seed, which is that of training where one of them has several, else that of
        examples and draws. A system with one seed stands beside all seeds of the others; otherwise seeds that not all
        of them have are left out, which is said."""
        several = any(len({result.cell.seed for result in self.systems[system]}) > 1 for system in systems)
        found: list[dict[int, list[Result]]] = []
        for system in systems:
            by_seed = collections.defaultdict(list)
            for result in sorted(self.systems[system], key=lambda one: (one.cell.seed, one.cell.example_seed)):
                by_seed[result.cell.seed if several else result.cell.example_seed].append(result)
            found.append(dict(by_seed))
        many = [by_seed for by_seed in found if len(by_seed) > 1]
        shared = set.intersection(*map(set, many)) if many else set()
        for system, by_seed in zip(systems, found):
            if len(by_seed) > 1 and set(by_seed) != shared:
                logging.warning("%s, %s: only seeds that the others have count: %s", self.title, system, sorted(shared))
        return [{seed: by_seed[seed] for seed in sorted(shared)} if len(by_seed) > 1 else by_seed for by_seed in found]

    def sample(self, metric: str, *systems: str) -> Sample | None:
        """The paired counts of some systems; None where they have no seed in common.

        Of a training seed with several seeds of examples the mean counts.
        """
        counts = []
        for by_seed in self.seeds(*systems):
            if not by_seed:
                return None
            counts.append(
                np.stack([np.mean([one.counts[metric] for one in results], axis=0) for results in by_seed.values()])
            )
        return count_sample(*counts, clusters=self.clusters)

    def value(self, system: str, metric: Metric) -> float:
        """A system's score over all its seeds and items."""
        counts = np.mean([result.counts[metric.name] for result in self.systems[system]], axis=0)
        return float(metric.score(counts.sum(axis=0)))

    def best_floor(self, metric: Metric) -> float:
        """The best score of what answers without a model."""
        names = [name for name in self.floors - BOUNDS if metric.name in self.systems[name][0].counts]
        return max((self.value(name, metric) for name in names), default=0.0)


def group(results: Iterable[Result]) -> list[Group]:
    """Sorts Results into groups. Of lines of one system and seed the newest counts.

    A floor joins every group that has its items, stored answers every one that was generated, as nothing is known of
    how they were made; where there is none they are one by themselves.
    """
    found: dict[tuple, dict[tuple, Result]] = {}
    floors, stored = [], []
    for result in results:
        cell = result.cell
        if cell.floor or cell.stored:
            (floors if cell.floor else stored).append(result)
            continue
        settings = json.dumps(result.provenance["settings"], sort_keys=True)
        key = (cell.task, tuple(result.items), tuple(result.clusters), cell.mode, cell.shots, settings)
        found.setdefault(key, {})[cell.system, cell.chat, cell.seed, cell.example_seed] = result
    for result in stored:
        cell = result.cell
        asked = (cell.task, tuple(result.items), tuple(result.clusters), "generated")
        keys = [key for key in found if key[:4] == asked] or [(*asked, 0, "{}")]
        for key in keys:
            found.setdefault(key, {})[cell.system, cell.chat, cell.seed, cell.example_seed] = result
    titles = _titles(found)
    groups = []
    for key, by_system in found.items():
        task, items, clusters, mode, shots, settings = key
        systems = _labelled(by_system)
        made_up = {one.cell.system: [one] for one in floors if (one.cell.task, tuple(one.items)) == (task, items)}
        together = {**systems, **{name: rows for name, rows in made_up.items() if name not in systems}}
        groups.append(
            Group(task, mode, shots, json.loads(settings), clusters, together, frozenset(made_up), titles[key])
        )
    return groups


def _labelled(by_system: Mapping[tuple, Result]) -> dict[str, list[Result]]:
    """The Results by label."""
    both = len({result.cell.chat for result in by_system.values() if not result.cell.stored}) > 1
    found: dict[str, list[Result]] = {}
    for result in by_system.values():
        way = f" ({'chat' if result.cell.chat else 'raw'})" if both and not result.cell.stored else ""
        found.setdefault(result.cell.system + way, []).append(result)
    return found


def _titles(found: Mapping[tuple, Mapping[tuple, Result]]) -> dict[tuple, str]:
    """What tells each group from the others: the settings in which those of one task differ."""
    titles = {}
    for key, by_system in found.items():
        task, items, _, mode, shots, settings = key
        chats = {result.cell.chat for result in by_system.values()}
        others = [json.loads(other[5]) for other in found if (other[0], other[3], other[4]) == (task, mode, shots)]
        own = json.loads(settings)
        differ = [f"{name} {value}" for name, value in own.items() if any(one.get(name) != value for one in others)]
        sizes = {len(other[1]) for other in found if other[0] == task}
        parts = [
            mode, *(["chat"] if chats == {True} else []), *([f"{shots} shots"] if shots else []), *differ,
            *([f"{len(items)} items"] if len(sizes) > 1 else []),
        ]  # fmt: skip
        titles[key] = f"{task} ({', '.join(parts)})"
    return titles


@dataclasses.dataclass(frozen=True)
class Score:
    """A system's score by a metric.

    Attributes:
      value: over all seeds and items.
      interval: None where there are too few items for one.
      over: what the interval is over.
      seeds, items: how many.
    """

    value: float
    interval: Interval | None
    over: str
    seeds: int
    items: int


def score(group: Group, system: str, metric: Metric, draws: int) -> Score:
    """A score with its 95 % interval, cut at 0 and, where a metric ends there, at 100.

    Args:
      group: of the system.
      system: its label.
      metric: that it was scored by.
      draws: of the bootstrap; 0 for the t-interval.
    """
    value, items = group.value(system, metric), len(group.clusters)
    seeds = len(group.seeds(system)[0])
    if len(set(group.clusters)) < 2:
        return Score(value, None, "", seeds, items)
    sample = group.sample(metric.name, system)
    found = estimate(sample, metric.score)
    interval = _interval(sample, metric.score, found, draws)
    most = 100.0 if metric.graded else np.inf
    return Score(value, Interval(value, max(interval.low, 0.0), min(interval.high, most)), found.over, seeds, items)


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A system against another on one task.

    Attributes:
      group: the task.
      system, other: labels.
      primary: whether it is the task's first way of being answered: by letters for choices that have them.
      difference: system minus other.
      interval: of the difference, paired.
      p_value: two-sided, that there is none; None where no item tells the two apart.
      holm: the same, adjusted for the tasks on which the two are compared in this way.
      detectable: the smallest true difference that such a study finds in 80 of 100 cases; None likewise.
      kept: system over other.
      kept_interval: of that; None where the other has nothing.
      retains: the verdict on "the ratio is over 0.95"; None likewise, and where the other is no better than a floor.
      not_worse: the verdict on "the difference is over minus the margin"; None where no item tells the two apart or
        neither is better than a floor.
      mcnemar: exact p-value of right against wrong; None where items are more than that, or seeds several.
    """

    group: Group
    system: str
    other: str
    primary: bool
    difference: float
    interval: Interval
    p_value: float | None
    holm: float | None
    detectable: float | None
    kept: float | None
    kept_interval: Interval | None
    retains: Verdict | None
    not_worse: Verdict | None
    mcnemar: float | None


def contrasts(
    groups: Sequence[Group], lead: Mapping[str, Metric], others: Sequence[str], margin: float, draws: int
) -> list[Contrast]:
    """Every system against some, on every task that both answered, by the task's leading metric.

    Args:
      groups: of `group`.
      lead: the leading metric by task.
      others: the names of those; one that was asked by chat and raw counts as two.
      margin: in points, that a system may be worse by and still count as not worse.
      draws: of the bootstrap; 0 for t-intervals.
    """
    by_letters = {one.task for one in groups if one.mode == "letters"}
    families: dict[tuple, list[Contrast]] = collections.defaultdict(list)
    for one in groups:
        if len(set(one.clusters)) < 2:
            continue
        labels = [
            label for name in others for label in one.systems if label in (name, f"{name} (chat)", f"{name} (raw)")
        ]
        primary = one.mode == "letters" or one.task not in by_letters
        for other in labels:
            for system in one.systems:
                if system in one.floors or system in labels[: labels.index(other) + 1]:
                    continue
                found = _contrast(one, lead[one.task], system, other, primary, margin, draws)
                if found is None:
                    logging.warning("%s: %s and %s have no seed in common; not compared", one.title, system, other)
                else:
                    families[system, other, one.shots, one.computed, primary].append(found)
    adjusted = []
    for rows in families.values():
        tested = [row for row in rows if row.p_value is not None]
        values = dict(zip(map(id, tested), holm([row.p_value for row in tested])))
        adjusted += [
            dataclasses.replace(row, holm=float(values[id(row)])) if id(row) in values else row for row in rows
        ]
    return adjusted


def _contrast(
    group: Group, metric: Metric, system: str, other: str, primary: bool, margin: float, draws: int
) -> Contrast | None:
    sample = group.sample(metric.name, system, other)
    if sample is None:
        return None
    apart = estimate(sample, difference(metric.score))
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = estimate(sample, ratio(metric.score))
    has_some = bool(np.isfinite(kept.value) and np.isfinite(kept.standard_error))  # without any one item or seed too
    varies = bool(apart.standard_error > 0)
    floor = group.best_floor(metric)
    above = [group.value(name, metric) > floor for name in (system, other)]
    alone = len(group.systems[system]) == len(group.systems[other]) == 1
    paired = metric.binary and alone and len(set(group.clusters)) == len(group.clusters)
    right = [metric.of_items(group.systems[name][0].counts[metric.name]) > 50 for name in (system, other)]
    return Contrast(
        group,
        system,
        other,
        primary,
        float(apart.value),
        _interval(sample, difference(metric.score), apart, draws),
        float(apart.p_value()) if varies else None,
        None,
        minimum_detectable_difference(apart) if varies else None,
        float(kept.value) if has_some else None,
        _interval(sample, ratio(metric.score), kept, draws) if has_some else None,
        verdict(kept, RETAINED) if has_some and varies and above[1] else None,
        verdict(apart, -margin) if varies and any(above) else None,
        mcnemar(*right) if paired else None,
    )


def _interval(sample: Sample, statistic, found: Estimate, draws: int) -> Interval:
    return bootstrap_interval(sample, statistic, draws=draws) if draws else found.interval()


@dataclasses.dataclass(frozen=True)
class Average:
    """A system against another over all tasks that both answered in one way.

    Attributes:
      system, other: labels.
      shots: examples before each question.
      tasks: how many.
      difference: mean over tasks, with its interval.
      kept: the mean of the ratios, likewise; None where the other has nothing on some task.
    """

    system: str
    other: str
    shots: int
    tasks: int
    difference: Interval
    kept: Interval | None


def averages(found: Sequence[Contrast], lead: Mapping[str, Metric]) -> list[Average]:
    """The contrasts of every two systems, averaged over tasks; tasks are fixed, their items are drawn.

    A choice that was answered in two ways counts by letters alone, else it would count twice.
    """
    families: dict[tuple, dict[str, Contrast]] = collections.defaultdict(dict)
    for one in found:
        if one.primary:
            families[one.system, one.other, one.group.shots, one.group.computed][one.group.task] = one
    rows = []
    for (system, other, shots, _), by_task in families.items():
        parts = list(by_task.values())
        metrics = [lead[part.group.task] for part in parts]
        samples = [part.group.sample(metric.name, system, other) for part, metric in zip(parts, metrics)]
        if len(parts) < 2 or len({sample.seeds for sample in samples}) > 1:
            continue
        apart = estimate(samples, [difference(metric.score) for metric in metrics]).interval()
        kept = None
        if all(part.kept is not None for part in parts):
            kept = estimate(samples, [ratio(metric.score) for metric in metrics]).interval()
        rows.append(Average(system, other, shots, len(parts), apart, kept))
    return rows
