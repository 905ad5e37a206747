"""Words and letters that an answer must contain or must not contain (IFEval, arXiv 2311.07911: "Keywords")."""

import re

from clinmerge_jax.instructions.counting import Relation, holds


def existence(response: str, *, keywords: tuple[str, ...]) -> bool:
    """Check that each keyword occurs, ignoring case, also within a longer word: "mother" contains "moth"."""
    return all(re.search(re.escape(word), response, re.IGNORECASE) for word in keywords)


def frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """Check how often the keyword occurs, ignoring case, also within a longer word: plurals count."""
    return holds(len(re.findall(re.escape(keyword.strip()), response, re.IGNORECASE)), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: tuple[str, ...]) -> bool:
    """Check that none of the words occurs as a whole word, ignoring case: a plural is a different word."""
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """Check how often the character occurs, ignoring case. A mark such as "#" is counted like a letter.

    The authors' program replaces a character that is not a letter by a randomly drawn letter (keys 1122 and 1129 of the
    data), so its verdict there is unrelated to the prompt.
    """
    return holds(response.lower().count(letter.lower()), let_relation, let_frequency)
