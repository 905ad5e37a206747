"""Everyday requests with one checkable constraint each, and their correct answers."""

import dataclasses
import random
from collections.abc import Sequence

from clinmerge_jax.miniature import constraints, everyday
from clinmerge_jax.miniature.constraints import Check
from clinmerge_jax.miniature.facts import TRAIN, split_of
from clinmerge_jax.miniature.vocabulary import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    NUMBERS,
    PEOPLE,
    PLACES,
    THINGS,
    an,
    capitalised,
    joined,
)
from clinmerge_jax.seeded import pick, sample

PLAIN = "plain"  # a request without a constraint


@dataclasses.dataclass(frozen=True)
class Turn:
    """One request and its correct answer.

    Attributes:
      kind: the kind of its constraint, or `PLAIN`.
      user: the whole request.
      assistant: the correct reply.
      content: the reply without the constraint's form.
      checks: the kinds and arguments of the checkers that a reply must pass.
      combinations: the entity pairs that the request mentions.
    """

    kind: str
    user: str
    assistant: str
    content: str
    checks: tuple[Check, ...]
    combinations: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Family:
    """A family of everyday facts; slots: n person, e entity, v value."""

    entities: Sequence[str]
    values: Sequence[str]
    statement: str
    question: str
    full: str
    short: str  # without the person's name
    closed: str


_FAMILIES = (
    _Family(THINGS, COLOURS, "{n} has a {v} {e}.", "What colour is the {e} of {n}?", "The {e} of {n} is {v}.",
            "It is {v}.", "Is the {e} of {n} {v}?"),
    _Family(THINGS, PLACES, "{n} left the {e} in the {v}.", "Where did {n} leave the {e}?",
            "{n} left the {e} in the {v}.", "It is in the {v}.", "Did {n} leave the {e} in the {v}?"),
    _Family(ANIMALS, FOODS, "{n} gave the {e} some {v}.", "What did {n} give the {e}?", "{n} gave the {e} some {v}.",
            "It got some {v}.", "Did {n} give the {e} some {v}?"),
    _Family(THINGS, NUMBERS, "{n} bought {v} {e}s.", "How many {e}s did {n} buy?", "{n} bought {v} {e}s.",
            "There are {v}.", "Did {n} buy {v} {e}s?"),
    _Family(ANIMALS, DAYS, "{n} saw a {e} on {v}.", "When did {n} see a {e}?", "{n} saw a {e} on {v}.",
            "It was on {v}.", "Did {n} see a {e} on {v}?"),
)  # fmt: skip
_LISTS = ("bullets", "order")
_KINDS = (PLAIN, *constraints.TRAINED)


def facts(rng: random.Random, split: str) -> tuple[_Family, list[dict[str, str]]]:
    """Returns a family of everyday facts and two facts of it about different people, whose pairs belong to a split."""
    family = pick(rng, _FAMILIES)
    found: list[dict[str, str]] = []
    while len(found) < 2:
        name = pick(rng, [person for person in PEOPLE if all(person != fact["n"] for fact in found)])
        allowed = [entity for entity in family.entities if split_of(name, entity) == split]
        if allowed:
            found.append({"n": name, "e": pick(rng, allowed), "v": pick(rng, family.values)})
    return family, found


def _list_turn(rng: random.Random, kind: str, split: str) -> Turn:
    count = 2 + int(rng.random() * 3)
    while True:
        name = pick(rng, PEOPLE)
        allowed = [entity for entity in THINGS + ANIMALS if split_of(name, entity) == split]
        if len(allowed) >= count:
            break
    items = sample(rng, allowed, count)
    verb, stem = pick(rng, (("saw", "see"), ("drew", "draw"), ("found", "find")))
    question = f"What did {name} {stem}?"
    if kind == "bullets":
        argument, answer = str(count), "\n".join(f"* {item}" for item in items)
        checks: tuple[Check, ...] = (("detectable_format:number_bullet_lists", {"num_bullets": count}),)
    else:
        argument = pick(rng, ("the same", "reverse"))
        ordered = items if argument == "the same" else items[::-1]
        answer = ", ".join(ordered)
        checks = (("miniature:listed", {"items": tuple(ordered)}),)
    told = f"{name} {verb} {joined([an(item) for item in items])}."
    user = f"{told} {question} {constraints.request(rng, kind, argument)}"
    return Turn(kind, user, answer, answer.replace("* ", ""), checks, tuple((name, item) for item in items))


