"""Markup of an answer (IFEval, arXiv 2311.07911: "Detectable Format")."""

import json
import re

from clinmerge_jax.instructions.counting import lines

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """Check for exactly `num_bullets` lines that begin with "-", or with one asterisk not followed by another.

    Indented lines count, and so does a divider of dashes. Numbered lists do not.
    """
    return sum(re.match(r"-|\*(?!\*)", line) is not None for line in lines(response)) == num_bullets


def constrained_response(response: str) -> bool:
    """Check for "My answer is yes.", "My answer is no." or "My answer is maybe.", in exactly this case and wording."""
    return any(option in response for option in _OPTIONS)


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """Check for at least `num_highlights` passages between asterisks, each within one line: *so* or **so**.

    ***So*** is both and counts twice. Asterisks are paired from the left, whatever their purpose.
    """
    emphasized = [*re.findall(r"\*([^*\n]*)\*", response), *re.findall(r"\*\*([^*\n]*)\*\*", response)]
    return sum(bool(passage.strip()) for passage in emphasized) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """Check that the section label with a number after it ("Section 1", case-sensitive) occurs often enough."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


def json_format(response: str) -> bool:
    """Check that the whole answer is JSON, bare or within a code fence.

    A single number or string is JSON too. NaN and Infinity, which Python's parser accepts beyond the standard, pass.
    """
    body = re.sub(r"\A```(?:json|Json|JSON)?|```\Z", "", response.strip())
    try:
        json.loads(body.strip())
    except (ValueError, RecursionError):  # bad syntax or numbers of thousands of digits; too deep nesting
        return False
    return True


def title(response: str) -> bool:
    """Check for a title in double angular brackets, within one line and more than white space: <<Joy>>."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<([^\n]+)>>", response))
