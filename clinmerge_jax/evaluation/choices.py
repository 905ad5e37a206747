"""Multiple choice: which letter an answer gives, or which one a model holds most likely."""

import re
import string
from collections.abc import Sequence

import numpy as np

READING = 1  # the version of the rules below
_SAID = r"(?i:\b(?:answer|option|choice)(?:\s+(?:is|would be|should be))?)\s*[:=]?\s*[*_]*[(\[]?([{letters}])\b"
_FIRST = r"\s*[*_]*[(\[]?([{letters}])(?:[)\].:,*_]|\s*$|\s*\n|\s+is\b)"
_ALONE = r"[(\[]([{letters}])[)\]]"


def read_letter(text: str, choices: Sequence[str]) -> str:
    """The letter that a written answer gives; "" where none can be read.

    In this order: what follows the last "answer is", "option" or "choice"; a letter that the answer begins with and
    that stands alone; the only letter in brackets; the only option whose text the answer begins with, whatever the
    case, else the only one whose text occurs in it. Letters are capitals, as a small "a" is a word.

    Args:
      text: the answer.
      choices: the texts of the options, A first.
    """
    letters = string.ascii_uppercase[: len(choices)]
    said = re.findall(_in(_SAID, letters), text)
    if said:
        return said[-1]
    first = re.match(_in(_FIRST, letters), text)
    if first:
        return first[1]
    alone = set(re.findall(_in(_ALONE, letters), text))
    if len(alone) == 1:
        return alone.pop()
    for begins in (True, False):
        told = [letter for letter, choice in zip(letters, choices) if _holds(text, choice, begins)]
        if len(told) == 1:
            return told[0]
    return ""


def likeliest(log_likelihoods: Sequence[float]) -> str:
    """The letter with the highest log-likelihood; of equal ones the first."""
    return string.ascii_uppercase[int(np.argmax(log_likelihoods))]


def _in(pattern: str, letters: str) -> str:
    return pattern.replace("{letters}", letters)


def _holds(text: str, choice: str, begins: bool) -> bool:
    find = re.match if begins else re.search
    return bool(_plain(choice)) and find(rf"(?<!\w){re.escape(_plain(choice))}(?!\w)", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
