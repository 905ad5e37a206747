"""Checkable constraints on an answer: how they are asked for, how an answer follows them, and how they are checked.

A check is written as the kind and the arguments of a checker of the `instructions` room, which this room does not
import. Where a kind is one of IFEval's, IFEval's own check is named.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from clinmerge_jax.miniature.vocabulary import WORDS
from clinmerge_jax.seeded import pick

Check = tuple[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A constraint as a request states it.

    Attributes:
      kind: a key of `KINDS`.
      request: the sentence that asks for it.
      checks: kinds and arguments of the checkers; all must hold.
      answer: the answer that follows it.
    """

    kind: str
    request: str
    checks: tuple[Check, ...]
    answer: str


_REQUESTS = {
    "upper": ("Use only capital letters.", "Answer in capital letters.", "Write it all in upper case."),
    "lower": ("Use only small letters.", "Answer in lower case.", "Do not use capital letters."),
    "words": ("Answer in exactly {} words.", "Use exactly {} words.", "Your answer must have {} words."),
    "start": ('Start with the word "{}".', 'The first word must be "{}".', 'Begin your answer with "{}".'),
    "end": ('End with the word "{}".', 'The last word must be "{}".', 'Finish your answer with "{}".'),
    "title": ("Put your answer in double angular brackets.", "Write double angular brackets around your answer."),
    "repeat": ("First repeat the question, then answer it.", "Repeat the question before you answer."),
    "yes_no": ("Answer yes or no.", "Say only yes or no."),
    "quote": ("Put your answer in double quotation marks.", "Wrap your answer in double quotes."),
    "avoid": ('Do not use the word "{}".', 'Answer without the word "{}".'),
    "json": ('Answer in JSON with the key "{}".', 'Give a JSON object with the key "{}".'),
    "bullets": ("Answer with {} bullet points.", "Write {} bullets."),
    "order": ("List them in {} order, with commas.", "Give a list in {} order, with commas."),
}
KINDS = tuple(_REQUESTS)
HELD_OUT = ("lower", "title")  # asked for in the split "unseen" alone; no model is trained on them
TRAINED = tuple(kind for kind in KINDS if kind not in HELD_OUT)
# The kinds that suit any text as the answer; the others need an answer of their own.
ON_ANY_TEXT = ("upper", "start", "end", "quote", "json")


def request(rng: random.Random, kind: str, argument: str = "") -> str:
    """Returns a sentence that asks for a constraint of a kind."""
    return pick(rng, _REQUESTS[kind]).format(argument)


def on_text(rng: random.Random, kind: str, text: str) -> Constraint:
    """Returns a constraint of a kind in `ON_ANY_TEXT` or `HELD_OUT`, and the text rewritten to follow it."""
    word = pick(rng, WORDS)
    rewrite, check = _ON_TEXT[kind]
    argument = "" if kind in ("upper", "lower", "quote", "title") else word
    return Constraint(kind, request(rng, kind, argument), (check(word),), rewrite(text, word))


def words_exactly(count: int) -> tuple[Check, ...]:
    """Returns the checks of an exact number of words, as IFEval's kind knows only two relations."""
    kind = "length_constraints:number_words"
    return (
        (kind, {"num_words": count, "relation": "at least"}),
        (kind, {"num_words": count + 1, "relation": "less than"}),
    )


_ON_TEXT: dict[str, tuple[Callable[[str, str], str], Callable[[str], Check]]] = {
    "upper": (lambda text, word: text.upper(), lambda word: ("clinical:uppercase", {})),
    "lower": (lambda text, word: text.lower(), lambda word: ("clinical:lowercase", {})),
    "start": (
        lambda text, word: f"{word}: {text}",
        lambda word: ("miniature:first_word", {"word": word}),
    ),
    "end": (lambda text, word: f"{text} {word}", lambda word: ("startend:end_checker", {"end_phrase": word})),
    "title": (lambda text, word: f"<<{text}>>", lambda word: ("detectable_format:title", {})),
    "quote": (lambda text, word: f'"{text}"', lambda word: ("startend:quotation", {})),
    "json": (
        lambda text, word: json.dumps({word: text}),
        lambda word: ("clinical:json_keys", {"keys": (word,)}),
    ),
}
