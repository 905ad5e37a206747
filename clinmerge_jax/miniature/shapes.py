"""Shapes of documents: a source, a heading, and the text that the heading asks for, each in several wordings.

Clinical and everyday documents are made of the same parts, so what instruct learns about one kind of document can be
of use on the other.
"""

import dataclasses
import random
from collections.abc import Mapping

from clinmerge_jax.miniature.facts import split_of
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

    def write(
        self, rng: random.Random, slots: Mapping[str, str], combination: tuple[str, ...], split: str
    ) -> Written:
        """Returns a document whose choice of wordings belongs to `split`: templates are held out like entities."""
        while True:
            chosen = [int(rng.random() * len(wordings)) for wordings in self.parts]
            if split_of(self.name, *map(str, chosen)) == split:
                break
        lines = [wordings[index] for wordings, index in zip(self.parts, chosen)]
        source = "\n".join([*lines, self.heading]).format_map(slots)
        return Written(self.name, source, pick(rng, self.answers).format_map(slots), combination)
