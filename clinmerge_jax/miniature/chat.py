"""Everyday requests with checkable constraints, and their correct answers."""

import dataclasses
import json
import random
from collections.abc import Sequence

from clinmerge_jax.miniature.facts import is_held_out
from clinmerge_jax.miniature.vocabulary import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    NUMBERS,
    PEOPLE,
    PLACES,
    THINGS,
    WORDS,
    an,
    capitalised,
    joined,
)
from clinmerge_jax.seeded import pick, sample


@dataclasses.dataclass(frozen=True)
class Turn:
    """One request and its correct answer.

    Attributes:
      kind: one of `KINDS`.
      argument: the argument of the constraint (a word, a number or a direction); empty if the kind has none.
      question: the question, without the constraint.
      answer: the content that a correct reply must contain in any form.
      user: the whole request.
      assistant: the correct reply.
      combinations: the (person, entity) pairs that the request mentions.
    """

    kind: str
    argument: str
    question: str
    answer: tuple[str, ...]
    user: str
    assistant: str
    combinations: tuple[tuple[str, str], ...]


# (entities, values, statement, question, full answer, answer with pronouns, yes/no question)
_FAMILIES = (
    (
        THINGS,
        COLOURS,
        "{n} has a {v} {e}.",
        "What colour is the {e} of {n}?",
        "The {e} of {n} is {v}.",
        "It is {v}.",
        "Is the {e} of {n} {v}?",
    ),
    (
        THINGS,
        PLACES,
        "{n} left the {e} in the {v}.",
        "Where did {n} leave the {e}?",
        "{n} left the {e} in the {v}.",
        "It is in the {v}.",
        "Did {n} leave the {e} in the {v}?",
    ),
    (
        ANIMALS,
        FOODS,
        "{n} gave the {e} some {v}.",
        "What did {n} give the {e}?",
        "{n} gave the {e} some {v}.",
        "It got some {v}.",
        "Did {n} give the {e} some {v}?",
    ),
    (
        THINGS,
        NUMBERS,
        "{n} bought {v} {e}s.",
        "How many {e}s did {n} buy?",
        "{n} bought {v} {e}s.",
        "There are {v}.",
        "Did {n} buy {v} {e}s?",
    ),
    (
        ANIMALS,
        DAYS,
        "{n} saw a {e} on {v}.",
        "When did {n} see a {e}?",
        "{n} saw a {e} on {v}.",
        "It was on {v}.",
        "Did {n} see a {e} on {v}?",
    ),
)

_REQUESTS = {
    "plain": ("", "Please answer.", "Answer briefly."),
    "upper": ("Answer in capital letters.", "Use only capital letters.", "Write it all in upper case."),
    "lower": ("Answer in lower case.", "Use only small letters.", "Do not use capital letters."),
    "words": ("Answer in exactly {} words.", "Use exactly {} words.", "Your answer must have {} words."),
    "start": ('Start your answer with the word "{}".', 'The first word must be "{}".'),
    "end": ('End your answer with the word "{}".', 'The last word must be "{}".'),
    "repeat": ("First repeat the question, then answer it.", "Repeat the question before you answer."),
    "yes_no": ("Answer yes or no.", "Say only yes or no."),
    "quote": ("Put your answer in double quotation marks.", "Wrap your answer in double quotes."),
    "avoid": ('Do not use the word "{}".', 'Answer without the word "{}".'),
    "json": ('Answer in JSON with the key "{}".', 'Give a JSON object with the key "{}".'),
    "bullets": ("Answer with {} bullet points.", "Write {} bullets."),
    "order": ("List them in {} order, with commas.", "Give a list in {} order, with commas."),
}
KINDS = tuple(_REQUESTS)


def _allowed(name: str, entities: Sequence[str], held_out: bool) -> list[str]:
    return [entity for entity in entities if is_held_out(name, entity) == held_out]


def _list_turn(rng: random.Random, kind: str, held_out: bool) -> Turn:
    count = 2 + int(rng.random() * 4)
    while True:
        name = pick(rng, PEOPLE)
        allowed = _allowed(name, THINGS + ANIMALS, held_out)
        if len(allowed) >= count:
            break
    items = sample(rng, allowed, count)
    verb, stem = pick(rng, (("saw", "see"), ("drew", "draw"), ("found", "find")))
    question = f"What did {name} {stem}?"
    if kind == "bullets":
        argument, answer = str(count), "\n".join(f"* {item}" for item in items)
    else:
        argument = pick(rng, ("the same", "reverse"))
        answer = ", ".join(items if argument == "the same" else items[::-1])
    statement = f"{name} {verb} {joined([an(item) for item in items])}."
    user = f"{statement} {question} {pick(rng, _REQUESTS[kind]).format(argument)}"
    pairs = tuple((name, item) for item in items)
    return Turn(kind, argument, question, tuple(items), user, answer, pairs)


def _of_some_length(rng: random.Random, full: str, value: str) -> str:
    """Returns an answer in one of three forms that differ in word count, so that the count can be learned."""
    body = full if full.split()[0] in PEOPLE else full[0].lower() + full[1:]
    opening = pick(rng, ("Well,", "I think", "As you said,"))
    return pick(rng, (f"{capitalised(value)}.", full, f"{opening} {body}"))


def turn(rng: random.Random, held_out: bool = False) -> Turn:
    """Returns a request about a stated everyday fact with one constraint, and its correct answer."""
    kind = pick(rng, KINDS)
    if kind in ("bullets", "order"):
        return _list_turn(rng, kind, held_out)
    entities, values, statement, question, full, short, closed = pick(rng, _FAMILIES)
    facts = []
    while len(facts) < 2:  # the second fact is a distractor
        name = pick(rng, PEOPLE)
        allowed = [entity for entity in _allowed(name, entities, held_out) if all(name != fact["n"] for fact in facts)]
        if allowed:
            facts.append({"n": name, "e": pick(rng, allowed), "v": pick(rng, values)})
    fact = facts[0]
    told = " ".join(statement.format(**f) for f in sample(rng, facts, 2))
    asked, answer, argument = question.format(**fact), fact["v"], ""
    reply = full.format(**fact)
    if kind == "upper":
        reply = reply.upper()
    elif kind == "lower":
        reply = reply.lower()
    elif kind == "words":
        reply = _of_some_length(rng, reply, answer)
        argument = str(len(reply.split()))
    elif kind == "start":
        argument = pick(rng, WORDS)
        reply = f"{argument}: {reply}"
    elif kind == "end":
        argument = pick(rng, WORDS)
        reply = f"{reply} {argument}"
    elif kind == "repeat":
        reply = f"{asked}\n{reply}"
    elif kind == "yes_no":
        guess = answer if rng.random() < 0.5 else pick(rng, [v for v in values if v != answer])
        asked = closed.format(**(fact | {"v": guess}))
        reply = answer = "Yes" if guess == fact["v"] else "No"
    elif kind == "quote":
        reply = f'"{reply}"'
    elif kind == "avoid":
        argument, reply = fact["n"], short.format(**fact)
    elif kind == "json":
        argument = pick(rng, WORDS)
        reply = json.dumps({argument: answer})
    request = pick(rng, _REQUESTS[kind]).format(argument)
    user = f"{told} {asked} {request}" if rng.random() < 0.7 else f"{request} {told} {asked}"
    pairs = tuple((f["n"], f["e"]) for f in facts)
    return Turn(kind, argument, asked, (answer,), user.strip(), reply, pairs)
