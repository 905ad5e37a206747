"""Length and division of an answer (IFEval, arXiv 2311.07911: "Length Constraints")."""

import itertools

from clinmerge_jax.instructions.counting import Relation, holds, sentences, words

_ENDS_WORD = ".,?!'\""


def number_words(response: str, *, num_words: int, relation: Relation) -> bool:
    """Check the number of words, as `counting.words` defines them."""
    return holds(len(words(response)), relation, num_words)


def number_sentences(response: str, *, num_sentences: int, relation: Relation) -> bool:
    """Check the number of sentences, as `counting.sentences` defines them."""
    return holds(len(sentences(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Check for exactly `num_paragraphs` paragraphs with the divider *** between them.

    A divider may also open or close the answer. Two dividers with nothing between them fail.
    """
    parts = [part.strip() for part in response.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Check the number of paragraphs separated by blank lines, and the first word of the n-th.

    Empty paragraphs, which several blank lines in a row make, are not counted but do take a place in the order. The
    paragraph's first word is compared without quotation marks before it and without everything from the first of
    .,?!'" on, ignoring case. Other marks, such as the asterisks of bold type, are part of the word.
    """
    paragraphs = response.split("\n\n")
    full = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if full != num_paragraphs or not 1 <= nth_paragraph <= full:
        return False
    if not paragraphs[nth_paragraph - 1].strip():
        return False
    found = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    bare = itertools.takewhile(lambda character: character not in _ENDS_WORD, found)
    return "".join(bare).lower() == first_word.lower()
