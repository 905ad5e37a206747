"""Kinds of IFBench (arXiv 2507.02833) about sentences whose rule the wording of the prompts defines."""

import itertools
import string

from clinmerge_jax.instructions.counting import sentences
from clinmerge_jax.instructions.ifbench.words import words

_SENTENCES = 3


def increment(response: str, *, small_n: int) -> bool:
    """Check that each sentence has exactly `small_n` more words than the one before it."""
    lengths = [len(words(sentence)) for sentence in sentences(response)]
    return all(two - one == small_n for one, two in itertools.pairwise(lengths))


def keyword(response: str, *, N: int, word: str) -> bool:
    """Check that the N-th sentence contains the keyword as a whole word, ignoring case."""
    found = sentences(response.lower())
    return 1 <= N <= len(found) and word.lower() in words(found[N - 1])


def sentence_type(response: str) -> bool:
    """Check that twice as many sentences end with a period as with a question mark, and that both occur."""
    ends = [sentence.rstrip("\"')*_”’")[-1:] for sentence in sentences(response)]
    return ends.count("?") > 0 and ends.count(".") == 2 * ends.count("?")


def sentence_words(response: str) -> bool:
    """Check for three sentences of equal length in which no word is repeated, ignoring case.

    The length is in characters, including marks and spaces.
    """
    found = sentences(response.strip())
    used = words(response.lower())
    return len(found) == _SENTENCES and len({len(one) for one in found}) == 1 and len(set(used)) == len(used)


def sentence_alphabet(response: str) -> bool:
    """Check for 26 sentences whose first words begin with A, B, C and so on."""
    begins = [words(sentence)[:1] for sentence in sentences(response.lower())]
    return ["".join(word)[:1] for word in begins] == list(string.ascii_lowercase)
