"""The definition of a metric, and the counting of items. I items, K counts."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from clinmerge_jax.errors import BadInput
from clinmerge_jax.statistics.samples import mean


@dataclasses.dataclass(frozen=True)
class Output:
    """A system's answer to one item.

    Attributes:
      text: the answer; of several turns, the last one.
      finished: whether it ended by itself, not at the limit on new tokens.
      earlier: the answers of earlier turns.
    """

    text: str
    finished: bool = True
    earlier: tuple[str, ...] = ()


# Maps the outputs of all items, their references and, where available, their sources to the counts [I, K].
CountAll = Callable[[Sequence[Output], Sequence[Any], Sequence[str] | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric: counts of each item and a score of summed counts, so any set of items can be scored and resampled.

    Attributes:
      name: its name in tables and Results; every variant has its own.
      signature: its exact definition: library, version, settings.
      count: maps an output and its reference, for most metrics a text, to K counts.
      width: K.
      score: maps summed counts [..., K] to scores [...]. The default is for counts of a value and a 1, and gives the
        mean of the values.
      item_score: scores the counts of a single item, where that differs from `score`.
      parts: metrics whose counts, concatenated in order, are the counts of this one.
      count_all: counts all items at once, as an encoder or an external program does. Metrics with the same `count_all`
        share its counts.
      binary: whether an item is either right (100) or wrong (0).
      graded: whether 100 is the score of the best answers; False for metrics that only describe answers.
    """

    name: str
    signature: str
    count: Callable[[Output, Any], Sequence[float]]
    width: int = 2
    score: Callable[[np.ndarray], np.ndarray] = mean
    item_score: Callable[[np.ndarray], np.ndarray] | None = None
    parts: tuple["Metric", ...] = ()
    count_all: CountAll | None = None
    graded: bool = True
    binary: bool = False

    def of_items(self, counts_IK: np.ndarray) -> np.ndarray:
        """The score of each item."""
        return (self.item_score or self.score)(counts_IK)


def averaged(name: str, signature: str, value: Callable[[Output, str], float], binary: bool = False) -> Metric:
    """A metric whose score is the mean of the items' values."""
    return Metric(name, signature, lambda output, reference: (value(output, reference), 1), binary=binary)


def check_texts(references: Sequence[Any], name: str) -> None:
    """Refuse references that are not texts, such as the `InstructionTarget` of a task scored by rules.

    Raises:
      BadInput: a reference is not a text; the message has the metric's name.
    """
    odd = next((one for one in references if not isinstance(one, str)), None)
    if odd is not None:
        raise BadInput(
            f"{name}: a reference is a {type(odd).__name__}; use this metric for tasks whose references are texts"
        )


def columns(names: Sequence[str], signature: str, count_all: CountAll) -> tuple[Metric, ...]:
    """Metrics that are counted together by one `count_all`, each the mean of the items' scores.

    Args:
      names: names of the metrics.
      signature: the signature of all of them.
      count_all: gives for each item its scores in the order of the names, followed by a 1.
    """

    def count(output: Output, reference: Any) -> np.ndarray:
        return count_all([output], [reference], None)[0]

    def mean_of(column: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: sums[..., column] / sums[..., -1]

    return tuple(
        Metric(name, signature, count, width=len(names) + 1, score=mean_of(column), count_all=count_all)
        for column, name in enumerate(names)
    )


def composite(name: str, parts: Sequence[Metric]) -> Metric:
    """The mean of the scores of graded metrics. A corpus metric such as BLEU enters with its corpus score."""
    ends = np.cumsum([part.width for part in parts])[:-1]

    def mean_of(scores: Sequence[Callable[[np.ndarray], np.ndarray]]) -> Callable[[np.ndarray], np.ndarray]:
        def score(sums: np.ndarray) -> np.ndarray:
            return np.mean([one(piece) for one, piece in zip(scores, np.split(sums, ends, axis=-1))], axis=0)

        return score

    return Metric(
        name,
        f"mean of {', '.join(part.name for part in parts)}",
        lambda output, reference: np.concatenate([part.count(output, reference) for part in parts]),
        width=sum(part.width for part in parts),
        score=mean_of([part.score for part in parts]),
        item_score=mean_of([part.of_items for part in parts]),
        parts=tuple(parts),
    )


def count_items(
    metrics: Iterable[Metric],
    outputs: Sequence[Output],
    references: Sequence[Any],
    sources: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The counts [I, K] of every metric, by its name. A part shared by several metrics is counted once.

    Args:
      metrics: the metrics to count.
      outputs: the outputs of the items.
      references: the references of the items.
      sources: the inputs of the items, for metrics that use them.

    Raises:
      BadInput: the numbers of outputs, sources and references differ.
    """
    for field, given in (("outputs", outputs), ("sources", sources)):
        if given is not None and len(given) != len(references):
            raise BadInput(f"{field}: {len(given)} for {len(references)} references; give one for each")
    known: dict[str, np.ndarray] = {}
    together: dict[CountAll, np.ndarray] = {}

    def counts_IK(metric: Metric) -> np.ndarray:
        if metric.name not in known:
            known[metric.name] = counted_IK(metric)
        return known[metric.name]

    def counted_IK(metric: Metric) -> np.ndarray:
        if metric.parts:
            return np.concatenate([counts_IK(part) for part in metric.parts], axis=1)
        if metric.count_all is None:
            rows = [metric.count(*pair) for pair in zip(outputs, references)]
            return np.array(rows, np.float64).reshape(len(rows), metric.width)
        if metric.count_all not in together:
            together[metric.count_all] = metric.count_all(outputs, references, sources)
        return together[metric.count_all]

    return {metric.name: counts_IK(metric) for metric in metrics}
