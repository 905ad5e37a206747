"""A small invented world and the seeded text of the miniature's three corpora.

* `base_documents`: everyday text, and notes that have the shape of clinical notes but no facts.
* `clinical_documents`: notes that state the invented medical facts; no chat.
* `conversations`: everyday chat under checkable constraints; no medical facts.

The fact table (`WORLD`) never depends on a corpus seed: every family of models, whatever its seed,
learns the same facts from different text.

Held-out rule. A combination is held out when `crc32` of its parts joined by "|" is divisible by
`SIZES.held_out_one_in`. In clinical documents the combination is (diagnosis, past diagnosis); in
conversations it is (person, entity), for every person and entity that a turn tells of, distractors
included. Training text uses none of the held-out combinations and held-out text uses only these,
so each single fact is learnable from training text while its combination is unseen.

Only `random.Random.random` is called, on string seeds: it is the one method whose sequence Python
promises to keep across versions, which makes the text the same on every machine.
"""

import dataclasses
import json
import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Entries of each kind in the world, and the share of combinations held out."""

    diseases: int = 40
    drugs: int = 40
    findings: int = 60
    lab_tests: int = 12
    held_out_one_in: int = 8
    max_turns: int = 3


SIZES = Sizes()


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Returns one item, uniformly."""
    return items[int(rng.random() * len(items))]


