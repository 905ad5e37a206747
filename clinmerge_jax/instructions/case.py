"""Capital letters and commas (IFEval, arXiv 2311.07911: "Change Cases" and "Punctuation")."""

from clinmerge_jax.instructions.counting import Relation, capital_words, holds
from clinmerge_jax.instructions.language import is_in


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """Check the number of words written all in capitals, as `counting.capital_words` defines them."""
    return holds(len(capital_words(response)), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """Check that the answer has letters, that all of them are capital, and that it is in English."""
    return response.isupper() and is_in(response, "en")


def english_lowercase(response: str) -> bool:
    """Check that the answer has letters, that none of them is capital, and that it is in English."""
    return response.islower() and is_in(response, "en")


def no_comma(response: str) -> bool:
    """Check that no "," occurs. The commas of other scripts are different characters and are allowed."""
    return "," not in response
