"""Multiple choice: which letter an answer gives, or which one a model holds most likely."""

import re
import string
from collections.abc import Sequence

import numpy as np

READING = 1  # the version of the rules below
_LETTER = r"[*_]*[(\[]?({letters})\b(?!['\u2019-]\w)"
_NO_ARTICLE = r"(?!(?<=A)\s+(?!is\b|because\b|since\b|as\b|and\b|or\b|for\b)[a-z0-9])"
_ANSWER = r"(?i:\banswer(?:\s+(?:is|would be|should be))?)\s*[:=]?\s*" + _LETTER + _NO_ARTICLE
_LOWER = r"(?i:\banswer\s+is)\s*[:=]?\s*[*_]*[(\[]?({lower})(?:[)\].*_]|\s*$)"
_FIRST = r"\s*[*_]*[(\[]?({letters})(?:[)\].:,*_]|\s*$|\s*\n|\s+is\b)"
_OPTION = r"(?i:\b(?:option|choice)(?:\s+(?:is|would be|should be))?)\s*[:=]?\s*" + _LETTER + _NO_ARTICLE
_ALONE = r"[(\[]({letters})[)\]]"


def read_letter(text: str, choices: Sequence[str]) -> str:
    """The letter that a written answer gives; "" where none can be read.

    In this order: what follows the last "answer is" or "answer:"; a letter that the answer begins with and that
    stands alone; the only letter that "option" or "choice" names; the only letter in brackets; the only option whose
    text the answer begins with, whatever the case, else the only one whose text occurs in it. Letters are capitals, as
    a small "a" is a word, but for one that ends "the answer is"; an "A" before a word is an article.

    Args:
      text: the answer.
      choices: the texts of the options, A first.
    """
    letters = string.ascii_uppercase[: len(choices)]
    said = re.findall(_in(_ANSWER, letters), text) or re.findall(_in(_LOWER, letters), text)
    if said:
        return said[-1].upper()
    first = re.match(_in(_FIRST, letters), text)
    if first:
        return first[1]
    for pattern in (_OPTION, _ALONE):
        found = set(re.findall(_in(pattern, letters), text))
        if len(found) == 1:
            return found.pop()
    for begins in (True, False):
        told = [letter for letter, choice in zip(letters, choices) if _holds(text, choice, begins)]
        if len(told) == 1:
            return told[0]
    return ""


def likeliest(log_likelihoods: Sequence[float]) -> str:
    """The letter with the highest log-likelihood; of equal ones the first."""
    return string.ascii_uppercase[int(np.argmax(log_likelihoods))]


def _in(pattern: str, letters: str) -> str:
    return pattern.replace("{letters}", f"[{letters}]").replace("{lower}", f"[{letters.lower()}]")


def _holds(text: str, choice: str, begins: bool) -> bool:
    find = re.match if begins else re.search
    return bool(_plain(choice)) and find(rf"(?<!\w){re.escape(_plain(choice))}(?!\w)", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
