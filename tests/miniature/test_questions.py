"""Questions with four choices: one is right by the fact table, the three others are wrong."""

import collections
import random
import re

import miniature_text
import pytest

from clinmerge_jax.miniature import questions
from clinmerge_jax.miniature.facts import SPLITS, WORLD


@pytest.fixture(scope="module")
def asked():
    return {split: questions.medical_questions(5, 400, split) for split in SPLITS}


def _right(question):
    """All choices that the fact table makes a right answer, from the words of the question alone."""
    text = question.text
    past = re.search(r"past (\w+)", text)
    named = [one for one in WORLD.diseases if one.name in text and not (past and past[1] == one.name)]
    of_findings = [one for one in WORLD.diseases if all(finding in text for finding in one.findings)]
    had = WORLD.disease(past[1]) if past else None
    right = set()
    for choice in question.choices:
        if "avoided" in text or "contraindicated" in text:
            good = choice == had.forbids
        elif re.search(r"[Ww]hich test", text):
            level = re.search(r"\b(high|low)\b", text)[1]
            good = any((choice, level) == (one.test.name, one.level) for one in named or of_findings)
        elif "Which finding" in text or "What else" in text:
            (one,) = named
            good = choice in one.findings and choice not in text
        elif "Which disease" in text or "What causes" in text:
            good = choice in [one.name for one in of_findings]
        else:
            (one,) = named or of_findings
            good = choice == (one.second_drug if had and had.forbids == one.drug else one.drug)
        if good:
            right.add(choice)
    return right


@pytest.mark.parametrize("split", SPLITS)
def test_the_right_choice_is_the_only_one_that_the_fact_table_makes_right(asked, split):
    for question in asked[split]:
        assert len(set(question.choices)) == 4
        assert _right(question) == {question.choices["ABCD".index(question.letter)]}, question


@pytest.mark.parametrize("split", SPLITS)
def test_letters_are_balanced_also_within_a_kind(asked, split):
    letters = collections.Counter(question.letter for question in asked[split])
    assert letters == dict.fromkeys("ABCD", 100)
    for kind in questions.KINDS:
        count = collections.Counter(question.letter for question in asked[split] if question.kind == kind)
        assert len(count) == 4 and max(count.values()) < 0.6 * count.total()


def test_no_question_is_asked_twice(asked):
    found = [(question.text, question.choices) for split in SPLITS for question in asked[split]]
    assert len(found) == len(set(found)) == 1200


def test_a_question_of_two_hops_does_not_name_what_lies_between(asked):
    for question in asked["test"]:
        if question.kind in ("drug_of_findings", "test_of_findings"):
            assert not any(disease.name in question.text for disease in WORLD.diseases)
        if question.kind == "drug_after_past":  # the drug that the past disease forbids is among the choices
            assert WORLD.disease(question.subject).drug in question.choices


def test_the_choices_are_of_the_kind_of_the_answer(asked):
    pools = [
        {disease.name for disease in WORLD.diseases},
        set(WORLD.drugs),
        set(WORLD.findings),
        {test.name for test in WORLD.tests},
    ]
    for question in asked["test"]:
        assert any(set(question.choices) <= pool for pool in pools)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no split 'valid'"):
        questions.medical_questions(1, 4, "valid")


def test_everyday_questions_are_answered_by_what_is_stated():
    rng, words, sentences = random.Random("everyday"), 0, 0
    for _ in range(300):
        told, *asked = questions.everyday_question(rng).split("\nQuestion: ")
        assert asked
        for one in asked:
            text, _, answer = one.rpartition("Answer: ")
            right = miniature_text.stated(text, told)
            words, sentences = words + (answer == right), sentences + answer.endswith(".")
            assert answer == right or (right in answer and answer.endswith("."))
    assert words > 100 and sentences > 50
