"""Multiple choice: reads the letter from a written answer, or picks the letter with the highest log-likelihood."""

import re
import string
from collections.abc import Sequence

import numpy as np

READING = 1  # version of the rules below; part of a Result's key
_LETTER = r"[*_]*[(\[]?({letters})\b(?!['\u2019-]\w)"
_NO_ARTICLE = r"(?!(?<=A)\s+(?!is\b|because\b|since\b|as\b|and\b|or\b|for\b)[a-z0-9])"
_ANSWER = r"(?i:\banswer(?:\s+(?:is|would be|should be))?)\s*[:=]?\s*" + _LETTER + _NO_ARTICLE
_LOWER = r"(?i:\banswer\s+is)\s*[:=]?\s*[*_]*[(\[]?({lower})(?:[)\].*_]|\s*$)"
_FIRST = r"\s*[*_]*[(\[]?({letters})(?:[)\].:,*_]|\s*$|\s*\n|\s+is\b)"
_OPTION = r"(?i:\b(?:option|choice)(?:\s+(?:is|would be|should be))?)\s*[:=]?\s*" + _LETTER + _NO_ARTICLE
_ALONE = r"[(\[]({letters})[)\]]"


def read_letter(text: str, choices: Sequence[str]) -> str:
    """Returns the letter that a written answer gives, or "" if none can be read.

    The first rule that matches decides:
      1. The letter after the last "answer is", "answer:" and the like.
      2. A letter on its own at the start of the answer.
      3. The only letter that "option" or "choice" names.
      4. The only letter in brackets.
      5. The only option whose text the answer begins with, ignoring case.
      6. The only option whose text occurs in the answer, ignoring case.

    Letters are capitals, because a lower-case "a" is a word. A lower-case letter counts only after "answer is", and
    only before a closing mark or the end of the text. An "A" before a word is taken for an article.

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
    """The letter with the highest log-likelihood; the first one in a tie."""
    return string.ascii_uppercase[int(np.argmax(log_likelihoods))]


def _in(pattern: str, letters: str) -> str:
    return pattern.replace("{letters}", f"[{letters}]").replace("{lower}", f"[{letters.lower()}]")


def _holds(text: str, choice: str, begins: bool) -> bool:
    find = re.match if begins else re.search
    return bool(_plain(choice)) and find(rf"(?<!\w){re.escape(_plain(choice))}(?!\w)", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
