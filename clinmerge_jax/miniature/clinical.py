"""Clinical text: documents of five shapes, teaching notes, and plain notes that hold no fact.

The shapes follow the paper's five tasks: events to a hospital course (MIMIC-BHC), a visit to a note of four sections
(ACI-BENCH), some turns of a visit and a heading to one section (MTS-Dialog), findings to an impression (Open-i), and
findings with a prior to an impression (MIMIC-CXR). The answers state what only the fact table tells: the disease of
two findings, its drug, the drug that a past disease forbids, and the level of a test.
"""

import random

from clinmerge_jax.miniature.facts import TRAIN, WORLD, Disease, LabTest, split_of
from clinmerge_jax.miniature.shapes import Shape, Written
from clinmerge_jax.miniature.vocabulary import DAYS, NUMBERS, SURNAMES
from clinmerge_jax.seeded import pick, sample

BHC = Shape(
    "bhc",
    (
        (
            "EVENTS\n{patient}, {age} year old {sex}, past {past}, takes {home}",
            "HOSPITAL EVENTS of {patient}, {sex} of {age}\nHistory: past {past}, takes {home}",
            "EVENTS: {patient} ({age}), a {sex} with past {past} who takes {home}",
        ),
        (
            "{day}: admitted with {f1}, no {n1}, no {n2}",
            "Day 1: came in with {f1} but no {n1} and no {n2}",
            "Admission on {day}: no {n1}, no {n2}, but {f1}",
        ),
        (
            "Labs: {test} {value} (normal {range})",
            "Night: {test} of {value}, normal {range}",
        ),
        ("Day 2: {f2} noted, pulse {pulse}", "Next day: also {f2}", "Later: pulse {pulse} and {f2}"),
    ),
    "HOSPITAL COURSE:",
    (
        "Admitted with {f1} and {f2}. Found {level} {test}. Diagnosis {dx}. Started {drug}, avoided {forbidden}.",
        "This was {dx}, with {f1}, {f2} and {level} {test}. Treated with {drug}, and {forbidden} was avoided.",
    ),
    ("Write the hospital course of these events.", "Sum up this stay as a hospital course."),
)
NOTE = Shape(
    "note",
    (
        (
            "Doctor: What brings you in, {patient}?\nPatient: I have had {f1} for {days} days, but no {n1}.",
            "Doctor: Hello {patient}, how are you?\nPatient: Not well. {days} days of {f1}, no {n1}.",
            "Patient: I came for {f1}. It began {days} days ago, with no {n1}.",
        ),
        (
            "Doctor: Any illness before?\nPatient: I had {past} once, and I take {home}.",
            "Doctor: What about your history?\nPatient: Past {past}. My drug is {home}.",
        ),
        (
            "Doctor: I see {f2}, no {n2}. Your {test} is {value}.",
            "Doctor: The exam shows {f2} and no {n2}. The {test} came back at {value}.",
            "Doctor: There is no {n2}, but there is {f2}, and {test} is {value}.",
        ),
        ("Doctor: Come back in {weeks} weeks.", "Patient: What now?\nDoctor: We meet in {weeks} weeks."),
    ),
    "NOTE:",
    (
        "SUBJECTIVE: {f1}, past {past}. OBJECTIVE: {f2}, {level} {test}. ASSESSMENT: {dx}. "
        "PLAN: give {drug}, avoid {forbidden}.",
        "SUBJECTIVE: past {past}, now {f1}. OBJECTIVE: {level} {test}, {f2}. ASSESSMENT: {dx}. "
        "PLAN: {drug}, no {forbidden}.",
    ),
    ("Write the note of this visit in four sections.", "Turn this visit into a note with four sections."),
)
_TURNS = (
    (
        "Doctor: How long have you had {f1}?\nPatient: For {days} days. No {n1}.",
        "Patient: It is {f1}, for {days} days now, but no {n1}.",
    ),
    (
        "Doctor: I also see {f2}. Were you ill before?\nPatient: Yes, past {past}.",
        "Doctor: And your history?\nPatient: Past {past}. There is {f2} too.",
        "Patient: Past {past}, and {f2} since then.",
    ),
    ("Doctor: Your {test} is {value}.", "Doctor: Labs show {test} {value}, no {n2}."),
)
_SECTIONS = {
    "COMPLAINT": ("{f1} and {f2} for {days} days.", "{f1} with {f2}, {days} days."),
    "HISTORY": ("Past {past}. Avoid {forbidden}.", "Past {past}, so no {forbidden}."),
    "RESULTS": ("{level} {test}, as in {dx}.", "{level} {test}. It suggests {dx}."),
    "PLAN": ("{dx}: give {drug}.", "Give {drug} for {dx}."),
}
SECTIONS = tuple(
    Shape(
        "section",
        ((f"SECTION {name}",), *_TURNS),
        f"{name}:",
        answers,
        ("Write this section of the note.", "Which text belongs into this section?"),
    )
    for name, answers in _SECTIONS.items()
)
IMPRESSION = Shape(
    "impression",
    (
        ("EXAM of {patient}, {age}", "INDICATION: {age} year old {sex}", "STUDY: {patient}, {sex}"),
        (
            "FINDINGS: There is {f1}. No {n1}. There is {f2}.",
            "FINDINGS: No {n1} or {n2}. There is {f1} with {f2}.",
            "FINDINGS: Both {f1} and {f2} are seen. No {n2}.",
        ),
        ("LABS: {test} {value} ({range})", "{test}: {value}, normal {range}"),
    ),
    "IMPRESSION:",
    ("{dx} with {level} {test}. Give {drug}.", "{level} {test}. This is {dx}, treat with {drug}."),
    ("Write the impression of this report.", "What is the impression?"),
)
PRIOR = Shape(
    "impression_prior",
    (
        ("EXAM of {patient}, {age}", "INDICATION: {age} year old {sex}", "STUDY: {patient}, {sex}"),
        ("PRIOR: {past}.", "COMPARISON: earlier study with {past}.", "Last study: {past}."),
        (
            "FINDINGS: Now {f1} and {f2}. No {n1}.",
            "FINDINGS: No {n1}. New {f2}, new {f1}.",
            "FINDINGS: There is {f1}, no {n2}, and {f2}.",
        ),
    ),
    "IMPRESSION:",
    (
        "New {dx}. Past {past}, avoid {forbidden}. Give {drug}.",
        "Past {past}, so no {forbidden}. Now {dx}, give {drug}.",
    ),
    ("Write the impression, with the prior in mind.", "What is the impression after the prior study?"),
)
SHAPES: dict[str, tuple[Shape, ...]] = {
    "bhc": (BHC,),
    "note": (NOTE,),
    "section": SECTIONS,
    "impression": (IMPRESSION,),
    "impression_prior": (PRIOR,),
}
_ABSENT_ONE_IN = 4  # so that every disease has several absent findings of each split
_TEACHING = (
    "{f1} together with {f2} means {dx}.",
    "In {dx} there is {f2} and {f1}.",
    "{dx} has the findings {f1} and {f2}.",
    "The first choice for {dx} is {own}.",
    "{dx} is treated with {own}.",
    "For {f1} with {f2} give {own}.",
    "In {dx} the {test} is {level}.",
    "{level} {test} with {f1} and {f2} suggests {dx}.",
    "After past {past} avoid {forbidden}.",
    "{forbidden} is contraindicated after past {past}.",
    "With past {past}, {dx} is treated with {drug} and no {forbidden}.",
)


