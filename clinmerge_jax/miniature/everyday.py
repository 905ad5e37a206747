"""Everyday text: stories, simple facts, copying and rewriting, and documents of three shapes with their summaries."""

import random

from clinmerge_jax.miniature.facts import TRAIN, WORLD, split_of
from clinmerge_jax.miniature.shapes import Shape, Written
from clinmerge_jax.miniature.vocabulary import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    NUMBERS,
    PEOPLE,
    PLACES,
    THINGS,
    WEATHER,
    an,
    capitalised,
    joined,
)
from clinmerge_jax.seeded import pick, sample

_OPENINGS = (
    "On {day} it was {weather}, and {name} walked to the {place} with a {colour} {thing}.",
    "{name} lived near the {place} with a {colour} {animal}.",
    "One {weather} morning {name} woke up early and ate some {food}.",
    "{name} worked as {a_job} and had never seen the {place} before.",
    "Last {day} {name} and {friend} met at the {place}.",
    "There was once {a_job} called {name} who owned {number} {thing}s.",
)
_MIDDLES = (
    "{friend} came by and asked for the {thing}.",
    "The {animal} ran out of the {place} and hid behind the {thing2}.",
    '"Have you seen my {thing2}?" asked {friend}.',
    '"It is in the {place2}," said {name}.',
    "They shared some {food} and talked about the {animal}.",
    "{name} counted the {thing2}s, and there were {number} of them.",
    "A sign on the door of the {place2} said: {shout}.",
    "{friend} painted the {thing2} {colour2}, because nobody liked it {colour}.",
    "After that they went from the {place} to the {place2}.",
    "The {animal} does not like {food2}, but it likes {food}.",
    "{friend} is {a_job2}, so {name} asked {friend} for help.",
    "It was too {weather} to stay outside, so they sat in the {place2}.",
    "{name} put the {thing} on the table and the {thing2} under it.",
    "First {name} fed the {animal}, then {name} made {food2}.",
    "{friend} bought {number} {thing2}s and gave one of them to {name}.",
)
_CLOSINGS = (
    "In the end {name} gave the {thing} to {friend}.",
    "At night the {animal} slept in the {place2}.",
    "{name} went home and had {food2} for dinner.",
    '"See you on {day2}," said {friend}.',
    "The {colour} {thing} is still in the {place}.",
)
_FACTS = (
    "A {colour} {thing} is a {thing} that is {colour}.",
    "A {animal} is an animal.",
    "{food} is something that people eat.",
    "{a_job} is a person with a job.",
    "A {thing} is a thing, and a {place} is a place.",
    "{day} is a day of the week.",
    "When it is {weather}, people talk about the weather.",
    "{colour} and {colour2} are colours.",
    "The {animal} eats {food}, and so does {name}.",
)
_TRUTHS = (
    "Snow is white and grass is green.",
    "The sky is blue on a sunny day.",
    "A dog barks and a cat meows.",
    "A week has seven days.",
    "A kettle boils water.",
    "A baker makes bread.",
    "A clock shows the time.",
    "Soup is eaten with a spoon.",
    "A duck can swim and a parrot can talk.",
    "A pencil is for writing.",
    "A farmer keeps sheep and hens.",
    "Honey is sweet.",
    "Books are kept in a library.",
    "A helmet protects the head.",
    "A ladder helps people to climb.",
    "A sailor works on a ship.",
    "Trains stop at a station.",
    "A candle gives light.",
    "Cheese is made from milk.",
    "Sunday comes after Saturday.",
)


_COPIED = (*WORLD.invented_words(), *THINGS, *ANIMALS, *FOODS, *PEOPLE, *PLACES, *COLOURS)


def _slots(rng: random.Random) -> dict[str, str]:
    slots = {"animal": pick(rng, ANIMALS), "number": pick(rng, NUMBERS), "weather": pick(rng, WEATHER)}
    for first, second, items in (
        ("name", "friend", PEOPLE),
        ("thing", "thing2", THINGS),
        ("place", "place2", PLACES),
        ("food", "food2", FOODS),
        ("colour", "colour2", COLOURS),
        ("day", "day2", DAYS),
    ):
        slots[first], slots[second] = sample(rng, items, 2)
    slots["a_job"], slots["a_job2"] = (an(job) for job in sample(rng, JOBS, 2))
    slots["a_colour"] = an(slots["colour"])
    slots["shout"] = f"{pick(rng, THINGS)} {pick(rng, ('shop', 'club', 'repair', 'sale'))}".upper()
    return slots


def story(rng: random.Random) -> str:
    """Returns one or two everyday paragraphs of 3 to 8 sentences each."""
    paragraphs = []
    for _ in range(1 + int(rng.random() * 2)):
        middles = sample(rng, _MIDDLES, 1 + int(rng.random() * 6))
        lines = [pick(rng, _OPENINGS), *middles, pick(rng, _CLOSINGS)]
        paragraphs.append(" ".join(lines).format(**_slots(rng)))
    return "\n\n".join(paragraphs)


def everyday_facts(rng: random.Random) -> str:
    """Returns a list of simple everyday facts, one per line."""
    lines = sample(rng, _TRUTHS, 3)
    for template in sample(rng, _FACTS, 4) + sample(rng, _FACTS, 3):
        lines.append(capitalised(template.format(**_slots(rng))))
    return "\n".join(sample(rng, lines, len(lines)))


