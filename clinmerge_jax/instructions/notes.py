"""Kinds of instructions that suit clinical text and that IFEval does not have, with their checkers.

Case is asked for without IFEval's condition that a language detector finds English: on a few words, half of them names
of drugs, its guess says nothing.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_FENCE = re.compile(r"\A```(?:json)?|```\Z", re.IGNORECASE)
_AROUND_HEADING = "#*_: "


def json_keys(response: str, *, keys: tuple[str, ...]) -> bool:
    """The whole answer is a JSON object, bare or in a code fence, with these keys and no others.

    A value is text or a list of texts, and not empty. The keys' order is free.
    """
    found = read_object(response)
    return found is not None and sorted(found) == sorted(keys) and all(map(_is_filled, found.values()))


def headings(response: str, *, headings: tuple[str, ...]) -> bool:
    """Each heading has a line of its own, in the given order and once, with text below it before the next.

    Case, a colon and marks of Markdown around a heading do not matter.
    """
    wanted = [heading.casefold() for heading in headings]
    lines = [line for line in map(bare_heading, response.split("\n")) if line]
    places = [index for index, line in enumerate(lines) if line in wanted]
    gaps = zip(places, [*places[1:], len(lines)])
    return [lines[index] for index in places] == wanted and all(after - place > 1 for place, after in gaps)


def lowercase(response: str) -> bool:
    """There are letters and none is a capital."""
    return response.islower()


def uppercase(response: str) -> bool:
    """There are letters and all are capitals."""
    return response.isupper()


def read_object(response: str) -> dict[str, Any] | None:
    """The JSON object that an answer is; None if it is none."""
    try:
        value = json.loads(_FENCE.sub("", response.strip()))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def bare_heading(line: str) -> str:
    """A line as headings are compared."""
    return line.strip(_AROUND_HEADING).casefold()


def _is_filled(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)


CLINICAL: dict[str, Callable[..., bool]] = {
    "clinical:headings": headings,
    "clinical:json_keys": json_keys,
    "clinical:lowercase": lowercase,
    "clinical:uppercase": uppercase,
}
