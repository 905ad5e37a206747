"""Leakage: test items that occur in the training set."""

import dataclasses
from collections.abc import Iterator, Sequence

from absl import logging

from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.task import Item

WORDS = 13  # length of a sequence, as in the search of Brown et al. (2020) for test text in training text
NEAR = 0.5  # the share of a source's sequences from which on it is a near duplicate


@dataclasses.dataclass(frozen=True)
class Leakage:
    """The ids of test items that occur in the training set, in the test set's order.

    Attributes:
      sources: items whose source equals a training item's, ignoring case and white space.
      near: other items, of whose source at least half of the 13-word sequences occur in sources of training items.
      targets: items whose answer, as examples show it, equals a training item's, ignoring case and white space.
        Letters and answers that are not text are not compared.
    """

    sources: tuple[str, ...]
    near: tuple[str, ...]
    targets: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """The number of items of each kind."""
        return {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self)}


def leakage(train: Sequence[Item], test: Sequence[Item]) -> Leakage:
    """Finds test items in the training set.

    The 13-word sequences in memory are those of the test set; the training set's are passed over once. A source of
    fewer than 13 words can only be equal, not a near duplicate.
    """
    wanted = {sequence for item in test for sequence in _sequences(item.source)}
    found = {sequence for item in train for sequence in _sequences(item.source) if sequence in wanted}
    sources = {_plain(item.source) for item in train}
    targets = {_plain(answer) for item in train if (answer := _answer(item))}
    same = [item.id for item in test if _plain(item.source) in sources]
    exact = set(same)
    return Leakage(
        sources=tuple(same),
        near=tuple(item.id for item in test if item.id not in exact and _share(item.source, found) >= NEAR),
        targets=tuple(item.id for item in test if (answer := _answer(item)) and _plain(answer) in targets),
    )


def without_asked(train: Sequence[Item], asked: Sequence[Item], name: str) -> list[Item]:
    """Removes training items that give answers away.

    These are items whose source is asked too, exactly or nearly, and items that share a cluster with an asked one.

    Raises:
      BadInput: no training item is left, because train and test are the same.
    """
    shared = leakage(asked, train)
    told = {*shared.sources, *shared.near}
    clusters = {item.cluster for item in asked if item.cluster}
    left = [item for item in train if item.id not in told and item.cluster not in clusters]
    if train and not left:
        raise BadInput(
            f"task {name}: every training item is also an evaluation item; give a training file other than the test"
        )
    if len(left) < len(train):
        logging.warning(
            "%s: %d training items are also evaluation items, nearly equal to one, or of its cluster; left out",
            name,
            len(train) - len(left),
        )
    return left


def _answer(item: Item) -> str:
    """The answer's text; "" if it is a letter or not text."""
    return "" if item.choices or not isinstance(item.target, str) else item.shown or item.target


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _sequences(text: str) -> Iterator[tuple[str, ...]]:
    words = text.casefold().split()
    return zip(*(words[start:] for start in range(WORDS)))


def _share(text: str, found: set[tuple[str, ...]]) -> float:
    hits = [sequence in found for sequence in _sequences(text)]
    return sum(hits) / len(hits) if hits else 0.0
