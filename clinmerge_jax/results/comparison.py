"""Scores with intervals, and differences between systems, from Results. S seeds, I items, K counts."""

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

RETAINED = 0.95  # the share of the other's score that a system must keep to retain it


@dataclasses.dataclass(frozen=True)
class Group:
    """Comparable Results: the same items of a task, asked in the same way, with or without the chat template.

    Attributes:
      task: the task with its split.
      mode: how it was answered, "generated" or "letters".
      shots: number of few-shot examples.
      settings: the config fields that shaped the answers.
      clusters: the cluster of each item.
      systems: the Results of each system's seeds, by label; trivial baselines and bounds have one Result. A label is a
        system's name, with "(chat)" or "(raw)" if the group has both.
      floors: the labels of the trivial baselines and bounds, which no model answered.
      title: the heading in tables.
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
        """The settings that letters and generated answers share, as JSON; tasks with equal ones form one family."""
        return json.dumps({name: self.settings.get(name) for name in COMPUTED})

    def seeds(self, *systems: str) -> list[dict[int, list[Result]]]:
        """Returns the Results of each given system by seed, with the seeds paired across systems.

        The seed is the training seed if one of the systems has several, else the seed of examples and sampling. A
        system with one seed is paired with all seeds of the others. Otherwise seeds that not all of them have are left
        out, with a warning.
        """
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
                logging.warning(
                    "%s, %s: only seeds that the others also have are used: %s", self.title, system, sorted(shared)
                )
        return [{seed: by_seed[seed] for seed in sorted(shared)} if len(by_seed) > 1 else by_seed for by_seed in found]

    def sample(self, metric: str, *systems: str) -> Sample | None:
        """Returns the paired counts of the given systems, or None if they have no seed in common.

        A training seed with several example seeds contributes their mean.
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
        """The best score of the trivial baselines, without the upper bounds; 0 if there are none."""
        names = [name for name in self.floors - BOUNDS if metric.name in self.systems[name][0].counts]
        return max((self.value(name, metric) for name in names), default=0.0)


def group(results: Iterable[Result]) -> list[Group]:
    """Sorts Results into comparable groups. Of several lines of one system and seed the newest counts.

    A trivial baseline joins every group that has its items. Stored answers join every group of generated answers to
    their items, because their settings are unknown; if there is no such group they form one.
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
        baselines = {one.cell.system: [one] for one in floors if (one.cell.task, tuple(one.items)) == (task, items)}
        together = {**systems, **{name: rows for name, rows in baselines.items() if name not in systems}}
        groups.append(
            Group(task, mode, shots, json.loads(settings), clusters, together, frozenset(baselines), titles[key])
        )
    return groups


def _labelled(by_system: Mapping[tuple, Result]) -> dict[str, list[Result]]:
    """The Results by label, as in `Group.systems`."""
    both = len({result.cell.chat for result in by_system.values() if not result.cell.stored}) > 1
    found: dict[str, list[Result]] = {}
    for result in by_system.values():
        way = f" ({'chat' if result.cell.chat else 'raw'})" if both and not result.cell.stored else ""
        found.setdefault(result.cell.system + way, []).append(result)
    return found


def _titles(found: Mapping[tuple, Mapping[tuple, Result]]) -> dict[tuple, str]:
    """The groups' titles: the task, and the settings that distinguish the groups of one task."""
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
      value: the score over all seeds and items.
      interval: the 95 % interval; None if there are too few items for one.
      over: what the interval covers, "items" or "seeds and items".
      seeds, items: their numbers.
    """

    value: float
    interval: Interval | None
    over: str
    seeds: int
    items: int


def score(group: Group, system: str, metric: Metric, draws: int) -> Score:
    """A score with its 95 % interval, clipped at 0 and, for metrics that go up to 100, at 100.

    Args:
      group: the system's group.
      system: the system's label.
      metric: the metric.
      draws: number of bootstrap draws; 0 for the t-interval.
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
    """The comparison of a system with another on one task.

    Attributes:
      group: the group of Results, which names the task.
      system, other: the labels of the two systems.
      primary: whether this is the task's primary mode: by letters for choices that were answered so.
      difference: the score of `system` minus that of `other`.
      interval: the paired interval of the difference.
      p_value: two-sided, against no difference; None if no item tells the two apart.
      holm: the p-value adjusted over the tasks on which the two are compared in this way.
      detectable: the smallest true difference that such a study finds in 80 of 100 cases; None if `p_value` is None.
      kept: the score of `system` over that of `other`; None if the other's score is 0, also without any one item or
        seed.
      kept_interval: the interval of `kept`; None if `kept` is None.
      retains: the verdict on "the ratio is over 0.95"; None if `p_value` or `kept` is None, or the other is no better
        than a trivial baseline.
      not_worse: the verdict on "the difference is over minus the margin"; None if `p_value` is None, or neither system
        is better than a trivial baseline.
      mcnemar: McNemar's exact p-value of right against wrong; None if items are not just right or wrong, items share
        clusters, or there are several seeds.
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
    retains: str | None
    not_worse: str | None
    mcnemar: float | None


def contrasts(
    groups: Sequence[Group], lead: Mapping[str, Metric], others: Sequence[str], margin: float, draws: int
) -> list[Contrast]:
    """Compares every system with the named others, on every task that both answered, by the task's leading metric.

    Groups with fewer than two clusters are left out.

    Args:
      groups: from `group`.
      lead: the leading metric by task.
      others: the names of the systems to compare with; one that was asked by chat and raw counts as two.
      margin: the points by which a system may be worse and still count as not worse.
      draws: number of bootstrap draws; 0 for t-intervals.
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
    has_some = bool(np.isfinite(kept.value) and np.isfinite(kept.standard_error))  # also without any one item or seed
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
    """The comparison of a system with another, averaged over all tasks that both answered in one way.

    Attributes:
      system, other: the labels of the two systems.
      shots: number of few-shot examples.
      tasks: the number of tasks.
      difference: the mean difference over tasks, with its interval.
      kept: the mean of the ratios, with its interval; None if there is no ratio on some task.
    """

    system: str
    other: str
    shots: int
    tasks: int
    difference: Interval
    kept: Interval | None


def averages(found: Sequence[Contrast], lead: Mapping[str, Metric]) -> list[Average]:
    """Averages the contrasts of each pair of systems over tasks. Tasks are fixed; their items are sampled.

    A choice task that was answered in both modes counts by letters alone; otherwise it would count twice. Pairs on
    fewer than two tasks, or whose tasks differ in the number of seeds, have no average.
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
