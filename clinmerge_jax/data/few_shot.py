"""Few-shot subsets: nested, seeded, balanced over classes."""

import collections
import hashlib
from collections.abc import Sequence

from clinmerge_jax.data.documents import Document
from clinmerge_jax.errors import BadInput


def choose(documents: Sequence[Document], shots: int, seed: int) -> list[Document]:
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
    classes: dict[str, list[Document]] = collections.defaultdict(list)
    for document in sorted(documents, key=lambda document: _rank(seed, "id", document.id)):
        classes[document.label or ""].append(document)
    turns = sorted(classes, key=lambda label: _rank(seed, "label", label))
    order = sorted((place, turn) for turn, label in enumerate(turns) for place in range(len(classes[label])))
    chosen = [classes[turns[turn]][place] for place, turn in order]
    return chosen[:shots] if shots else chosen


def _rank(seed: int, kind: str, value: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{kind}\0{value}".encode()).digest()