def copying(rng: random.Random) -> str:
    """Returns sequences of words that are each repeated several times, the invented names among them.

    The base model learns from them to copy a word from its context, whatever the word. Words stand together at random,
    so a sequence tells no fact.
    """
    return "\n".join(_repeated(rng) for _ in range(3))


def _repeated(rng: random.Random) -> str:
    count = 2 + int(rng.random() * 7)
    words = [pick(rng, _COPIED) for _ in range(count)]
    return " / ".join([" ".join(words)] * max(2, 24 // count))


def rewriting(rng: random.Random) -> str:
    """Returns a text in which most of each line is determined by what stands before: repetition, reversal and case."""
    return "\n".join(_rewritten(rng) for _ in range(4))


def _rewritten(rng: random.Random) -> str:
    slots = _slots(rng)
    words = [pick(rng, _COPIED) for _ in range(2 + int(rng.random() * 4))]
    if rng.random() < 0.6:
        name, friend = slots["name"], slots["friend"]
        return pick(
            rng,
            (
                f"{' '.join(words)} / {' '.join(words).upper()}",
                f"{', '.join(words)} / {', '.join(reversed(words))}",
                f"Words of the day: {', '.join(words)}. Again: {', '.join(words)}.",
                f'"{words[0]}," said {name}. "{words[1]}," said {friend}. They said {words[0]} and {words[1]}.',
                f"{name} likes {words[0]}, {friend} likes {words[1]}. What does {friend} like? {words[1]}.",
                f"{name} likes {words[0]}, {friend} likes {words[1]}. What does {name} like? {words[0]}.",
            ),
        )
    items = sample(rng, THINGS, 3 + int(rng.random() * 3))
    bullets = "\n".join(f"* {item}" for item in items)
    sentence = pick(rng, _MIDDLES[:2] + _MIDDLES[4:6] + _CLOSINGS[:3]).format(**slots)
    return pick(
        rng,
        (
            f"{slots['name']} wrote: {sentence}\n{slots['friend']} wrote the same: {sentence}",
            f"{slots['name']} whispered: {sentence.lower()}\n{slots['friend']} shouted: {sentence.upper()}",
            f"{slots['name']} has {joined([an(i) for i in items])}. The list:\n{bullets}",
        ),
    )


_LOG = Shape(
    "log",
    (
        (
            "LOG\n{name}, {job}, has {a_colour} {thing}",
            "DAY LOG of {name}, the {job}",
            "LOG: {name} ({job}), {weather}",
        ),
        (
            "{day}: found a {thing} in the {place}, no {thing3}",
            "Day 1: no {thing3}, but a {thing} in the {place}",
            "Morning: saw a {thing} in the {place} and no {thing3}",
        ),
        ("Later: {friend} came with {food}", "Night: {food} from {friend}", "Next day: {friend} brought {food}"),
    ),
    "SUMMARY:",
    (
        "{name} found the {thing} in the {place}. {friend} brought {food}.",
        "The {thing} was in the {place}, and {name} got {food} from {friend}.",
    ),
    ("Write the summary of this log.", "Sum up this log."),
)
_TALK = Shape(
    "talk",
    (
        (
            "{name}: Have you seen my {thing}?\n{friend}: Yes, in the {place}.",
            "{friend}: Your {thing} is in the {place}.\n{name}: Thank you.",
            "{name}: I lost my {thing}.\n{friend}: It lies in the {place}.",
        ),
        (
            "{name}: Do you want {food}?\n{friend}: No, I want {food2}.",
            "{friend}: I do not like {food}.\n{name}: Then take {food2}.",
        ),
        ("{name}: See you on {day}.", "{friend}: We meet on {day}.", "{name}: Until {day}."),
    ),
    "RECORD:",
    (
        "THING: {thing} in the {place}. FOOD: {food2}, not {food}. NEXT: {day}.",
        "THING: the {thing} is in the {place}. FOOD: not {food} but {food2}. NEXT: on {day}.",
    ),
    ("Write the record of this talk in three parts.", "Turn this talk into a record with three parts."),
)
_SCENE = Shape(
    "scene",
    (
        ("PLACE {place}, {day}", "SCENE at the {place}", "VIEW: {place}, {weather}"),
        (
            "SEEN: There is {a_colour} {thing}. No {animal}.",
            "SEEN: No {animal}. There is a {thing}, {colour}.",
            "SEEN: Both {name} and {a_colour} {thing} are there.",
        ),
        ("COUNT: {number} {thing2}s", "{thing2}s: {number}"),
    ),
    "REPORT:",
    (
        "One {colour} {thing} and {number} {thing2}s in the {place}.",
        "{number} {thing2}s, and one {colour} {thing}, in the {place}.",
    ),
    ("Write the report of this scene.", "What is the report?"),
)
SHAPES = (_LOG, _TALK, _SCENE)


def document(rng: random.Random, split: str = TRAIN) -> tuple[Written, str]:
    """Returns an everyday document whose (person, thing) and wordings belong to a split, and a request for its answer.

    The shape "scene" may name no person; its pair counts all the same.
    """
    while True:
        slots = _slots(rng)
        if split_of(slots["name"], slots["thing"]) == split:
            break
    slots["job"], slots["thing3"] = pick(rng, JOBS), pick(rng, [thing for thing in THINGS if thing != slots["thing"]])
    shape = pick(rng, SHAPES)
    return shape.write(rng, slots, (slots["name"], slots["thing"]), split), pick(rng, shape.request)


def written(rng: random.Random) -> str:
    """Returns an everyday document with its answer."""
    return document(rng)[0].text
