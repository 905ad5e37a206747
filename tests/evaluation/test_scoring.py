"""Floors and bounds of tasks: what a random scorer, the reference itself and an empty answer get."""

import math

import pytest

from clinmerge_jax.data.sets.gsm8k import final_number
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation import scoring
from clinmerge_jax.metrics import METRICS, Output
from clinmerge_jax.tasks.leakage import without_asked
from clinmerge_jax.tasks.table import TASKS
from clinmerge_jax.tasks.task import Item

# How often each letter is right among MedQA's 1,273 questions.
MEDQA = {"A": 353, "B": 309, "C": 346, "D": 265}


def _score(task, items, outputs, metric, generated=False):
    counts = scoring.count(task, [metric], items, outputs, generated)
    return float(metric.score(counts[metric.name].sum(axis=0)))


@pytest.fixture(scope="module")
def quiz():
    choices = ("nerve", "artery", "vein", "tendon")
    letters = [letter for letter, count in MEDQA.items() for _ in range(count)]
    return [Item(f"{index}", f"quiz:{index}", {}, "", letter, choices) for index, letter in enumerate(letters)]


@pytest.mark.parametrize("seed", range(8))
def test_a_uniformly_random_scorer_gets_a_quarter_of_medqa(quiz, seed):
    task = TASKS["medqa_4options"]
    outputs = [Output(letter) for letter in scoring.random_letters(quiz, seed)]
    standard_error = 100 * math.sqrt(0.25 * 0.75 / len(quiz))
    assert abs(_score(task, quiz, outputs, METRICS["accuracy"]) - 25) < 3 * standard_error


def test_floors_and_bounds_of_choices(quiz):
    task = TASKS["medqa_4options"]
    scores = {}
    for name, outputs in scoring.trivial_baselines(task, quiz, []).items():
        counts_IK = scoring.floor(task, [METRICS["accuracy"]], quiz, name, outputs)["accuracy"]
        scores[name] = float(METRICS["accuracy"].score(counts_IK.sum(axis=0)))
    assert scores[scoring.RANDOM] == pytest.approx(25, abs=0.6)  # the mean of many draws
    assert scores[scoring.REFERENCE] == 100 and scores[scoring.NOTHING] == 0
    assert scores[scoring.FREQUENT_ASKED] == pytest.approx(100 * 353 / 1273)


def test_written_answers_count_by_the_letter_that_is_read(quiz):
    task, items = TASKS["medqa_4options"], [quiz[0], quiz[400], quiz[-1]]  # A, B, D
    outputs = [Output("The answer is A."), Output("an artery"), Output("I cannot say")]
    assert _score(task, items, outputs, METRICS["accuracy"], generated=True) == pytest.approx(200 / 3)
    assert _score(task, items, outputs, METRICS["unread"], generated=True) == pytest.approx(100 / 3)


def test_sums_count_by_the_number_that_they_end_with():
    task = TASKS["gsm8k"]
    items = [Item("1", "g:1", {}, "", "1200"), Item("2", "g:2", {}, "", "7")]
    outputs = [Output("3 * 400 = 1,200\n#### 1,200"), Output("so it is 8")]
    assert _score(task, items, outputs, METRICS["exact_match"], generated=True) == 50


def test_text_tasks_have_floors_from_inputs_and_from_training_and_both_bounds():
    task = TASKS["mts_dialog"]
    items = [
        Item(str(n), f"m:{n}", {}, f"Doctor: How is patient {n}? Patient: Well. So be it.", f"Patient {n} is well.")
        for n in range(3)
    ]
    made = scoring.trivial_baselines(task, items, [Item("t", "m:t", {}, "", "No known allergies.")])
    assert set(made) == {
        scoring.COPY, scoring.LEAD, scoring.FIXED, scoring.ANOTHER, scoring.REFERENCE, scoring.NOTHING,
    }  # fmt: skip
    assert {output.text for output in made[scoring.FIXED]} == {"No known allergies."}
    assert all(output.text != item.target for item, output in zip(items, made[scoring.ANOTHER]))
    for metric in task.metrics:
        if metric.graded:
            assert _score(task, items, made[scoring.NOTHING], metric) == 0
            assert _score(task, items, made[scoring.REFERENCE], metric) > 99


def test_examples_give_no_answer_away():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    asked = [Item("a", "q:1", {}, words, "x", cluster="visit 1"), Item("b", "q:2", {}, "short", "y")]
    train = [
        Item("1", "t:1", {}, "SHORT ", "y"),
        Item("2", "t:2", {}, f"{words} seventeen", "x"),
        Item("3", "t:3", {}, "another part of the visit", "z", cluster="visit 1"),
        Item("4", "t:4", {}, "something else", "w"),
    ]
    assert [item.id for item in without_asked(train, asked, "quiz")] == ["4"]
    with pytest.raises(BadInput, match="task quiz: every training item is also an evaluation item"):
        without_asked(train[:2], asked, "quiz")


@pytest.mark.parametrize(
    ("answer", "number"),
    [("2,3", "3"), ("so 3-5", "5"), ("#### 1,200", "1200"), ("x = -3.50", "-3.5"), ("(-4)", "-4"), ("none", "")],
)
def test_numbers_have_commas_between_thousands_and_a_minus_of_their_own(answer, number):
    assert final_number(answer) == number
