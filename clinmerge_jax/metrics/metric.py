"""What a metric is. I items, K counts."""

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
      text: the answer; of several turns the last.
      finished: whether it ended by itself and not by its limit.
      earlier: the answers of the turns before.
    """

    text: str
    finished: bool = True
    earlier: tuple[str, ...] = ()


# From the outputs of all items, their references, and where they are at hand their sources, to the counts [I, K].
CountAll = Callable[[Sequence[Output], Sequence[Any], Sequence[str] | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """Counts of one item, and a score of their sums, so that any set of items can be scored, and resampled.

    Attributes:
      name: as tables and Results show it; every variant has its own.
      signature: what it is exactly: library, version, settings.
      count: from an output and its reference, a text for most metrics, to K counts.
      width: K.
      score: from summed counts [..., K] to the score [...]; by default the mean of a value, counted beside its 1.
      item_score: the score of a single item, where it is not `score`.
      parts: metrics whose counts are these, one part after another.
      count_all: counts all items at once, as an encoder or another program does. Metrics that have the same one share
        its counts.
      binary: whether an item is right or wrong, 100 or 0.
      graded: whether it goes up to 100 for the best answers, and not only says what they look like.
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
    """A metric whose score is the mean of the items' own."""
    return Metric(name, signature, lambda output, reference: (value(output, reference), 1), binary=binary)


def check_texts(references: Sequence[Any], name: str) -> None:
    """Refuses references that are no texts, such as the rules of a task that is scored by rules.

    Raises:
      BadInput: one is none; the message has the metric's name.
    """
    odd = next((one for one in references if not isinstance(one, str)), None)
    if odd is not None:
        raise BadInput(f"{name}: a reference is a {type(odd).__name__}; choose it for tasks whose references are texts")


def columns(names: Sequence[str], signature: str, count_all: CountAll) -> tuple[Metric, ...]:
    """Metrics that one `count_all` gives together, each the mean of the items' own.

    Args:
      names: of the metrics.
      signature: of all of them.
      count_all: gives the items' scores in the order of the names, and then a 1.
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
    """The mean of the scores of metrics that go up to 100. A corpus metric among them stays one."""
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
    """The counts [I, K] of every metric, by its name. A part that several metrics have is counted once.

    Args:
      metrics: what is counted.
      outputs: of the items.
      references: of the items.
      sources: the texts that the answers are drawn from, for metrics that look at them.

    Raises:
      BadInput: there is not one output, or not one source, for each reference.
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
