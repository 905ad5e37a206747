"""What Results say: scores with intervals, and differences between systems. S seeds, I items, K counts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from clinmerge_jax.evaluation.metrics.metric import Metric
from clinmerge_jax.evaluation.results import Result
from clinmerge_jax.evaluation.statistics import (
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
    """Results that can be compared: the same items of a task, asked in the same way.

    Attributes:
      task: with its split.
      mode: how it was answered.
      chat: whether prompts went through the chat template.
      shots: few-shot examples.
      clusters: of the items.
      systems: by name, the Results of its seeds; floors and bounds have one.
      floors: the names of those that no model answered.
    """

    task: str
    mode: str
    chat: bool
    shots: int
    clusters: Sequence[str]
    systems: Mapping[str, Sequence[Result]]
    floors: frozenset[str]

    @property
    def title(self) -> str:
        """As tables head it."""
        asked = [self.mode, *(["chat"] if self.chat else []), *([f"{self.shots} shots"] if self.shots else [])]
        return f"{self.task} ({', '.join(asked)})"

    def counts_SIK(self, system: str, metric: str) -> np.ndarray:
        """The counts of a system: one set for each seed of training, else for each seed of examples and draws."""
        results = self.systems[system]
        by_seed: dict[int, list[np.ndarray]] = {}
        several = len({result.cell.seed for result in results}) > 1
        for result in sorted(results, key=lambda result: (result.cell.seed, result.cell.example_seed)):
            seed = result.cell.seed if several else result.cell.example_seed
            by_seed.setdefault(seed, []).append(result.counts[metric])
        return np.stack([np.mean(sets, axis=0) for sets in by_seed.values()])

    def sample(self, metric: str, *systems: str) -> Sample:
        """The paired counts of some systems.

        Raises:
          BadInput: their seeds do not pair, or the items are too few.
        """
        return count_sample(*(self.counts_SIK(system, metric) for system in systems), clusters=self.clusters)


def group(results: Iterable[Result]) -> list[Group]:
    """Sorts Results into groups; a floor joins every group that has its items."""
    found: dict[tuple, dict[str, list[Result]]] = {}
    floors = []
    for result in results:
        cell = result.cell
        if cell.floor:
            floors.append(result)
            continue
        key = (cell.task, cell.mode, cell.chat, cell.shots, tuple(result.items))
        found.setdefault(key, {}).setdefault(cell.system, []).append(result)
    groups = []
    for (task, mode, chat, shots, items), systems in found.items():
        made_up = {one.cell.system: [one] for one in floors if (one.cell.task, tuple(one.items)) == (task, items)}
        clusters = next(iter(systems.values()))[0].clusters
        groups.append(Group(task, mode, chat, shots, clusters, {**systems, **made_up}, frozenset(made_up)))
    return groups


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
    """A score with its 95 % interval.

    Args:
      group: of the system.
      system: its name.
      metric: that it was scored by.
      draws: of the bootstrap; 0 for the t-interval.
    """
    counts = group.counts_SIK(system, metric.name)
    seeds, items = counts.shape[:2]
    value = float(metric.score(counts.mean(axis=0).sum(axis=0)))
    if len(set(group.clusters)) < 2:
        return Score(value, None, "", seeds, items)
    sample = count_sample(counts, clusters=group.clusters)
    found = estimate(sample, metric.score)
    interval = bootstrap_interval(sample, metric.score, draws=draws) if draws else found.interval()
    return Score(value, interval, found.over, seeds, items)


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A system against another on one task.

    Attributes:
      group: the task.
      system, other: names.
      difference: system minus other.
      interval: of the difference, paired.
      p_value: two-sided, that there is none.
      holm: the same, adjusted for the tasks that the system is compared on.
      detectable: the smallest true difference that such a study finds in 80 of 100 cases.
      kept: system over other.
      kept_interval: of that; None where the other has nothing.
      retains: the verdict on "the ratio is over 0.95"; None likewise.
      not_worse: the verdict on "the difference is over minus the margin".
      mcnemar: exact p-value of right against wrong; None where items are more than that, or seeds several.
    """

    group: Group
    system: str
    other: str
    difference: float
    interval: Interval
    p_value: float
    holm: float
    detectable: float
    kept: float | None
    kept_interval: Interval | None
    retains: Verdict | None
    not_worse: Verdict
    mcnemar: float | None


