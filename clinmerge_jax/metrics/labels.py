"""Metrics of answers that are right or wrong, from 0 to 100. K counts."""

from collections.abc import Sequence

import numpy as np

from clinmerge_jax.metrics.metric import Metric, Output, averaged


def exact_match() -> Metric:
    """The percentage of answers equal to the reference, ignoring case and differences in white space."""

    def value(output: Output, reference: str) -> float:
        return 100.0 * (_plain(output.text) == _plain(reference))

    return averaged("exact_match", "casefolded, white space joined", value, binary=True)


def accuracy() -> Metric:
    """The percentage of labels equal to the reference's; an answer from which no label was read ("") is wrong."""
    return averaged("accuracy", "of labels", lambda output, reference: 100.0 * (output.text == reference), binary=True)


def unread() -> Metric:
    """The percentage of answers from which no label could be read."""

    def count(output: Output, reference: str) -> tuple[float, int]:
        return 100.0 * (output.text == ""), 1

    return Metric("unread", "percent of answers", count, graded=False)


def macro_f1(labels: Sequence[str]) -> Metric:
    """The mean over labels of their F1; a label that occurs in no answer and no reference has 0, as in scikit-learn.

    The reference as the answer therefore reaches 100 only over a set of items in which every label occurs.

    Args:
      labels: the labels of the references. Any other answer counts as a miss of the reference's label.
    """
    names = tuple(labels)

    def count(output: Output, reference: str) -> np.ndarray:
        given = np.array([name == output.text for name in names], np.float64)
        due = np.array([name == reference for name in names], np.float64)
        return np.concatenate([given * due, given + due])

    def score(sums: np.ndarray) -> np.ndarray:
        hits, mentions = np.split(sums, 2, axis=-1)
        return 100 * np.mean(2 * hits / np.maximum(mentions, 1), axis=-1)

    return Metric(
        "macro_f1",
        f"over {', '.join(names)}",
        count,
        width=2 * len(names),
        score=score,
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
