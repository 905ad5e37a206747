"""How long an answer is, and how it is divided (IFEval, arXiv 2311.07911: "Length Constraints")."""

import itertools

from clinmerge_jax.instructions.counting import Relation, holds, sentences, words

_ENDS_WORD = ".,?!'\""


def number_words(response: str, *, num_words: int, relation: Relation) -> bool:
    """The answer has so many words; `counting.words` says what one is."""
    return holds(len(words(response)), relation, num_words)


def number_sentences(response: str, *, num_sentences: int, relation: Relation) -> bool:
    """The answer has so many sentences; `counting.sentences` says what one is."""
    return holds(len(sentences(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """The answer has exactly so many paragraphs with the divider *** between them.

    A divider may also open or close the answer; two with nothing between them are one too many.
    """
    parts = [part.strip() for part in response.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """The answer has exactly so many paragraphs with a blank line between them, and the n-th begins with the word.

    Empty paragraphs, which more than one blank line makes, do not add to the number, but have a place in the order. Of
    the paragraph's first word a quotation mark before it and all from the first of .,?!'" on is left out; case is
    ignored. Other marks, such as the asterisks of bold type, belong to the word.
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
