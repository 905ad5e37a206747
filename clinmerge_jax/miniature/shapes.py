"""Shapes of documents: a source, a heading, and the text that the heading asks for, each in several wordings.

Clinical and everyday documents are made of the same parts, so what instruct learns about one kind of document can be
of use on the other.
"""

import dataclasses
import functools
import itertools
import random
import zlib
from collections.abc import Mapping

from clinmerge_jax.miniature.facts import DEV, SIZES, TEST, TRAIN
from clinmerge_jax.seeded import pick

JOINT = " "  # between the heading and the answer


@dataclasses.dataclass(frozen=True)
class Written:
    """A written document.

    Attributes:
      shape: the name of its shape.
      source: what is to be summarized; ends with the heading of the answer.
      answer: the text that the heading asks for.
      combination: the entities whose combination decides the split.
    """

    shape: str
    source: str
    answer: str
    combination: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole document."""
        return self.source + JOINT + self.answer


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of document.

    Attributes:
      name: its name.
      parts: the parts of the source, each with its wordings, which have slots in braces.
      heading: the last line of the source.
      answers: the wordings of the answer.
      request: how a user asks for the answer in a conversation.
    """

    name: str
    parts: tuple[tuple[str, ...], ...]
    heading: str
    answers: tuple[str, ...]
    request: tuple[str, ...]

    @functools.cached_property
    def templates(self) -> dict[str, list[tuple[int, ...]]]:
        """The choices of one wording for each part, by split: ordered by a hash, the first are test, the next dev."""
        every = itertools.product(*(range(len(wordings)) for wordings in self.parts))
        order = sorted(every, key=lambda chosen: zlib.crc32(f"{self.name} {chosen}".encode()))
        held_out = max(1, len(order) // SIZES.held_out_one_in)
        return {TEST: order[:held_out], DEV: order[held_out : 2 * held_out], TRAIN: order[2 * held_out :]}

    def write(self, rng: random.Random, slots: Mapping[str, str], combination: tuple[str, ...], split: str) -> Written:
        """Returns a document whose choice of wordings belongs to `split`: templates are held out like entities."""
        chosen = pick(rng, self.templates[split])
        lines = [wordings[index] for wordings, index in zip(self.parts, chosen)]
        source = "\n".join([*lines, self.heading]).format_map(slots)
        return Written(self.name, source, pick(rng, self.answers).format_map(slots), combination)
