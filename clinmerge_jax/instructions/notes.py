"""Kinds of instructions for clinical text that IFEval does not have, with their checkers.

The kinds about case drop IFEval's condition that a language detector finds English: on a few words, half of them drug
names, its verdict is meaningless.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_FENCE = re.compile(r"\A```(?:json)?|```\Z", re.IGNORECASE)
_AROUND_HEADING = "#*_: "


def json_keys(response: str, *, keys: tuple[str, ...]) -> bool:
    """Check that the whole answer is a JSON object, bare or in a code fence, with exactly these keys.

    Each value is a non-empty string or a non-empty list of non-empty strings. The order of the keys is free.
    """
    found = read_object(response)
    return found is not None and sorted(found) == sorted(keys) and all(map(_is_filled, found.values()))


def headings(response: str, *, headings: tuple[str, ...]) -> bool:
    """Check that each heading stands once, alone on its line, in the given order, with text below it.

    Case, a colon and Markdown marks around a heading are ignored.
    """
    wanted = [heading.casefold() for heading in headings]
    lines = [line for line in map(bare_heading, response.split("\n")) if line]
    places = [index for index, line in enumerate(lines) if line in wanted]
    gaps = zip(places, [*places[1:], len(lines)])
    return [lines[index] for index in places] == wanted and all(after - place > 1 for place, after in gaps)


def lowercase(response: str) -> bool:
    """Check that there are letters and none is a capital."""
    return response.islower()


def uppercase(response: str) -> bool:
    """Check that there are letters and all are capitals."""
    return response.isupper()


def read_object(response: str) -> dict[str, Any] | None:
    """Parse an answer as a JSON object; None if it is not one."""
    try:
        value = json.loads(_FENCE.sub("", response.strip()))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def bare_heading(line: str) -> str:
    """The form in which lines and headings are compared: case-folded, without the marks around it."""
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
