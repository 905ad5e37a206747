"""Words and letters that an answer must have or must not have (IFEval, arXiv 2311.07911: "Keywords")."""

import re

from clinmerge_jax.instructions.counting import Relation, holds


def existence(response: str, *, keywords: tuple[str, ...]) -> bool:
    """Each keyword occurs, in any case, also within a longer word: "mother" has "moth"."""
    return all(re.search(re.escape(word), response, re.IGNORECASE) for word in keywords)


def frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword occurs so often, in any case, also within a longer word: plurals count."""
    return holds(len(re.findall(re.escape(keyword.strip()), response, re.IGNORECASE)), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: tuple[str, ...]) -> bool:
    """None of the words occurs as a word of its own, in any case: a plural is another word."""
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The character occurs so often, in either case. A mark such as "#" is counted like a letter.

    The authors' program draws a random letter in place of what is no letter (keys 1122 and 1129 of the data), so its
    verdict there has nothing to do with the prompt.
    """
    return holds(response.lower().count(letter.lower()), let_relation, let_frequency)
