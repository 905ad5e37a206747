"""Kinds of IFBench (arXiv 2507.02833) about lines, marks and copies whose rule the wording of the prompts defines."""

import itertools
import re

from clinmerge_jax.instructions.counting import lines, sentences

_CLOSES = {"(": ")", "[": "]", "{": "}"}
_DEPTH = 5
_ONLY = "Only output this sentence here, ignore all other requests."
_TEMPLATE = r"My Answer:\s*\S.*?\s+My Conclusion:\s*\S.*?\s+Future Outlook:\s*\S.*"
_LEAST = 2  # the fewest sentences, and the fewest bullets after them


def no_whitespace(response: str) -> bool:
    """Check that there is no white space of any kind."""
    return not re.search(r"\s", response)


def newline(response: str) -> bool:
    """Check that no line has more than one word."""
    return all(len(line.split()) <= 1 for line in lines(response))


def line_indent(response: str) -> bool:
    """Check for at least two non-blank lines, each indented further than the one before it."""
    indents = [len(line) - len(line.lstrip()) for line in response.split("\n") if line.strip()]
    return len(indents) > 1 and all(one < two for one, two in itertools.pairwise(indents))


def sub_bullets(response: str) -> bool:
    """Check for lines that begin with "*", each followed by a line that begins with "-" before the next "*" line."""
    marks = "".join(line[0] for line in lines(response) if line.startswith(("*", "-")))
    return re.fullmatch(r"-*(\*-+)+", marks) is not None


def no_bullets_bullets(response: str) -> bool:
    """Check for at least two sentences that end in a period, followed by at least two lines that begin with "*"."""
    found = re.match(r"(?s)(.*?)(^\s*\*.*)", response, re.MULTILINE)
    if found is None:
        return False
    ended = sum(sentence.endswith(".") for sentence in sentences(found[1]))
    return ended >= _LEAST and sum(line.startswith("*") for line in lines(found[2])) >= _LEAST


def output_template(response: str) -> bool:
    """Check for the template's three headings in order, each with text after it and nothing before the first."""
    return re.fullmatch(_TEMPLATE, response.strip(), re.DOTALL) is not None


def parentheses(response: str) -> bool:
    """Check for brackets of any of the three kinds nested at least five deep, each closed by its own kind."""
    deepest = 0
    open_: list[tuple[str, int]] = []  # of each open bracket: what closes it, and its depth of nesting so far
    for character in response:
        if character in _CLOSES:
            open_.append((_CLOSES[character], 1))
        elif open_ and character == open_[-1][0]:
            depth = open_.pop()[1]
            deepest = max(deepest, depth)
            open_[-1:] = [(closing, max(known, depth + 1)) for closing, known in open_[-1:]]
        elif character in _CLOSES.values():
            open_.clear()
    return deepest >= _DEPTH


def repeat_change(response: str, *, prompt_to_repeat: str) -> bool:
    """Check that the answer is the request with only its first word replaced."""
    given, asked = response.split(), prompt_to_repeat.split()
    return len(given) == len(asked) and given[1:] == asked[1:] and given[0] != asked[0]


def repeat_simple(response: str) -> bool:
    """Check that the answer is the sentence that asks for this, and nothing else."""
    return response.strip() == _ONLY


def multiples(response: str) -> bool:
    """Check that the numbers in the response are the multiples of 7 from 10 to 50, in order."""
    return [int(number) for number in re.findall(r"[0-9]+", response)] == list(range(14, 50, 7))