def contrasts(
    groups: Sequence[Group], lead: Mapping[str, Metric], other: str, margin: float, draws: int
) -> list[Contrast]:
    """Every system against one, on every task that both answered, by the task's leading metric.

    Args:
      groups: of `group`.
      lead: the leading metric by task.
      other: the name of the one.
      margin: in points, that a system may be worse by and still count as not worse.
      draws: of the bootstrap; 0 for t-intervals.
    """
    found: dict[str, list[Contrast]] = {}
    for one in groups:
        if other not in one.systems or len(set(one.clusters)) < 2:
            continue
        for system in one.systems:
            if system == other or system in one.floors:
                continue
            metric = lead[one.task]
            seeds = {len(one.counts_SIK(name, metric.name)) for name in (system, other)}
            if len(seeds - {1}) > 1:
                logging.warning("%s: %s and %s have unequal numbers of seeds; not compared", one.title, system, other)
                continue
            found.setdefault(system, []).append(_contrast(one, metric, system, other, margin, draws))
    adjusted = []
    for rows in found.values():
        for row, value in zip(rows, holm([row.p_value for row in rows])):
            adjusted.append(dataclasses.replace(row, holm=float(value)))
    return adjusted


def _contrast(group: Group, metric: Metric, system: str, other: str, margin: float, draws: int) -> Contrast:
    sample = group.sample(metric.name, system, other)
    apart = estimate(sample, difference(metric.score))
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = estimate(sample, ratio(metric.score))
    has_some = np.isfinite(kept.value) and np.isfinite(kept.standard_error)  # without any one item or seed too
    pair = [group.counts_SIK(name, metric.name) for name in (system, other)]
    binary = metric.width == 2 and all(len(counts) == 1 for counts in pair)
    binary = binary and all(np.isin(counts[0, :, 0], (0, 100)).all() for counts in pair)
    binary = binary and len(set(group.clusters)) == len(group.clusters)
    return Contrast(
        group,
        system,
        other,
        float(apart.value),
        _interval(sample, difference(metric.score), apart, draws),
        float(apart.p_value()),
        1.0,
        minimum_detectable_difference(apart),
        float(kept.value) if has_some else None,
        _interval(sample, ratio(metric.score), kept, draws) if has_some else None,
        verdict(kept, RETAINED) if has_some else None,
        verdict(apart, -margin),
        mcnemar(*(counts[0, :, 0] > 0 for counts in pair)) if binary else None,
    )


def _interval(sample: Sample, statistic, found: Estimate, draws: int) -> Interval:
    return bootstrap_interval(sample, statistic, draws=draws) if draws else found.interval()


@dataclasses.dataclass(frozen=True)
class Average:
    """A system against another over all tasks that both answered.

    Attributes:
      system, other: names.
      tasks: how many.
      difference: mean over tasks, with its interval.
      kept: the mean of the ratios, likewise; None where the other has nothing on some task.
    """

    system: str
    other: str
    tasks: int
    difference: Interval
    kept: Interval | None


def averages(found: Sequence[Contrast], lead: Mapping[str, Metric]) -> list[Average]:
    """The contrasts of every system, averaged over tasks; tasks are fixed, their items are drawn.

    A task answered in two modes counts as its generated one alone, else it would count twice.
    """
    rows = []
    for system in dict.fromkeys(contrast.system for contrast in found):
        chosen: dict[str, Contrast] = {}
        for contrast in found:
            if contrast.system == system:
                key = contrast.group.task
                if key not in chosen or contrast.group.mode == "generated":
                    chosen[key] = contrast
        if len(chosen) < 2:
            continue
        parts = list(chosen.values())
        metrics = [lead[part.group.task] for part in parts]
        samples = [part.group.sample(m.name, system, part.other) for part, m in zip(parts, metrics)]
        if len({sample.seeds for sample in samples}) > 1:
            continue
        apart = estimate(samples, [difference(metric.score) for metric in metrics]).interval()
        kept = None
        if all(part.kept is not None for part in parts):
            kept = estimate(samples, [ratio(metric.score) for metric in metrics]).interval()
        rows.append(Average(system, parts[0].other, len(parts), apart, kept))
    return rows
