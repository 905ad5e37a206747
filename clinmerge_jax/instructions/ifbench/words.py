"""Kinds of IFBench (arXiv 2507.02833) about words whose rule the wording of the prompts defines.

A word is what stands between white space, without the marks at its ends: "don't" and "well-known" are one word each.
"""

import collections
import itertools
import re
import string

from clinmerge_jax.instructions.counting import sentences

_CONJUNCTIONS = ("for", "and", "nor", "but", "or", "yet", "so")
_TIMES = (1, 2, 3, 5, 7)
_PALINDROMES, _PALINDROME_LETTERS = 10, 5
_VOWELS, _VOWEL_KINDS = "aeiou", 3


def words(text: str) -> list[str]:
    """The words of a text, as defined above."""
    bare = (re.sub(r"^\W+|\W+$", "", piece) for piece in text.split())
    return [word for word in bare if word]


def word_count_range(response: str, *, min_words: int, max_words: int) -> bool:
    """Check that the number of words lies in a range, both ends included."""
    return min_words <= len(words(response)) <= max_words


def unique_word_count(response: str, *, N: int) -> bool:
    """Check for at least N distinct words, ignoring case."""
    return len(set(words(response.lower()))) >= N


def keywords_multiple(
    response: str, *, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """Check that the five keywords occur 1, 2, 3, 5 and 7 times as whole words, ignoring case."""
    counts = collections.Counter(words(response.lower()))
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    return all(counts[keyword.lower()] == times for keyword, times in zip(keywords, _TIMES))


def conjunctions(response: str, *, small_n: int) -> bool:
    """Check for at least `small_n` different ones of the seven English coordinating conjunctions."""
    return len(set(words(response.lower())).intersection(_CONJUNCTIONS)) >= small_n


def repeats(response: str, *, small_n: int) -> bool:
    """Check that no word occurs more than `small_n` times, ignoring case."""
    return max(collections.Counter(words(response.lower())).values(), default=0) <= small_n


def palindrome(response: str) -> bool:
    """Check for at least ten palindromes of five or more characters, ignoring case."""
    found = (word for word in words(response.lower()) if len(word) >= _PALINDROME_LETTERS and word == word[::-1])
    return sum(1 for _ in found) >= _PALINDROMES


def alphabet(response: str) -> bool:
    """Check that the first letters of successive words follow the alphabet; A follows Z."""
    letters = [word[0] for word in words(response.lower())]
    start = string.ascii_lowercase.find("".join(letters[:1]))
    due = string.ascii_lowercase[start:] + string.ascii_lowercase[:start]
    return bool(letters) and start >= 0 and all(one == two for one, two in zip(letters, itertools.cycle(due)))


def no_consecutive(response: str) -> bool:
    """Check that no two adjacent words begin with the same character, ignoring case."""
    return all(one[0] != two[0] for one, two in itertools.pairwise(words(response.lower())))


def consonants(response: str) -> bool:
    """Check that each word has two adjacent letters that are not among a, e, i, o, u."""
    return all(re.search(r"[b-df-hj-np-tv-z]{2}", word) for word in words(response.lower()))


def vowel(response: str) -> bool:
    """Check that at most three of the letters a, e, i, o, u occur in the whole response."""
    return len(set(response.lower()).intersection(_VOWELS)) <= _VOWEL_KINDS


def prime_lengths(response: str) -> bool:
    """Check that the number of characters of each word is prime."""
    lengths = {len(word) for word in words(response)}
    return all(length > 1 and all(length % factor for factor in range(2, length)) for length in lengths)


def words_position(response: str, *, keyword: str) -> bool:
    """Check that the second word and the second to last are the keyword, ignoring case."""
    found = words(response.lower())
    return len(found) > 1 and found[1] == found[-2] == keyword.lower()


def keywords_specific_position(response: str, *, keyword: str, n: int, m: int) -> bool:
    """Check that the m-th word of the n-th sentence is the keyword, ignoring case."""
    found = sentences(response.lower())
    named = words(found[n - 1]) if 1 <= n <= len(found) else []
    return 1 <= m <= len(named) and named[m - 1] == keyword.lower()


def last_first(response: str) -> bool:
    """Check that each sentence after the first begins with the last word of the one before it, ignoring case."""
    found = [words(sentence) for sentence in sentences(response.lower())]
    return all(one and two and one[-1] == two[0] for one, two in itertools.pairwise(found))


def paragraph_last_first(response: str) -> bool:
    """Check that each non-blank line ends with the word that it begins with, ignoring case."""
    found = [words(line) for line in response.lower().split("\n") if line.strip()]
    return all(paragraph and paragraph[0] == paragraph[-1] for paragraph in found)