def _of_some_length(rng: random.Random, full: str, value: str) -> str:
    """Returns an answer in one of three forms that differ in word count, so that the count can be learned."""
    body = full if full.split()[0] in PEOPLE else full[0].lower() + full[1:]
    return pick(rng, (f"{capitalised(value)}.", full, f"{pick(rng, ('Well,', 'I think', 'As you said,'))} {body}"))


def _fact_turn(rng: random.Random, kind: str, split: str) -> Turn:
    family, found = facts(rng, split)
    fact = found[0]
    told = " ".join(family.statement.format(**one) for one in sample(rng, found, 2))
    asked, value, argument = family.question.format(**fact), fact["v"], ""
    reply, checks = family.full.format(**fact), ()
    if kind in constraints.ON_ANY_TEXT or kind in constraints.HELD_OUT:
        # A JSON value is the bare value, as long answers in JSON are for documents.
        made = constraints.on_text(rng, kind, value if kind == "json" else reply)
        sentence, reply, checks = made.request, made.answer, made.checks
    else:
        if kind == "words":
            reply = _of_some_length(rng, reply, value)
            argument, checks = str(len(reply.split())), constraints.words_exactly(len(reply.split()))
        elif kind == "repeat":
            reply, checks = f"{asked}\n{reply}", (("combination:repeat_prompt", {"prompt_to_repeat": asked}),)
        elif kind == "yes_no":
            guess = value if rng.random() < 0.5 else pick(rng, [v for v in family.values if v != value])
            asked = family.closed.format(**(fact | {"v": guess}))
            reply = value = "Yes" if guess == fact["v"] else "No"
            checks = (("miniature:yes_or_no", {}),)
        elif kind == "avoid":
            argument, reply = fact["n"], family.short.format(**fact)
            checks = (("keywords:forbidden_words", {"forbidden_words": (argument,)}),)
        sentence = "" if kind == PLAIN else constraints.request(rng, kind, argument)
    user = f"{told} {asked} {sentence}" if rng.random() < 0.7 else f"{sentence} {told} {asked}"
    return Turn(kind, user.strip(), reply, value, tuple(checks), tuple((one["n"], one["e"]) for one in found))


def document_request(request: str, sentence: str, source: str) -> str:
    """Returns a request for the text that a document's last heading asks for, with or without a constraint."""
    return f"{request} {sentence}".strip() + "\n\n" + source


def _document_turn(rng: random.Random, kind: str, split: str) -> Turn:
    written, request = everyday.document(rng, split)
    reply, sentence, checks = written.answer, "", ()
    if kind != PLAIN:
        made = constraints.on_text(rng, kind, written.answer)
        reply, sentence, checks = made.answer, made.request, made.checks
    user = document_request(request if rng.random() < 0.6 else "", sentence, written.source)
    return Turn(kind, user, reply, written.answer, tuple(checks), (written.combination,))


def turn(rng: random.Random, split: str = TRAIN, kinds: Sequence[str] = _KINDS) -> Turn:
    """Returns an everyday request with one constraint, about stated facts or a document, and its correct answer.

    Args:
      rng: the source of random choices.
      split: the split that its entity pairs and wordings belong to.
      kinds: the kinds to choose from.
    """
    kind = pick(rng, kinds)
    if kind in _LISTS:
        return _list_turn(rng, kind, split)
    on_document = kind in (PLAIN, *constraints.ON_ANY_TEXT, *constraints.HELD_OUT) and rng.random() < 0.5
    return _document_turn(rng, kind, split) if on_document else _fact_turn(rng, kind, split)
