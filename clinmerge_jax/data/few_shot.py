"""Few-shot subsets: nested, seeded, balanced over classes."""

import collections
import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from clinmerge_jax.errors import BadInput


class Labelled(Protocol):
    """An example that can be chosen: a document, or an item of a task."""

    id: str
    label: str | None


One = TypeVar("One", bound=Labelled)


def choose(documents: Sequence[One], shots: int, seed: int) -> list[One]:
    """Chooses a subset that depends only on the seed and the documents' ids and labels.

    All documents are put into one order and the first `shots` are taken, so a smaller subset is a prefix of every
    larger one. Within a class the order is by a hash of seed and id. Then the classes take turns, in the order of a
    hash of seed and label; an exhausted class is skipped. So class counts differ by at most one as long as every class
    has documents left. Documents without a label form one class.

    Args:
      documents: all available documents, with unique ids, in any order.
      shots: how many to take; 0 takes all.
      seed: selects the subset.

    Returns:
      The chosen documents, in that order.

    Raises:
      BadInput: there are fewer documents than shots.
    """
    if not 0 <= shots <= len(documents):
        raise BadInput(
            f"config.shots: {shots} of {len(documents)} documents cannot be chosen; give a number from 1 to"
            f" {len(documents)}, or 0 for all"
        )
    classes: dict[str, list[One]] = collections.defaultdict(list)
    for document in sorted(documents, key=lambda document: _rank(seed, "id", document.id)):
        classes[document.label or ""].append(document)
    turns = sorted(classes, key=lambda label: _rank(seed, "label", label))
    order = sorted((place, turn) for turn, label in enumerate(turns) for place in range(len(classes[label])))
    chosen = [classes[turns[turn]][place] for place, turn in order]
    return chosen[:shots] if shots else chosen


def divide(shots: int, counts: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Divides a number of examples among several sets.

    With a number of shots, each next example comes from the set that is furthest behind its share, the first of equals.
    So with fewer shots no set contributes more. Without one, each set contributes as many as the shares allow.

    Args:
      shots: the total number of examples; 0 for all.
      counts: the number of examples in each set.
      shares: the relative share of each set, in any unit. If all are 0, shots are shared evenly, and without shots
        every set contributes all its examples.

    Returns:
      The number of examples from each set.

    Raises:
      BadInput: a set has too few examples.
    """
    if not any(shares):
        if not shots:
            return list(counts)
        shares = [1.0] * len(counts)
    if not shots:
        most = min(count / share for count, share in zip(counts, shares))
        return [max(1, int(round(most * share, 6))) for share in shares]
    given = [0] * len(counts)
    for _ in range(shots):
        given[min(range(len(counts)), key=lambda place: (given[place] + 1) / shares[place])] += 1
    short = [place for place, count in enumerate(counts) if given[place] > count]
    if short:
        raise BadInput(
            f"config.shots: {shots} take {given[short[0]]} from set {short[0] + 1} of config.task, which has"
            f" {counts[short[0]]}; give fewer shots or different shares"
        )
    return given


def _rank(seed: int, kind: str, value: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{kind}\0{value}".encode()).digest()
