"""Clinical documents: the answer states what the fact table says, and nothing else."""

import random
import re

import pytest

from clinmerge_jax.miniature import clinical
from clinmerge_jax.miniature.facts import SPLITS, TRAIN, WORLD
from clinmerge_jax.miniature.mentions import facts_in


def _due(shape, heading, disease, past, source):
    """The facts that an answer must state, from the fact table and the source."""
    drug = disease.second_drug if past.forbids == disease.drug else disease.drug
    findings = {("finding", finding) for finding in disease.findings}
    test = ("test", disease.test.name, "high" if disease.test_is_high else "low")
    dx, had, given, avoided = ("disease", disease.name), ("past", past.name), ("drug", drug), ("avoided", past.forbids)
    if shape == "section":
        days = re.findall(r"(\w+) days", source.lower())
        return {
            "COMPLAINT:": findings | {("days", one, "days") for one in days},
            "HISTORY:": {had, avoided},
            "RESULTS:": {test, dx},
            "PLAN:": {dx, given},
        }[heading]
    return {
        "bhc": findings | {test, dx, given, avoided},
        "note": findings | {had, test, dx, given, avoided},
        "impression": {test, dx, given},
        "impression_prior": {dx, had, avoided, given},
    }[shape]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shape", clinical.SHAPES)
def test_an_answer_states_the_facts_of_its_pair_and_no_others(shape, split):
    rng, seen = random.Random("facts"), set()
    for _ in range(150):
        made = clinical.document(rng, shape, split)
        disease, past = map(WORLD.disease, made.combination)
        heading = made.source.split("\n")[-1]
        seen.add(heading)
        assert facts_in(made.answer) == _due(shape, heading, disease, past, made.source), made.text
    assert len(seen) == len({one.heading for one in clinical.SHAPES[shape]})


@pytest.mark.parametrize("shape", clinical.SHAPES)
def test_the_answer_cannot_be_copied_from_the_source(shape):
    rng = random.Random("sources")
    for _ in range(100):
        made = clinical.document(rng, shape, TRAIN)
        assert made.combination[0] not in made.source and not re.search(r"\b(high|low)\b", made.source)
        drugs = {drug for drug in WORLD.drugs if drug in made.source}
        assert len(drugs) <= 1  # the patient's own, which is not the treatment
        assert not drugs & {fact[1] for fact in facts_in(made.answer) if fact[0] == "drug"}


def test_a_past_disease_changes_the_treatment_often_enough_to_be_learned():
    rng, switched = random.Random("switched"), 0
    for _ in range(600):
        made = clinical.document(rng, "note", TRAIN)
        disease, past = map(WORLD.disease, made.combination)
        if past.forbids == disease.drug:
            switched += 1
            assert ("drug", disease.second_drug) in facts_in(made.answer)
            assert ("avoided", disease.drug) in facts_in(made.answer)
    assert switched > 60


def test_the_value_of_a_test_lies_outside_its_range_on_the_stated_side():
    rng = random.Random("tests")
    for _ in range(300):
        made = clinical.document(rng, "bhc", TRAIN)
        disease = WORLD.disease(made.combination[0])
        name, value = re.search(r"(serum \w+) (?:of )?(\d+)", made.source).groups()
        (low, high), test = re.search(r"normal (\d+)-(\d+)", made.source).groups(), disease.test
        assert (name, int(low), int(high)) == (test.name, test.low, test.high)
        outside = int(value) > test.high if disease.test_is_high else 0 < int(value) < test.low
        assert outside and f"{disease.level} {test.name}" in made.answer.lower()


def test_teaching_notes_say_what_the_table_says():
    rng = random.Random("teaching")
    said = set()
    for _ in range(600):
        for line in clinical.teaching(rng, TRAIN).split("\n")[1:]:
            facts = facts_in(line)
            names = {kind: [fact[1] for fact in facts if fact[0] == kind] for kind in ("disease", "past", "avoided")}
            for name in names["disease"]:
                disease = WORLD.disease(name)
                assert all(fact[1] in disease.findings for fact in facts if fact[0] == "finding")
                drugs = {fact[1] for fact in facts if fact[0] == "drug"}
                assert drugs <= {disease.second_drug if names["past"] else disease.drug, disease.drug}
                assert all(fact[1:] == (disease.test.name, disease.level) for fact in facts if fact[0] == "test")
                said.add("disease")
            for past in names["past"]:
                assert set(names["avoided"]) <= {WORLD.disease(past).forbids}
                said.add("past")
    assert said == {"disease", "past"}


def test_plain_notes_have_the_headings_of_documents_and_draw_their_treatment_at_random():
    rng, headings, right, treated = random.Random("plain"), set(), 0, 0
    for _ in range(1500):
        facts = facts_in(text := clinical.plain_note(rng))
        headings |= set(re.findall(r"^([A-Z ]+:)", text, re.MULTILINE))
        kinds = {kind: {fact[1] for fact in facts if fact[0] == kind} for kind in ("disease", "drug")}
        for name in kinds["disease"]:
            treated += len(kinds["drug"])
            right += WORLD.disease(name).drug in kinds["drug"]
    assert {one.heading for shapes in clinical.SHAPES.values() for one in shapes} <= headings
    assert right <= 0.08 * treated  # 1 of 30 drugs by chance
