"""Scores of answers in the invented world, whose facts rules can read: exact fact F1, invented facts, joint scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.instructions.target import InstructionTarget
from clinmerge_jax.metrics.metric import Metric, Output
from clinmerge_jax.miniature.mentions import facts_in


def _reference(target: Any) -> str:
    return target.reference if isinstance(target, InstructionTarget) else target


def _count_f1(output: Output, target: Any) -> tuple[int, int, int]:
    found, due = facts_in(output.text), facts_in(_reference(target))
    return len(found & due), len(found), len(due)


def _f1(sums: np.ndarray) -> np.ndarray:
    return 200 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


FACT_F1 = Metric(
    "fact_f1",
    "F1 of the facts that miniature.mentions reads from answer and reference, over all items",
    _count_f1,
    width=3,
    score=_f1,
)


def _count_invented(outputs: Sequence[Output], targets: Sequence[Any], sources: Sequence[str] | None) -> np.ndarray:
    rows = []
    for output, target, source in zip(outputs, targets, sources or [""] * len(outputs)):
        found = facts_in(output.text)
        rows.append((100 * len(found - facts_in(_reference(target)) - facts_in(source)), len(found)))
    return np.array(rows, np.float64).reshape(len(rows), 2)


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


INVENTED = Metric(
    "invented_facts",
    "percent of the facts of answers that neither source nor reference states",
    lambda output, target: _count_invented([output], [target], None)[0],
    score=_share,
    count_all=_count_invented,
    graded=False,
)


def _count_joint(output: Output, target: InstructionTarget) -> tuple[float, int]:
    return float(_f1(np.array(_count_f1(output, target)))) * all(strict(target, output.text)), 1


JOINT = Metric(
    "joint", "mean of fact_f1 of the item where all instructions are followed strictly, else 0", _count_joint
)


def _count_right(output: Output, target: InstructionTarget) -> tuple[float, int]:
    there = _plain(target.reference) in _plain(output.text)
    return 100.0 * (there and all(strict(target, output.text))), 1


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace('"', "").replace("*", "").split())


FOLLOWED_AND_RIGHT = Metric(
    "followed_and_right",
    "percent of answers that follow all instructions strictly and contain the reference's words",
    _count_right,
    binary=True,
)
