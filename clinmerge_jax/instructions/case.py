"""Capital letters and commas (IFEval, arXiv 2311.07911: "Change Cases" and "Punctuation")."""

from clinmerge_jax.instructions.counting import Relation, capital_words, holds
from clinmerge_jax.instructions.language import is_in


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words are all in capitals; `counting.capital_words` says what one is."""
    return holds(len(capital_words(response)), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """The answer has letters, all of them capital, and is in English."""
    return response.isupper() and is_in(response, "en")


def english_lowercase(response: str) -> bool:
    """The answer has letters, none of them capital, and is in English."""
    return response.islower() and is_in(response, "en")


def no_comma(response: str) -> bool:
    """No "," occurs. The commas of other scripts are other characters."""
    return "," not in response