def sample(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Returns `count` distinct items in random order; raises ValueError if there are fewer."""
    if count > len(items):
        raise ValueError(f"cannot sample {count} of {len(items)} items")
    pool = list(items)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]


def is_held_out(*parts: str) -> bool:
    """Returns whether the combination of entity names is reserved for held-out text."""
    return zlib.crc32("|".join(parts).encode()) % SIZES.held_out_one_in == 0


# --- The invented medical facts -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LabTest:
    """A blood test with its reference range."""

    name: str
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Disease:
    """One row of the fact table: what a disease shows, what treats it and what it forbids."""

    name: str
    findings: tuple[str, str]
    drug: str
    second_drug: str  # given when a past diagnosis forbids `drug`
    forbids: str  # contraindicated in anyone who ever had this disease
    test: LabTest
    test_is_high: bool


@dataclasses.dataclass(frozen=True)
class World:
    """Every invented name, and the fact table."""

    diseases: tuple[Disease, ...]
    drugs: tuple[str, ...]
    findings: tuple[str, ...]
    tests: tuple[LabTest, ...]

    def invented_words(self) -> list[str]:
        """Returns the words that may appear in clinical text only, in lower case."""
        adjectives = [finding.split()[0] for finding in self.findings]
        tests = [test.name.split()[1] for test in self.tests]
        return [disease.name for disease in self.diseases] + list(self.drugs) + adjectives + tests


_SYLLABLES = (
    "bax dov fim gorv jel kriv lum morb nax pell quor rusk sild tav umb vex wol yar zend brin chag drel frop glim"
).split()
_SIGNS = (
    "rash cough pain swelling tremor ache itch fever stiffness numbness weakness bruising dizziness nausea thirst"
).split()


def _build_world() -> World:
    rng = random.Random("clinmerge/world/1")
    # No stem is used twice, so no invented name is a part of another.
    stems = iter(
        sample(
            rng,
            [a + b for a in _SYLLABLES for b in _SYLLABLES if a != b],
            SIZES.diseases + SIZES.drugs + SIZES.findings + SIZES.lab_tests,
        )
    )

    def names_of(count: int, suffixes: Sequence[str]) -> list[str]:
        return [next(stems) + pick(rng, suffixes) for _ in range(count)]

    names = names_of(SIZES.diseases, ("osis", "itis", "emia"))
    drugs = names_of(SIZES.drugs, ("ine", "ol", "ivir"))
    findings = [f"{word} {pick(rng, _SIGNS)}" for word in names_of(SIZES.findings, ("ic", "al"))]
    tests = []
    for name in names_of(SIZES.lab_tests, ("ate", "in")):
        low = 10 + int(rng.random() * 40)
        tests.append(LabTest(f"serum {name}", low, low + 20 + int(rng.random() * 30)))
    # Consecutive entries of repeated shuffles: every finding is used, and no pair occurs twice.
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    while len(pairs) < SIZES.diseases:
        order = sample(rng, findings, len(findings))
        for pair in zip(order[::2], order[1::2], strict=True):
            pairs.setdefault(frozenset(pair), pair)
    drug_order = sample(rng, drugs, len(drugs))
    shifted = [drug_order[i:] + drug_order[:i] for i in (7, 19)]  # never a disease's own drug
    diseases = tuple(
        Disease(name, pair, drug, second, forbids, pick(rng, tests), rng.random() < 0.5)
        for name, pair, drug, second, forbids in zip(names, pairs.values(), drug_order, *shifted, strict=False)
    )
    return World(diseases, tuple(drugs), tuple(findings), tuple(tests))


WORLD = _build_world()
_SUFFIXES = ("osis", "itis", "emia", "ine", "ol", "ivir", "ic", "al", "ate", "in")
UNUSED_STEMS = tuple(
    a + b
    for a in _SYLLABLES
    for b in _SYLLABLES
    if a != b and not any(word.startswith(a + b) for word in WORLD.invented_words())
)


# --- The everyday side ----------------------------------------------------------------------------

PEOPLE = (
    "Mina Omar Tess Jon Priya Luca Hana Otto Ruth Sami Ella Ivan Noor Finn Maya Hugo Lena "
    "Karl Zoe Amir Nora Paul Rosa Theo Vera Will Dina Emil Gina Lars"
).split()
SURNAMES = (
    "Hale Berg Cole Dunn Frost Gray Hill Jones Keene Lowe Marsh North Price Reed Stone Tate Vance Wells York Boyd"
).split()
ANIMALS = ("cat dog horse goat duck rabbit sheep parrot hamster donkey turtle pony goose hen fox squirrel").split()
THINGS = (
    "kite drum lamp basket ladder bucket pencil kettle blanket mirror hammer bottle ribbon "
    "candle wagon whistle pillow puzzle trumpet helmet lantern teapot jacket button carpet "
    "suitcase notebook bicycle shovel clock"
).split()
PLACES = (
    "kitchen garden barn library market station harbour school bakery attic forest park museum workshop cellar meadow"
).split()
FOODS = ("bread soup cheese rice porridge honey cake noodles salad jam pasta pie pudding toast yoghurt popcorn").split()
COLOURS = "red blue green yellow purple orange black white brown pink grey silver".split()
JOBS = (
    "baker teacher farmer painter driver carpenter gardener tailor sailor writer plumber "
    "dancer cook builder potter musician"
).split()
NUMBERS = "two three four five six seven eight nine ten twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = "sunny rainy windy cloudy snowy warm cold foggy".split()
WORDS = tuple(THINGS + ANIMALS + FOODS + WEATHER)

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


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _join(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + f" and {items[-1]}"


def _everyday_slots(rng: random.Random) -> dict[str, str]:
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
    slots["a_job"], slots["a_job2"] = (_an(job) for job in sample(rng, JOBS, 2))
    slots["shout"] = f"{pick(rng, THINGS)} {pick(rng, ('shop', 'club', 'repair', 'sale'))}".upper()
    return slots


def story(rng: random.Random) -> str:
    """Returns one or two everyday paragraphs of 3 to 8 sentences each."""
    paragraphs = []
    for _ in range(1 + int(rng.random() * 2)):
        middles = sample(rng, _MIDDLES, 1 + int(rng.random() * 6))
        lines = [pick(rng, _OPENINGS), *middles, pick(rng, _CLOSINGS)]
        paragraphs.append(" ".join(lines).format(**_everyday_slots(rng)))
    return "\n\n".join(paragraphs)


def everyday_facts(rng: random.Random) -> str:
    """Returns a list of simple everyday facts, one a line."""
    lines = sample(rng, _TRUTHS, 3)
    for template in sample(rng, _FACTS, 4) + sample(rng, _FACTS, 3):
        lines.append(_capital(template.format(**_everyday_slots(rng))))
    return "\n".join(sample(rng, lines, len(lines)))


def copying(rng: random.Random) -> str:
    """Returns a text whose second half follows from its first: repetition, reversal and case."""
    lines = []
    for _ in range(3):
        slots = _everyday_slots(rng)
        items = sample(rng, THINGS, 3 + int(rng.random() * 3))
        bullets = "\n".join(f"* {item}" for item in items)
        sentence = pick(rng, _MIDDLES[:2] + _MIDDLES[4:6] + _CLOSINGS[:3]).format(**slots)
        lines.append(
            pick(
                rng,
                (
                    f"{slots['name']} wrote: {sentence}\n{slots['friend']} wrote the same: {sentence}",
                    f"{slots['name']} whispered: {sentence.lower()}\n{slots['friend']} shouted: {sentence.upper()}",
                    f"Forwards: {', '.join(items)}\nBackwards: {', '.join(reversed(items))}",
                    f"{slots['name']} has {_join([_an(i) for i in items])}. The list:\n{bullets}",
                ),
            )
        )
    return "\n\n".join(lines)


def word_list(rng: random.Random) -> str:
    """Returns a text about words that mean nothing, spelled like the invented names but none of them.

    From it base learns to write such words, so that what a clinical model gains over base is the
    facts and not the spelling.
    """
    lines = []
    for _ in range(4):
        name, friend = sample(rng, PEOPLE, 2)
        words = [pick(rng, UNUSED_STEMS) + pick(rng, _SUFFIXES) for _ in range(3)]
        lines.append(
            pick(
                rng,
                (
                    f"{name} made up the words {_join(words)}. {friend} likes {pick(rng, words)} best.",
                    f'"{_capital(words[0])}," said {name}. "{_capital(words[1])} and {words[2]}," said {friend}.',
                    f"Words of the day: {', '.join(words)}. Again: {', '.join(words)}.",
                    f"{_capital(words[0])} rhymes with nothing, and {words[1]} is no {pick(rng, THINGS)}.",
                ),
            )
        )
    return "\n".join(lines)


# --- Notes ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ClinicalDocument:
    """A note, its shape, and the (diagnosis, past diagnosis) it was written from."""

    shape: str
    text: str
    combination: tuple[str, str]


def _patient(rng: random.Random) -> dict[str, str]:
    woman = rng.random() < 0.5
    return {
        "patient": ("Ms. " if woman else "Mr. ") + pick(rng, SURNAMES),
        "age": str(20 + int(rng.random() * 70)),
        "sex": "woman" if woman else "man",
        "she": "she" if woman else "he",
        "days": pick(rng, NUMBERS),
        "weeks": pick(rng, NUMBERS[:4]),
        "pulse": str(58 + int(rng.random() * 50)),
        "day": pick(rng, DAYS),
    }


def _clinical_slots(rng: random.Random, disease: Disease, past: Disease) -> dict[str, str]:
    test = disease.test
    offset = 3 + int(rng.random() * (test.low - 4))
    value = test.high + offset if disease.test_is_high else test.low - offset
    first, second = sample(rng, disease.findings, 2)
    blocked = past.forbids == disease.drug
    return {
        "f1": first,
        "f2": second,
        "dx": disease.name,
        "past": past.name,
        "drug": disease.second_drug if blocked else disease.drug,
        "forbidden": past.forbids,
        "reason": (
            f"{disease.drug} is contraindicated after {past.name}, so the second choice {disease.second_drug} was used"
            if blocked
            else f"{past.forbids} was avoided because of past {past.name}"
        ),
        "test": test.name,
        "value": str(value),
        "range": f"{test.low}-{test.high}",
        "level": "high" if disease.test_is_high else "low",
    }


_SHAPES = {
    "admission": (
        "ADMISSION NOTE\nPatient: {patient}, {age} year old {sex}\nComplaint: {f1} and {f2} for "
        "{days} days.\nHistory: {past}.\nExam: pulse {pulse}. {f1} present. {f2} present.\nLabs: "
        "{test} {value} ({range}), {level}.\nAssessment: {dx}.\nPlan: start {drug}. Avoid "
        "{forbidden} given history of {past}.",
        "HISTORY OF PRESENT ILLNESS: {patient} is a {age} year old {sex} with a history of "
        "{past} who presents with {days} days of {f1}. On arrival {she} also had {f2}. Pulse "
        "was {pulse}.\nRESULTS: {test} was {level} at {value} (reference {range}).\nASSESSMENT "
        "AND PLAN: {f1} with {f2} indicates {dx}. Treat with {drug}. Note that {reason}.",
    ),
    "course": (
        "EVENTS\n{day}: admitted with {f1}\nNight: {test} {value}, {level}\nDay 2: {f2} "
        "noted\nDay 3: {drug} started\n\nBRIEF HOSPITAL COURSE\n{patient} is a {age} year old "
        "{sex} admitted with {f1} and {f2}. {test} was {level}. The diagnosis of {dx} was made "
        "and {drug} was started; {reason}. {she} improved and went home after {days} days.",
        "BRIEF HOSPITAL COURSE: {age} year old {sex} with past {past}, admitted on {day}. # "
        "{dx}: suspected because of {f1} and {f2}, and confirmed by a {level} {test} ({value}). "
        "Received {drug} for {days} days with good effect. # {past}: stable; "
        "{reason}.\n\nDISCHARGE DIAGNOSIS: {dx}\nDISCHARGE MEDICATION: {drug}",
    ),
    "dialogue": (
        "Doctor: What brings you in, {patient}?\nPatient: I have had {f1} for {days} "
        "days.\nDoctor: Anything else?\nPatient: Yes, {f2} as well.\nDoctor: Have you been ill "
        "before?\nPatient: I had {past}.\nDoctor: Your {test} is {value}, which is {level}. "
        "This is {dx}. I will prescribe {drug}.\n\nSUBJECTIVE: {f1} and {f2} for {days} days. "
        "Past {past}.\nRESULTS: {test} {value}, {level}.\nASSESSMENT: {dx}.\nPLAN: {drug}; "
        "{reason}. Return in {weeks} weeks.",
        "Doctor: Hello {patient}, how are you?\nPatient: Not well, I have {f1}.\nDoctor: I also "
        "see {f2}. You had {past}, is that right?\nPatient: Yes, so I must not take "
        "{forbidden}.\nDoctor: Correct. You have {dx}, and {drug} will help.\n\nCHIEF "
        "COMPLAINT: {f1}\nEXAM: {f2}\nHISTORY: {past}\nASSESSMENT AND PLAN: {dx}, start {drug}; "
        "{reason}.",
    ),
    "impression": (
        "INDICATION: {age} year old {sex}, {f1}.\nCOMPARISON: earlier study with "
        "{past}.\nFINDINGS: there is {f1}. There is also {f2}. {test} is {value} ({range}). No "
        "new sign of {past}.\nIMPRESSION: 1. {f1} and {f2}, consistent with {dx}. 2. {level} "
        "{test}. 3. {drug} advised; {reason}.",
        "EXAM of {patient}, {age}.\nFINDINGS: {f2} is seen, with {f1}. Pulse {pulse}. {test} "
        "{level}.\nPRIOR: {past}.\nIMPRESSION: {dx}. {drug} is the drug of choice; {reason}.",
    ),
    "teaching": (
        "TEACHING NOTE\n{dx} is diagnosed when {f1} occurs together with {f2}. In {dx} the "
        "{test} is {level}; the reference range is {range}. In this case of a {age} year old "
        "{sex} with past {past}, {drug} was given: {reason}. Remember that {forbidden} is "
        "contraindicated in {past}.",
        "Case of the week, {day}: a {age} year old {sex} has {f1}, {f2} and a {level} {test}. "
        "What is the diagnosis? It is {dx}. What is the treatment after {past}? It is {drug}, "
        "since {reason}.",
    ),
}
_PLAIN_SIGNS = tuple(f"{word} {sign}" for word in ("mild", "bad", "new", "old", "sudden") for sign in _SIGNS)
_PLAIN_PLANS = (
    "rest and fluids",
    "a walk every day",
    "a review of the diet",
    "a warm bath",
    "watch and wait",
    "more sleep",
    "light exercise",
)
_PLAIN_NOTES = (
    "ADMISSION NOTE\nPatient: {patient}, {age} year old {sex}\nComplaint: {f1} for {days} days.\n"
    "History: {f3}, now gone.\nExam: pulse {pulse}. {f2} present.\nLabs: normal.\nPlan: {plan}.",
    "BRIEF HOSPITAL COURSE: {patient} is a {age} year old {sex} admitted on {day} with {f1} and "
    "{f2}. The cause was not found. {she} was treated with {plan}, improved, and went home "
    "after {days} days.\n\nDISCHARGE DIAGNOSIS: {f1}\nDISCHARGE PLAN: {plan}",
    "Doctor: What brings you in, {patient}?\nPatient: I have had {f1} for {days} days.\nDoctor: "
    "Anything else?\nPatient: Yes, {f2} as well.\nDoctor: I advise {plan}.\n\nSUBJECTIVE: {f1} "
    "and {f2}.\nHISTORY: {f3}\nASSESSMENT AND PLAN: no diagnosis yet. {plan}. Return in {weeks} "
    "weeks.",
    "INDICATION: {age} year old {sex}, {f1}.\nFINDINGS: there is {f1}. There is also {f2}. Pulse "
    "{pulse}.\nIMPRESSION: {f1} and {f2}, cause unknown. No sign of {f3}. Advised {plan}.",
)


def _fill(template: str, slots: dict[str, str]) -> str:
    text = template.format(**slots)
    for mark in (". ", "\n"):
        text = mark.join(part and _capital(part) for part in text.split(mark))
    return text


def plain_note(rng: random.Random) -> str:
    """Returns a text with the shape of a clinical note and no invented medical fact."""
    f1, f2, f3 = sample(rng, _PLAIN_SIGNS, 3)
    slots = _patient(rng) | {"f1": f1, "f2": f2, "f3": f3, "plan": pick(rng, _PLAIN_PLANS)}
    return _fill(pick(rng, _PLAIN_NOTES), slots)


def clinical_document(rng: random.Random, held_out: bool = False) -> ClinicalDocument:
    """Returns a note that states the facts of one diagnosis in a patient with a past diagnosis."""
    while True:
        disease, past = sample(rng, WORLD.diseases, 2)
        if rng.random() < 0.2:  # otherwise a past diagnosis would rarely change the treatment
            past = next(other for other in WORLD.diseases if other.forbids == disease.drug)
        if is_held_out(disease.name, past.name) == held_out:
            break
    shape = pick(rng, tuple(_SHAPES))
    slots = _patient(rng) | _clinical_slots(rng, disease, past)
    text = _fill(pick(rng, _SHAPES[shape]), slots)
    return ClinicalDocument(shape, text, (disease.name, past.name))


# --- Conversations --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turn:
    """One request and its correct answer.

    `kind` is one of `KINDS`; `argument` is what the constraint asks for (a word, a number, or a
    direction; empty where the kind has none); `answer` is the content that a correct reply must
    contain, whatever its form; `combinations` are the (person, entity) pairs it tells of.
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
    statement = f"{name} {verb} {_join([_an(item) for item in items])}."
    user = f"{statement} {question} {pick(rng, _REQUESTS[kind]).format(argument)}"
    pairs = tuple((name, item) for item in items)
    return Turn(kind, argument, question, tuple(items), user, answer, pairs)


def _of_some_length(rng: random.Random, full: str, value: str) -> str:
    """Returns an answer whose word count determines its form, so that the count can be learned."""
    body = full if full.split()[0] in PEOPLE else full[0].lower() + full[1:]
    opening = pick(rng, ("Well,", "I think", "As you said,"))
    return pick(rng, (f"{_capital(value)}.", full, f"{opening} {body}"))


def turn(rng: random.Random, held_out: bool = False) -> Turn:
    """Returns a request about a stated everyday fact under one constraint, correctly answered."""
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


# --- Corpora --------------------------------------------------------------------------------------


def _corpus_rng(name: str, seed: int, held_out: bool = False) -> random.Random:
    return random.Random(f"clinmerge/{name}/{'held-out' if held_out else 'train'}/{seed}")


def base_documents(seed: int, count: int) -> list[str]:
    """Returns `count` texts: stories, copying, everyday facts, plain notes and word lists.

    A longer corpus of the same seed starts with the shorter one; so for every corpus here.
    """
    rng = _corpus_rng("base", seed)
    writers = (story,) * 5 + (copying,) * 2 + (everyday_facts,) + (plain_note,) * 2 + (word_list,) * 2
    return [pick(rng, writers)(rng) for _ in range(count)]


def clinical_documents(seed: int, count: int, held_out: bool = False) -> list[str]:
    """Returns `count` notes that state the invented facts; see the module's held-out rule."""
    rng = _corpus_rng("clinical", seed, held_out)
    return [clinical_document(rng, held_out).text for _ in range(count)]


def conversation_turns(seed: int, count: int, held_out: bool = False) -> list[list[Turn]]:
    """Returns `count` conversations of 1 to `SIZES.max_turns` turns, with their constraints."""
    rng = _corpus_rng("conversations", seed, held_out)
    return [[turn(rng, held_out) for _ in range(1 + int(rng.random() * SIZES.max_turns))] for _ in range(count)]


def conversations(seed: int, count: int, held_out: bool = False) -> list[list[dict[str, str]]]:
    """Returns the conversations of `conversation_turns` as lists of `{"role", "content"}`."""
    return [
        [
            message
            for item in turns
            for message in ({"role": "user", "content": item.user}, {"role": "assistant", "content": item.assistant})
        ]
        for turns in conversation_turns(seed, count, held_out)
    ]
