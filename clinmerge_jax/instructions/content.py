"""Parts that an answer must have (IFEval, arXiv 2311.07911: "Detectable Content")."""

import re

# The markers of the data may be written with a space after each period, and the last may go without one.
_MARKERS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, each in one line; one within another is not counted."""
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    """The marker occurs, in any case. Where is not looked at, nor whether anything follows it."""
    marker = postscript_marker.strip()
    return re.search(_MARKERS.get(marker, re.escape(marker.lower())), response.lower()) is not None
