"""Few-shot subsets: nested, seeded, balanced over classes."""

import collections
import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from clinmerge_jax.errors import BadInput


class Labelled(Protocol):
    """What can be chosen: a document, or an item of a task."""

    id: str
    label: str | None


One = TypeVar("One", bound=Labelled)


def choose(documents: Sequence[One], shots: int, seed: int) -> list[One]:
    """A subset that depends on the seed and the documents' ids and labels, and on nothing else.

    All documents are put into one order, of which the first `shots` are taken, so a smaller subset is the start of
    every larger one. The order: within a class, by a hash of seed and id; then the classes take turns, in the order of
    a hash of seed and label, and one that is used up is passed over. So the counts of classes differ by one at most as
    long as every class has documents left. Documents without a label are one class.

    Args:
      documents: what there is, each with an id of its own, in any order.
      shots: how many to take; 0 takes all.
      seed: another seed gives another subset.

    Returns:
      The chosen ones, in that order.

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
    """How many examples each of several sets gives.

    With a number of shots each next example comes from the set that is furthest behind its share, of equal ones the
    first, so with fewer shots no set gives more. Without one, all sets give as many as their shares allow.

    Args:
      shots: how many in all; 0 for all.
      counts: how many there are in each set.
      shares: how much of the whole each set is to be, in any unit; all 0 where nothing is said: then shots are shared
        evenly, and without shots every set gives all it has.

    Raises:
      BadInput: a set has too few.
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
            f" {counts[short[0]]}; give fewer shots, or other shares"
        )
    return given


def _rank(seed: int, kind: str, value: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{kind}\0{value}".encode()).digest()
