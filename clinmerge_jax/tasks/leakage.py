"""What of a test set occurs in its training set."""

import dataclasses
from collections.abc import Iterator, Sequence

from absl import logging

from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.task import Item

WORDS = 13  # of a sequence: the length by which Brown et al. (2020) look for test text in training text
NEAR = 0.5  # the share of a source's sequences that makes it a near duplicate


@dataclasses.dataclass(frozen=True)
class Leakage:
    """The ids of test items, in their order.

    Attributes:
      sources: the source is that of a training item, but for case and white space.
      near: it is not, but half of its sequences of 13 words or more occur in sources of training items.
      targets: the answer as examples show it is that of a training item, but for case and white space; letters and
        what is no text are not compared.
    """

    sources: tuple[str, ...]
    near: tuple[str, ...]
    targets: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many there are of each."""
        return {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self)}


def leakage(train: Sequence[Item], test: Sequence[Item]) -> Leakage:
    """Looks for test items in the training set.

    Time and memory grow with the words of the test set; the training set is gone through once. A source of fewer than
    13 words can only be the same, not nearly so.
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
    """The training items that give no answer away: whose source is not asked too, nor nearly, nor of the same cluster.

    Raises:
      BadInput: nothing is left: train and test are the same.
    """
    shared = leakage(asked, train)
    told = {*shared.sources, *shared.near}
    clusters = {item.cluster for item in asked if item.cluster}
    left = [item for item in train if item.id not in told and item.cluster not in clusters]
    if train and not left:
        raise BadInput(f"task {name}: every training item is asked too; give another training file than the test's")
    if len(left) < len(train):
        logging.warning(
            "%s: %d training items are asked too, nearly so, or of the same cluster; they are no examples",
            name,
            len(train) - len(left),
        )
    return left


def _answer(item: Item) -> str:
    """The answer's text; "" where it is a letter or none."""
    return "" if item.choices or not isinstance(item.target, str) else item.shown or item.target


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _sequences(text: str) -> Iterator[tuple[str, ...]]:
    words = text.casefold().split()
    return zip(*(words[start:] for start in range(WORDS)))


def _share(text: str, found: set[tuple[str, ...]]) -> float:
    hits = [sequence in found for sequence in _sequences(text)]
    return sum(hits) / len(hits) if hits else 0.0