def _slots(rng: random.Random) -> dict[str, str]:
    woman = rng.random() < 0.5
    return {
        "patient": ("Ms. " if woman else "Mr. ") + pick(rng, SURNAMES),
        "age": str(20 + int(rng.random() * 70)),
        "sex": "woman" if woman else "man",
        "days": pick(rng, NUMBERS),
        "weeks": pick(rng, NUMBERS[:4]),
        "pulse": str(58 + int(rng.random() * 50)),
        "day": pick(rng, DAYS),
    }


def treatment(disease: Disease, past: Disease) -> str:
    """Returns the drug for a disease in a patient with a past disease."""
    return disease.second_drug if past.forbids == disease.drug else disease.drug


def _pair(rng: random.Random, split: str) -> tuple[Disease, Disease]:
    while True:
        disease, past = sample(rng, WORLD.diseases, 2)
        if rng.random() < 0.15:  # otherwise a past disease would rarely change the treatment
            past = next(other for other in WORLD.diseases if other.forbids == disease.drug)
        if disease is not past and split_of(disease.name, past.name) == split:
            return disease, past


def split_of_absent(disease: Disease, finding: str) -> str:
    """Returns the split of the documents that say a finding is absent in a disease."""
    return split_of(disease.name, finding, one_in=_ABSENT_ONE_IN)


def _clinical_slots(rng: random.Random, disease: Disease, past: Disease, split: str) -> dict[str, str]:
    first, second = sample(rng, disease.findings, 2)
    others = [finding for finding in WORLD.findings if finding not in disease.findings]
    absent = sample(rng, [finding for finding in others if split_of_absent(disease, finding) == split], 2)
    return (
        _slots(rng)
        | {
            "f1": first,
            "f2": second,
            "n1": absent[0],
            "n2": absent[1],
            "dx": disease.name,
            "past": past.name,
            "drug": treatment(disease, past),
            "own": disease.drug,
            "home": pick(rng, [drug for drug in WORLD.drugs if drug not in (disease.drug, disease.second_drug)]),
            "forbidden": past.forbids,
        }
        | _measured(rng, disease.test, disease.test_is_high)
    )


def document(rng: random.Random, shape: str, split: str) -> Written:
    """Returns a document of one shape whose entities and wordings belong to a split.

    Its combination is (disease, past disease). (disease, absent finding) is of the split too, because sources of the
    shape "impression" do not mention the past disease.
    """
    disease, past = _pair(rng, split)
    chosen = pick(rng, SHAPES[shape])
    return chosen.write(rng, _clinical_slots(rng, disease, past, split), (disease.name, past.name), split)


def teaching(rng: random.Random, split: str) -> str:
    """Returns a teaching note: four statements of facts about one disease in a patient with a past disease."""
    disease, past = _pair(rng, split)
    lines = sample(rng, _TEACHING, 4)
    return "TEACHING\n" + "\n".join(lines).format_map(_clinical_slots(rng, disease, past, split))


def plain_note(rng: random.Random) -> str:
    """Returns a text in the shape of a clinical document whose names are drawn at random, so it tells no fact."""
    shape = pick(rng, SHAPES[pick(rng, tuple(SHAPES))])
    slots = _slots(rng) | dict(zip(("f1", "f2", "n1", "n2"), sample(rng, WORLD.findings, 4)))
    slots |= dict(zip(("dx", "past"), (disease.name for disease in sample(rng, WORLD.diseases, 2))))
    slots |= dict(zip(("drug", "home", "forbidden"), sample(rng, WORLD.drugs, 3)))
    slots |= _measured(rng, pick(rng, WORLD.tests), rng.random() < 0.5)
    return shape.write(rng, slots, (), TRAIN).text


def _measured(rng: random.Random, test: LabTest, high: bool) -> dict[str, str]:
    offset = 3 + int(rng.random() * (test.low - 4))
    return {
        "test": test.name,
        "value": str(test.high + offset if high else test.low - offset),
        "range": f"{test.low}-{test.high}",
        "level": "high" if high else "low",
    }
