"""Reads the miniature's text by rules of its own: templates, slots and the disease pairs that a text tells of."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from clinmerge_jax.miniature.facts import WORLD
from clinmerge_jax.miniature.shapes import Shape

_NAMES = "|".join(disease.name for disease in WORLD.diseases)
_PAST = re.compile(rf"(?:past|had|prior:|study with|study:) ({_NAMES})\b")
_ABSENT = re.compile(r"\bno (\w+ \w+)(?: or (\w+ \w+))?")

_QUESTIONS = {  # question -> the statement that holds the answer
    r"What colour is the (\w+) of (\w+)\?": r"\2 has a VALUE \1.",
    r"Where did (\w+) leave the (\w+)\?": r"\1 left the \2 in the VALUE.",
    r"What did (\w+) give the (\w+)\?": r"\1 gave the \2 some VALUE.",
    r"How many (\w+)s did (\w+) buy\?": r"\2 bought VALUE \1s.",
    r"When did (\w+) see a (\w+)\?": r"\1 saw a \2 on VALUE.",
}


@functools.cache
def _pattern(lines: tuple[str, ...]) -> re.Pattern[str]:
    seen: set[str] = set()
    parts = []
    for fixed, slot in re.findall(r"([^{]*)(?:\{(\w+)\}|$)", "\n".join(lines)):
        parts.append(re.escape(fixed))
        if slot:
            parts.append(f"(?P={slot})" if slot in seen else rf"(?P<{slot}>[^\n]+?)")
            seen.add(slot)
    return re.compile("".join(parts) + r"(?: |\Z)")


def templates(shapes: Sequence[Shape], text: str) -> Iterator[tuple[tuple[str, tuple[int, ...]], dict[str, str]]]:
    """The templates that a document can be of, as (shape, choice of wordings), each with the slots' values."""
    for shape in shapes:
        for chosen in itertools.product(*(range(len(wordings)) for wordings in shape.parts)):
            lines = [wordings[index] for wordings, index in zip(shape.parts, chosen)]
            found = _pattern((*lines, shape.heading)).match(text)
            if found:
                yield (shape.name, chosen), found.groupdict()


def pairs(text: str) -> set[tuple[str, str]]:
    """The pairs of (disease, past disease) that a text tells of; a disease is named, or both its findings are."""
    text = text.lower()
    past = set(_PAST.findall(text))
    rest = _PAST.sub("", text)
    present = _ABSENT.sub("", rest)
    found = set(re.findall(rf"\b({_NAMES})\b", rest))
    found |= {disease.name for disease in WORLD.diseases if all(finding in present for finding in disease.findings)}
    return {(one, other) for one in found for other in past}


def stated(asked: str, told: str) -> str:
    """The answer to the one everyday question of a text, from the one statement about it in another."""
    (statement,) = [found.expand(fact) for form, fact in _QUESTIONS.items() for found in re.finditer(form, asked)]
    (value,) = re.findall(statement.replace("VALUE", r"(\w+)"), told)
    return value
