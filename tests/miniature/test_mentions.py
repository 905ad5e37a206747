"""Facts read from sentences written by hand."""

import pytest

from clinmerge_jax.miniature.facts import WORLD
from clinmerge_jax.miniature.mentions import facts_in

DX, PAST = (disease.name for disease in WORLD.diseases[:2])
DRUG, OTHER = WORLD.drugs[:2]
ONE, TWO, THREE = WORLD.findings[:3]
TEST = WORLD.tests[0].name

_CASES = [
    ("", set()),
    ("The patient sleeps well and drinks tea.", set()),
    (f"This is {DX}.", {("disease", DX)}),
    (f"THIS IS {DX.upper()}!", {("disease", DX)}),
    (f"{DX}s and un{DX} are no words.", set()),
    (f"Past {PAST}, now {DX}.", {("past", PAST), ("disease", DX)}),
    (f"History of {PAST}. Diagnosis {DX}", {("past", PAST), ("disease", DX)}),
    (f"PRIOR: {PAST}.\nIMPRESSION: {DX}.", {("past", PAST), ("disease", DX)}),
    (f"Last study: {PAST}. Now: {DX}", {("past", PAST), ("disease", DX)}),
    (f"There is {ONE} with {TWO}.", {("finding", ONE), ("finding", TWO)}),
    (f"There is {ONE} and no {TWO}.", {("finding", ONE), ("absent", TWO)}),
    (f"No {ONE} or {TWO}, but {THREE}.", {("absent", ONE), ("absent", TWO), ("finding", THREE)}),
    (f"Without {ONE}. {TWO}", {("absent", ONE), ("finding", TWO)}),
    (f"Nothing new: {ONE}", {("finding", ONE)}),  # "no" within a word does not count
    (f"Give {DRUG}, avoid {OTHER}.", {("drug", DRUG), ("avoided", OTHER)}),
    (f"Started {DRUG}; {OTHER} was avoided.", {("drug", DRUG), ("avoided", OTHER)}),
    (f"{OTHER} is contraindicated, so give {DRUG}.", {("avoided", OTHER), ("drug", DRUG)}),
    (f"{DRUG}, no {OTHER}", {("drug", DRUG), ("avoided", OTHER)}),
    (f"Give {DRUG} and avoid {DRUG}.", {("drug", DRUG), ("avoided", DRUG)}),
    (f"High {TEST}.", {("test", TEST, "high")}),
    (f"The {TEST} is low in {DX}.", {("test", TEST, "low"), ("disease", DX)}),
    (f"{TEST} 40 (10-30).", set()),
    (f"{ONE.upper()} FOR SEVEN DAYS.", {("finding", ONE), ("days", "seven", "days")}),
    (f"{ONE}, back in two weeks", {("finding", ONE), ("days", "two", "weeks")}),
    (f'{{"kite": "{DX} with {ONE}."}}', {("disease", DX), ("finding", ONE)}),
    (f"<<{DX}>>", {("disease", DX)}),
]


@pytest.mark.parametrize("text, facts", _CASES)
def test_facts_of_a_sentence(text, facts):
    assert facts_in(text) == facts


def test_the_order_of_statements_and_repetition_do_not_matter():
    one, two = f"This is {DX}. Give {DRUG}.", f"Give {DRUG}! Give {DRUG}. It is {DX}."
    assert facts_in(one) == facts_in(two)
