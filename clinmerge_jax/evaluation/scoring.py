"""Turns answers into counts, for systems, trivial baselines (floors) and upper bounds alike. I items, K counts."""

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from clinmerge_jax.evaluation.choices import read_letter
from clinmerge_jax.metrics import METRICS, Metric, Output, count_items, floors
from clinmerge_jax.results.records import BOUNDS, REFERENCE
from clinmerge_jax.tasks.task import Item, Kind, Task

# Trivial baselines (floors) and upper bounds, as tables name them.
COPY, FIXED, ANOTHER, LEAD = "copy the input", "one training target", "another's target", "lead sentences"
RANDOM, FREQUENT, FREQUENT_ASKED = "random letter", "most frequent letter", "most frequent letter (of the test)"
NOTHING = "empty answer"
TRIVIAL = BOUNDS | {
    COPY, FIXED, ANOTHER, LEAD, RANDOM, FREQUENT, FREQUENT_ASKED, NOTHING, "obedient nothing", "obedient input",
}  # fmt: skip
VERSION = 1  # of how answers become labels and counts; metrics have signatures of their own
_DRAWS = 50  # of random letters, over which their counts are averaged


def metrics_of(task: Task, generated: bool, extra: Sequence[Metric] = ()) -> list[Metric]:
    """The metrics of a cell: the task's, extra ones, and `unread` and `never_stopped` where labels are read."""
    metrics = [*task.metrics, *extra]
    if reads_labels(task) and generated:
        metrics += [METRICS["unread"], METRICS["never_stopped"]]
    return list({metric.name: metric for metric in metrics}.values())


def reads_labels(task: Task) -> bool:
    """Whether a label, such as a letter or a number, is read from the generated text."""
    return task.kind is Kind.CHOICE or task.read is not None


def count(
    task: Task, metrics: Sequence[Metric], items: Sequence[Item], outputs: Sequence[Output], generated: bool = True
) -> dict[str, np.ndarray]:
    """The counts [I, K] of every metric on every item, by metric name.

    Args:
      task: the task of the items.
      metrics: from `metrics_of`.
      items: the items that were asked.
      outputs: the answers, in the items' order; letters if they were chosen by log-likelihood.
      generated: whether labels must still be read from the answers.
    """
    if reads_labels(task) and generated:
        outputs = [Output(_label(task, item, output), output.finished) for item, output in zip(items, outputs)]
    return count_items(metrics, outputs, [item.target for item in items], [item.source for item in items])


def _label(task: Task, item: Item, output: Output) -> str:
    return read_letter(output.text, item.choices) if task.kind is Kind.CHOICE else task.read(output.text)


def floor(
    task: Task, metrics: Sequence[Metric], items: Sequence[Item], name: str, outputs: Sequence[Output]
) -> dict[str, np.ndarray]:
    """The counts [I, K] of a trivial baseline or bound, by metric name.

    Random letters are averaged over many draws, so that their score does not depend on one draw.

    Args:
      task, metrics, items: as in `count`.
      name: the baseline's name.
      outputs: its answers, from `trivial_baselines`.
    """
    if name != RANDOM:
        return count(task, metrics, items, outputs, generated=False)
    draws = [
        count(task, metrics, items, [Output(letter) for letter in random_letters(items, seed)], generated=False)
        for seed in range(_DRAWS)
    ]
    return {metric.name: np.mean([draw[metric.name] for draw in draws], axis=0) for metric in metrics}


def trivial_baselines(task: Task, items: Sequence[Item], train: Sequence[Item]) -> dict[str, list[Output]]:
    """The answers of a task's trivial baselines and upper bounds, by name.

    Letters and labels are given as such: they are not read from a text.

    Args:
      task: the task.
      items: the items of the split that is scored.
      train: the items of the training split; may be empty.
    """
    if task.kind is Kind.CHOICE:
        frequent = Counter(item.target for item in train or items).most_common(1)[0][0]
        return {
            RANDOM: [Output(letter) for letter in random_letters(items)],
            FREQUENT if train else FREQUENT_ASKED: [Output(frequent)] * len(items),
            REFERENCE: [Output(item.target) for item in items],
            NOTHING: [Output("")] * len(items),
        }
    if task.trivial_baselines is not None:
        return task.trivial_baselines(items)
    if not task.floors:
        return {}
    sources, found = [item.source for item in items], {}
    if task.read is None:
        found = {COPY: [Output(source) for source in sources], LEAD: floors.lead(sources)}
    targets = [item.target for item in items]
    if all(isinstance(target, str) for target in targets):
        clusters = [item.cluster or item.id for item in items]
        if train:
            found[FIXED] = [Output(train[0].target)] * len(items)
        if len(set(clusters)) > 1:
            found[ANOTHER] = floors.another_target(targets, clusters)
        found[REFERENCE] = [Output(target) for target in targets]
    found[NOTHING] = [Output("")] * len(items)
    return found


def random_letters(items: Sequence[Item], seed: int = 0) -> list[str]:
    """A random letter for each item, uniform over its options."""
    rng = np.random.default_rng(seed)
    return [string.ascii_uppercase[rng.integers(len(item.choices))] for item in items]
