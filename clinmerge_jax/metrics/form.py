"""Metrics of the form of answers, shown beside scores of generated text: length, stopping and repetition."""

import numpy as np

from clinmerge_jax.metrics.metric import Metric, Output

_REPEATED = 4  # words


def length_ratio() -> Metric:
    """The number of words of all answers divided by that of all references."""

    def count(output: Output, reference: str) -> tuple[int, int]:
        return len(output.text.split()), len(reference.split())

    return Metric("length_ratio", "words of answers / words of references", count, graded=False)


def never_stopped() -> Metric:
    """The percentage of answers that ended at the limit on new tokens."""

    def count(output: Output, reference: str) -> tuple[float, int]:
        return 100.0 * (not output.finished), 1

    return Metric("never_stopped", "percent of answers", count, graded=False)


def repetition() -> Metric:
    """The percentage of four-word sequences, over all answers, that occurred earlier in the same answer."""

    def count(output: Output, reference: str) -> tuple[int, int]:
        words = output.text.lower().split()
        sequences = [tuple(words[start : start + _REPEATED]) for start in range(len(words) - _REPEATED + 1)]
        return len(sequences) - len(set(sequences)), len(sequences)

    def score(sums: np.ndarray) -> np.ndarray:
        return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)

    return Metric("repetition", f"percent of {_REPEATED}-grams of words", count, score=score, graded=False)
