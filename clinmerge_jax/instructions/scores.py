"""Verdicts on which instructions an answer follows, and scores computed from them.

As in IFEval (arXiv 2311.07911), the strict verdict is on the answer as it is. The loose verdict also tries the answer
without parts that a rule should not punish: a first line such as "Sure, here it is:", a last line such as "Hope it
helps.", or Markdown asterisks.
"""

import collections
from collections.abc import Callable

import numpy as np

from clinmerge_jax.instructions.checkers import CHECKERS
from clinmerge_jax.instructions.ifbench.checkers import IFBENCH
from clinmerge_jax.instructions.miniature import MINIATURE
from clinmerge_jax.instructions.notes import CLINICAL
from clinmerge_jax.instructions.target import InstructionTarget
from clinmerge_jax.metrics.metric import Metric, Output

_KINDS = collections.ChainMap(CHECKERS, IFBENCH, CLINICAL, MINIATURE)


def strict(asked: InstructionTarget, response: str) -> tuple[bool, ...]:
    """Which of the instructions the response follows. An empty response follows none."""
    return tuple(_follows(asked, index, response) for index in range(len(asked.instructions)))


def loose(asked: InstructionTarget, response: str) -> tuple[bool, ...]:
    """Which of the instructions at least one of the response's variants follows.

    Different instructions may be followed by different variants.
    """
    candidates = variants(response)
    indices = range(len(asked.instructions))
    return tuple(any(_follows(asked, index, candidate) for candidate in candidates) for index in indices)


def variants(response: str) -> tuple[str, ...]:
    """The up to eight variants of a response that the loose verdict checks.

    They are the response itself, without its first line, without its last, without both, and these four without
    asterisks. Duplicates are dropped.
    """
    lines = response.split("\n")
    trimmed = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    kept = (response, *trimmed)
    return tuple(dict.fromkeys((*kept, *(text.replace("*", "") for text in kept))))


def _follows(asked: InstructionTarget, index: int, text: str) -> bool:
    instruction = asked.instructions[index]
    return bool(text.strip()) and _KINDS[instruction.id](text, **instruction.kwargs)


def _count(output: Output, asked: InstructionTarget) -> tuple[int, ...]:
    counts: list[int] = []
    for verdicts in (strict(asked, output.text), loose(asked, output.text)):
        counts += [all(verdicts), sum(verdicts)]
    return (*counts, 1, len(asked.instructions))


# Counted once and shared by the four scores.
_COUNTS = Metric("instructions_followed", "of (strict, loose) (prompts, instructions); given", _count, width=6)


def _score(followed: int, given: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: 100 * sums[..., followed] / sums[..., given]


_SIGNATURE = "percent of {0} followed {1}; Punkt with listed abbreviations, langdetect seeded"

FOLLOWING: dict[str, Metric] = {
    f"{unit}_{way}": Metric(
        f"{unit}_{way}",
        _SIGNATURE.format(f"{unit}s", "strictly" if way == "strict" else "loosely"),
        _count,
        width=6,
        score=_score(followed, given),
        parts=(_COUNTS,),
        binary=unit == "prompt",
    )
    for unit, way, followed, given in (
        ("prompt", "strict", 0, 4),
        ("prompt", "loose", 2, 4),
        ("instruction", "strict", 1, 5),
        ("instruction", "loose", 3, 5),
    )
}
