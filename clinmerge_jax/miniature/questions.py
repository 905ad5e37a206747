"""Questions: medical ones of one and two hops, with four choices, and everyday ones about facts that they state."""

import dataclasses
import random
from collections.abc import Callable, Sequence

from clinmerge_jax.miniature import chat
from clinmerge_jax.miniature.clinical import treatment
from clinmerge_jax.miniature.facts import SPLITS, TRAIN, WORLD, Disease, split_of
from clinmerge_jax.seeded import pick, sample

LETTERS = "ABCD"
_ASKED = 6  # questions of an examination
ONE_IN = 4  # of the facts, one in four is asked in test alone and one in four in dev; notes state them all


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with four choices.

    Attributes:
      kind: a key of `KINDS`.
      subject: the disease that it is about.
      text: the question.
      choices: four choices, A first.
      letter: the letter of the right one.
    """

    kind: str
    subject: str
    text: str
    choices: tuple[str, ...]
    letter: str

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[LETTERS.index(self.letter)]

    @property
    def with_answer(self) -> str:
        """The question and its answer in words; a model of this size does not learn to answer by letters."""
        return f"Question: {self.text}\nAnswer: {self.answer}"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of question about a disease: its wordings, the right answer, and what the wrong ones are drawn from.

    Attributes:
      wordings: with slots of `_slots`.
      answer: from a disease and a past disease to the right answer.
      pool: what all choices are drawn from.
      past: whether the question has a past disease that changes the treatment.
    """

    wordings: tuple[str, ...]
    answer: Callable[[Disease, Disease], str]
    pool: Sequence[str]
    past: bool = False


_DISEASES = tuple(disease.name for disease in WORLD.diseases)
_TESTS = tuple(test.name for test in WORLD.tests)
KINDS: dict[str, _Kind] = {
    "disease": _Kind(
        ("Which disease has {f1} and {f2}?", "What causes {f1} with {f2}?"), lambda one, past: one.name, _DISEASES
    ),
    "drug": _Kind(
        ("Which drug is the first choice for {dx}?", "What is {dx} treated with?"),
        lambda one, past: one.drug,
        WORLD.drugs,
    ),
    "forbidden": _Kind(
        ("Which drug must be avoided after past {dx}?", "What is contraindicated after past {dx}?"),
        lambda one, past: one.forbids,
        WORLD.drugs,
    ),
    "test": _Kind(
        ("Which test is {level} in {dx}?", "In {dx}, which test is {level}?"), lambda one, past: one.test.name, _TESTS
    ),
    "finding": _Kind(
        ("Which finding goes with {f1} in {dx}?", "In {dx} there is {f1}. What else?"),
        lambda one, past: one.findings[1],
        WORLD.findings,
    ),
    "drug_of_findings": _Kind(
        ("There is {f1} with {f2}. Which drug is given?", "Which drug treats {f1} with {f2}?"),
        lambda one, past: one.drug,
        WORLD.drugs,
    ),
    "test_of_findings": _Kind(
        ("There is {f1} with {f2}. Which test is {level}?", "Which test is {level} with {f1} and {f2}?"),
        lambda one, past: one.test.name,
        _TESTS,
    ),
    "drug_after_past": _Kind(
        ("After past {past}, which drug treats {dx}?", "Which drug is given for {dx} with past {past}?"),
        treatment,
        WORLD.drugs,
        past=True,
    ),
}


def question(rng: random.Random, kind: str, disease: Disease, letter: str) -> Question:
    """Returns a question of a kind about a disease, with the right answer under a letter."""
    how = KINDS[kind]
    past = _past_of(disease) if how.past else disease
    slots = {"dx": disease.name, "past": past.name, "level": disease.level}
    slots |= dict(zip(("f1", "f2"), disease.findings))
    right = how.answer(disease, past)
    wrong = [one for one in how.pool if one != right and not _also_right(kind, one, disease)]
    if how.past:  # the drug that the past disease forbids must tempt
        choices = [disease.drug, *sample(rng, [one for one in wrong if one != disease.drug], 2)]
    else:
        choices = sample(rng, wrong, 3)
    choices = sample(rng, choices, 3)
    choices.insert(LETTERS.index(letter), right)
    return Question(kind, disease.name, pick(rng, how.wordings).format_map(slots), tuple(choices), letter)


def _past_of(disease: Disease) -> Disease:
    """The one past disease that changes the treatment of a disease."""
    return next(one for one in WORLD.diseases if one.forbids == disease.drug)


def _also_right(kind: str, choice: str, disease: Disease) -> bool:
    """Whether a choice would be right too: another finding of the disease, or its second drug."""
    if kind == "finding":
        return choice in disease.findings
    return choice == disease.second_drug and not KINDS[kind].past


def subjects(split: str) -> list[tuple[str, Disease]]:
    """Returns the kinds and diseases that a split asks about: no fact that is asked in one is asked in another.

    Where a past disease is part of the question, the split is that of the two diseases, as in documents.
    """
    pairs = [(kind, disease) for kind in KINDS for disease in WORLD.diseases]
    return [(kind, disease) for kind, disease in pairs if _split(kind, disease) == split]


def _split(kind: str, disease: Disease) -> str:
    if KINDS[kind].past:
        return split_of(disease.name, _past_of(disease).name)
    return split_of(kind, disease.name, one_in=ONE_IN)


def medical_questions(seed: int, count: int, split: str) -> list[Question]:
    """Returns distinct medical questions of a split, with each letter right equally often."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}")
    rng = random.Random(f"clinmerge/questions/{split}/{seed}")
    pairs = subjects(split)
    found: dict[tuple[str, tuple[str, ...]], Question] = {}
    while len(found) < count:
        kind, disease = pick(rng, pairs)
        made = question(rng, kind, disease, LETTERS[len(found) % 4])
        found.setdefault((made.text, made.choices), made)
    return list(found.values())


def examination(rng: random.Random) -> str:
    """Returns medical questions of the training split with their answers in words."""
    made = [question(rng, *pick(rng, _TRAINING), pick(rng, LETTERS)) for _ in range(_ASKED)]
    return "EXAMINATION\n" + "\n\n".join(one.with_answer for one in made)


_TRAINING = tuple(subjects(TRAIN))


def everyday_question(rng: random.Random) -> str:
    """Returns everyday facts, and questions about them with their answers in a word or a sentence."""
    family, found = chat.facts(rng, TRAIN)
    told = " ".join(family.statement.format(**one) for one in sample(rng, found, 2))
    lines = [told]
    for fact in (found[0], found[1], found[0]):
        told = family.full.format(**fact) if rng.random() < 0.3 else fact["v"]
        lines.append(f"Question: {family.question.format(**fact)}\nAnswer: {told}")
    return "\n".join(lines)
