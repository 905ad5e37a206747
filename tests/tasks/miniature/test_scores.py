"""Scores in the invented world: perfect answers, empty ones, copies, and answers with one fault."""

import dataclasses

import numpy as np
import pytest

from clinmerge_jax.evaluation.scoring import trivial_baselines
from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.instructions.target import Instruction, InstructionTarget
from clinmerge_jax.metrics import Output, count_items
from clinmerge_jax.miniature import constraints
from clinmerge_jax.miniature.facts import WORLD
from clinmerge_jax.miniature.mentions import facts_in
from clinmerge_jax.tasks.miniature.scores import FACT_F1, FOLLOWED_AND_RIGHT, INVENTED, JOINT
from clinmerge_jax.tasks.miniature.tasks import (
    GENERATION,
    INSTRUCTIONS,
    JOINT_TASK,
    MINIATURE_TASKS,
    TASK_SPLITS,
    items_of,
)

_ONE, _TWO = WORLD.diseases[:2]
_REFERENCE = f"{_ONE.level} {_ONE.test.name}. This is {_ONE.name}, treat with {_ONE.drug}."


def _score(metric, answers, targets, sources=None):
    counts_IK = count_items([metric], [Output(answer) for answer in answers], targets, sources)[metric.name]
    return float(metric.score(counts_IK.sum(axis=0)))


def _of_items(metric, answers, items):
    return _score(metric, answers, [item.target for item in items], [item.source for item in items])


@pytest.mark.parametrize("name", GENERATION)
def test_the_reference_states_all_facts_the_empty_answer_none_and_a_copy_few(name):
    for split in TASK_SPLITS[name]:
        items = items_of(name, split)
        assert all(len(facts_in(item.target)) >= 2 for item in items)
        assert _of_items(FACT_F1, [item.target for item in items], items) == 100
        assert _of_items(FACT_F1, [""] * len(items), items) == 0
        assert _of_items(FACT_F1, [item.source for item in items], items) < 45
        assert _of_items(INVENTED, [item.target for item in items], items) == 0


def test_the_tasks_lead_with_the_facts():
    assert all(MINIATURE_TASKS[name].metrics[0] is FACT_F1 for name in GENERATION)
    assert MINIATURE_TASKS[JOINT_TASK].metrics[0] is JOINT


@pytest.mark.parametrize(
    "answer, score",
    [
        (_REFERENCE, 100),
        (_REFERENCE.upper(), 100),
        (f"Give {_ONE.drug}. {_ONE.name}. The {_ONE.test.name} is {_ONE.level}.", 100),
        (_REFERENCE.replace(_ONE.drug, _TWO.drug), 100 * 2 / 3),  # 2 of 3 found, 2 of 3 right
        (f"This is {_ONE.name}.", 50),  # precision 1, recall 1/3
        (f"{_REFERENCE} Avoid {_TWO.drug}. It is {_TWO.name}, {_TWO.findings[0]}.", 100 * 2 * 3 / (6 + 3)),
        (f"{_TWO.name}", 0),
        ("", 0),
    ],
)
def test_fact_f1_of_an_answer(answer, score):
    assert _score(FACT_F1, [answer], [_REFERENCE]) == pytest.approx(score)


def test_a_fact_is_invented_if_neither_source_nor_reference_states_it():
    source = f"There is {_ONE.findings[0]} and {_ONE.findings[1]}."
    answer = f"{_ONE.name}, {_ONE.findings[0]}, {_TWO.name}, {_TWO.findings[0]}"
    assert _score(INVENTED, [answer], [_REFERENCE], [source]) == 50
    assert _score(INVENTED, [answer], [_REFERENCE], [source + answer]) == 0
    assert _score(INVENTED, [""], [_REFERENCE], [source]) == 0


def test_joint_counts_the_facts_only_where_the_instruction_is_followed():
    target = InstructionTarget("?", (Instruction("clinical:uppercase", {}),), _REFERENCE)
    assert _score(JOINT, [_REFERENCE.upper()], [target]) == 100
    assert _score(JOINT, [_REFERENCE], [target]) == 0
    assert _score(JOINT, [_ONE.name.upper()], [target]) == 50
    assert _score(JOINT, [_REFERENCE.upper(), _REFERENCE], [target, target]) == 50


def test_followed_and_right_wants_the_words_of_the_reference_in_the_asked_form():
    target = InstructionTarget("?", (Instruction("startend:quotation", {}),), "It is red.")
    answers = {'"It is red."': 100, '"it is RED."': 100, "It is red.": 0, '"It is blue."': 0, '""': 0, "": 0}
    assert {answer: _score(FOLLOWED_AND_RIGHT, [answer], [target]) for answer in answers} == answers


# Kinds whose plain answer follows as it is, or may: a list or a yes is its own plain form.
_FOLLOWED_BY_PLAIN = {"yes_no", "order", "avoid"}


@pytest.mark.parametrize("name", [INSTRUCTIONS, JOINT_TASK])
def test_the_obedient_reference_follows_for_every_kind_and_the_plain_one_mostly_does_not(name):
    for split in TASK_SPLITS[name]:
        items = items_of(name, split)
        plain = {}
        for item in items:
            assert item.target.instructions and all(strict(item.target, item.shown)), item.shown
            assert item.target.prompt == item.fields["prompt"]
            plain.setdefault(item.label, []).append(all(strict(item.target, item.target.reference)))
        kinds = constraints.TRAINED if name == INSTRUCTIONS else constraints.ON_ANY_TEXT
        assert set(plain) == set(constraints.HELD_OUT if split == "unseen" else kinds)
        for kind in set(plain) - _FOLLOWED_BY_PLAIN:
            assert np.mean(plain[kind]) <= 0.6, kind  # a colour by itself is lower case
        assert np.mean([follows for kind in plain.values() for follows in kind]) < 0.35


@pytest.mark.parametrize("name, metrics", [(INSTRUCTIONS, (FOLLOWED_AND_RIGHT,)), (JOINT_TASK, (JOINT, FACT_F1))])
def test_the_baselines_stand_in_the_right_order(name, metrics):
    task = MINIATURE_TASKS[name]
    for split in TASK_SPLITS[name]:
        items = items_of(name, split)
        answers = trivial_baselines(dataclasses.replace(task, test=split), items, [])
        for metric in metrics:
            score = {
                baseline: _of_items(metric, [output.text for output in outputs], items)
                for baseline, outputs in answers.items()
            }
            assert score["obedient reference"] == 100 and score["empty answer"] == 0
            assert score["copy the input"] < 40
        assert _of_items(metrics[0], [output.text for output in answers["the reference itself"]], items) < 35


def test_an_answer_that_follows_another_items_instruction_does_not_follow_this_one():
    items = items_of(JOINT_TASK, "test")
    kinds = {item.label: item for item in items}
    for kind, item in kinds.items():
        for other, asked in kinds.items():
            assert all(strict(asked.target, item.shown)) == (kind == other), (kind, other)
