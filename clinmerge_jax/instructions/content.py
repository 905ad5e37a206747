"""Parts that an answer must contain (IFEval, arXiv 2311.07911: "Detectable Content")."""

import re

# The markers used in IFEval may be written with a space after each period, and the second without its last period.
_MARKERS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """Check for at least `num_placeholders` placeholders in square brackets, each within one line.

    Nested brackets count once.
    """
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    """Check that the marker occurs, ignoring case. Its place and whether text follows it are not checked."""
    marker = postscript_marker.strip()
    return re.search(_MARKERS.get(marker, re.escape(marker.lower())), response.lower()) is not None
