"""Clinical notes that state the invented facts, and plain notes of the same shape without facts."""

import dataclasses
import random

from clinmerge_jax.miniature.facts import SIGNS, WORLD, Disease, is_held_out
from clinmerge_jax.miniature.vocabulary import DAYS, NUMBERS, SURNAMES, capitalised
from clinmerge_jax.seeded import pick, sample


@dataclasses.dataclass(frozen=True)
class ClinicalDocument:
    """A note, its shape, and its (diagnosis, past diagnosis) pair."""

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
_PLAIN_SIGNS = tuple(f"{word} {sign}" for word in ("mild", "bad", "new", "old", "sudden") for sign in SIGNS)
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
        text = mark.join(part and capitalised(part) for part in text.split(mark))
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
