"""How an answer is marked up (IFEval, arXiv 2311.07911: "Detectable Format")."""

import json
import re

from clinmerge_jax.instructions.counting import lines

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """Exactly so many lines begin with "-", or with an asterisk that no second one follows.

    Indented ones count too, and so does a divider of dashes. Numbered lists do not.
    """
    return sum(re.match(r"-|\*(?!\*)", line) is not None for line in lines(response)) == num_bullets


def constrained_response(response: str) -> bool:
    """The answer holds "My answer is yes.", "My answer is no." or "My answer is maybe.", in this case and wording."""
    return any(option in response for option in _OPTIONS)


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """At least so many passages within one line stand between asterisks: *so* or **so**.

    ***So*** is both and counts twice. Asterisks pair up from the left, whatever they were meant for.
    """
    emphasized = [*re.findall(r"\*([^*\n]*)\*", response), *re.findall(r"\*\*([^*\n]*)\*\*", response)]
    return sum(bool(passage.strip()) for passage in emphasized) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many times the word that begins a section is followed by a number, in this case: "Section 1"."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


def json_format(response: str) -> bool:
    """The whole answer is JSON, by itself or within a code fence.

    A lone number or text is JSON too. What Python reads beyond the standard, NaN and Infinity, is let pass.
    """
    body = re.sub(r"\A```(?:json|Json|JSON)?|```\Z", "", response.strip())
    try:
        json.loads(body.strip())
    except (ValueError, RecursionError):  # syntax or numbers of thousands of digits; nesting
        return False
    return True


def title(response: str) -> bool:
    """A title stands in double angular brackets, within one line, and is more than white space: <<Joy>>."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<([^\n]+)>>", response))
