"""Kinds of instructions to draw from, and the rules on which kinds may be combined."""

import dataclasses
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from clinmerge_jax.instructions.target import Instruction
from clinmerge_jax.seeded import pick, sample

Arguments = dict[str, str | int | tuple[str, ...]]

LAYOUTS = {
    "combination:two_responses",
    "clinical:headings",
    "clinical:json_keys",
    "detectable_format:json_format",
    "detectable_format:multiple_sections",
    "detectable_format:number_bullet_lists",
    "length_constraints:nth_paragraph_first_word",
    "length_constraints:number_paragraphs",
}
_ONE_OF = (
    LAYOUTS,
    {  # which letters are capital; a section label has both cases
        "change_case:capital_word_frequency",
        "change_case:english_capital",
        "change_case:english_lowercase",
        "clinical:headings",
        "clinical:json_keys",
        "clinical:lowercase",
        "clinical:uppercase",
        "detectable_format:json_format",
        "detectable_format:multiple_sections",
    },
    {"length_constraints:number_sentences", "length_constraints:number_words"},
    {"detectable_content:postscript", "startend:end_checker"},
    {"detectable_format:title", "length_constraints:nth_paragraph_first_word"},
    # The opening quotation mark would come before the first bullet, heading or repeated word.
    {"startend:quotation", "detectable_format:number_bullet_lists"},
    {"startend:quotation", "clinical:headings"},
)
_WORDS = {"keywords:existence", "keywords:forbidden_words", "keywords:frequency"}
_ONLY_WITH: dict[str, set[str]] = {
    "detectable_format:constrained_response": set(),
    "language:response_language": {"punctuation:no_comma", "startend:quotation"},
    "combination:two_responses": {*_WORDS, "punctuation:no_comma"},
    "detectable_format:json_format": _WORDS,
    "clinical:json_keys": _WORDS,
    "combination:repeat_prompt": {
        "detectable_content:number_placeholders",
        "keywords:existence",
        "startend:end_checker",
    },
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of instruction that generated sets draw from.

    Attributes:
      id: the id of its checker.
      draw: draws its arguments at random for a subject; returns None where the kind does not suit the subject.
      wordings: its wordings, with its arguments in braces.
      names: the words that replace argument values in wordings, such as a language's name for its code.
    """

    id: str
    draw: Callable[[random.Random, Any], dict[str, Any] | None]
    wordings: tuple[str, ...]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def say(self, rng: random.Random, kwargs: Mapping[str, Any]) -> str:
        """Word the instruction in a randomly picked wording; an argument of several words is quoted and joined."""
        shown = {
            name: _listed(value) if isinstance(value, tuple) else self.names.get(value, value)
            for name, value in kwargs.items()
        }
        return pick(rng, self.wordings).format(**shown)


def no_arguments(rng: random.Random, subject: Any) -> Arguments:
    """A `Kind.draw` for kinds without arguments."""
    return {}


def compatible(ids: Collection[str]) -> bool:
    """Whether one answer can sensibly follow instructions of all these kinds."""
    chosen = set(ids)
    if len(chosen) < len(ids) or any(len(chosen & group) > 1 for group in _ONE_OF):
        return False
    return all(chosen - {id_} <= allowed for id_, allowed in _ONLY_WITH.items() if id_ in chosen)


def draw_together(
    rng: random.Random,
    first: Kind,
    others: Sequence[Kind],
    count: int,
    subject: Any,
    together: Callable[[Collection[str]], bool] = compatible,
) -> tuple[tuple[Instruction, ...], list[str]] | None:
    """Draw up to `count` instructions that may be combined, beginning with `first`.

    Args:
      rng: the source of all random choices.
      first: the kind of the first instruction.
      others: the kinds of the further instructions.
      count: the number of instructions wanted.
      subject: passed on to the `draw` of the kinds.
      together: whether kinds with these ids may be combined.

    Returns:
      The instructions, fewer than `count` if no more can be combined, and their wordings. None where `first` does not
      suit the subject.
    """
    instructions: list[Instruction] = []
    said: list[str] = []
    used: set[str] = set()
    for kind in (first, *sample(rng, others, len(others))):
        if together([*(instruction.id for instruction in instructions), kind.id]):
            kwargs = kind.draw(rng, subject)
            if kwargs is not None and not used & (named := _words_of(kwargs)):
                used |= named
                instructions.append(Instruction(kind.id, kwargs))
                said.append(kind.say(rng, kwargs))
        if not instructions:
            return None
        if len(instructions) == count:
            break
    return tuple(instructions), said


def _words_of(kwargs: Mapping[str, Any]) -> set[str]:
    """The words that an instruction is about; two about the same word would contradict or repeat each other."""
    values = (kwargs.get(name, ()) for name in ("keyword", "first_word", "keywords", "forbidden_words"))
    return {word for value in values for word in ((value,) if isinstance(value, str) else value)}


def _listed(values: tuple[str, ...]) -> str:
    quoted = [f'"{value}"' for value in values]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
