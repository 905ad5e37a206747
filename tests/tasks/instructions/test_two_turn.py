"""Two-turn prompts: the rules see what the second answer owes the first."""

import collections
import hashlib

import pytest

from clinmerge_jax.metrics.metric import Output
from clinmerge_jax.tasks.instructions.two_turn import FOLLOW_UPS, TwoTurns, second_turn, solve, two_turn_items

_TEXT = "There is a kettle. It sings at noon."
_LIST = "Here you are:\n- Wool\n- a red Lamp\n- chalk"


@pytest.fixture(scope="module")
def conversations():
    return two_turn_items()


def _score(kind, first, second, word="kettle"):
    return second_turn().count(Output(second, earlier=(first,)), TwoTurns(kind, word))[0]


def test_sixty_different_conversations_of_ten_kinds(conversations):
    kinds = collections.Counter(item.target.kind for item in conversations)
    assert kinds == dict.fromkeys(FOLLOW_UPS, 6)
    assert len({(item.source, item.turns) for item in conversations}) == 60
    assert two_turn_items(count=10) == conversations[:10]


def test_they_are_the_same_everywhere(conversations):
    text = "\n".join(repr((item.id, item.source, item.turns, item.target)) for item in conversations)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "51ceca851653ac2c"


def test_each_is_solvable_and_not_by_repeating_the_first_answer(conversations):
    for item in conversations:
        solved = solve(item)
        assert second_turn().count(solved, item.target)[0] == 100, item.id
        assert second_turn().count(Output(solved.earlier[0], earlier=solved.earlier), item.target)[0] == 0, item.id


def test_the_true_answer_to_yes_or_no_is_not_always_the_same(conversations):
    asked = [item for item in conversations if item.target.kind == "yes_or_no"]
    assert {f'"{item.target.word}"' in item.source for item in asked} == {True, False}


@pytest.mark.parametrize(
    ("kind", "first", "second", "follows"),
    [
        ("capitals", _TEXT, "THERE IS A KETTLE.\nIT SINGS AT NOON!", True),
        ("capitals", _TEXT, "THERE IS A KETTLE.", False),
        ("capitals", _TEXT, "THERE IS A KETTLE. It SINGS AT NOON.", False),
        ("first_sentence", _TEXT, '"There is a kettle."', True),
        ("first_sentence", _TEXT, "There is one kettle.", False),
        ("without_word", _TEXT, "There is a pot. It sings at noon.", True),
        ("without_word", _TEXT, "There is a kettle. It sings.", False),
        ("without_word", _TEXT, "Rain.", False),
        ("without_word", "No pot here.", "No pot here.", False),
        ("yes_or_no", _TEXT, "Yes.", True),
        ("yes_or_no", _TEXT, "no", False),
        ("yes_or_no", "A pot.", "no", True),
        ("yes_or_no", _TEXT, "Yes, it does.", False),
        ("last_word", _TEXT, '"Noon"', True),
        ("last_word", _TEXT, "The word is noon.", False),
        ("how_many", _LIST, "3", True),
        ("how_many", _LIST, "3 points", False),
        ("how_many", _TEXT, "0", False),
        ("reversed", _LIST, "1. chalk\n2. A red lamp\n3. wool", True),
        ("reversed", _LIST, "- a red Lamp\n- chalk\n- Wool", False),
        ("reversed", _TEXT, _TEXT, False),
        ("sorted", _LIST, "* a red Lamp\n* chalk\n* Wool", True),
        ("first_two", _LIST, "- Wool\n- a red Lamp", True),
        ("first_two", _LIST, "- Wool", False),
        ("one_more", _LIST, f"{_LIST}\n- string", True),
        ("one_more", _LIST, f"{_LIST}\n- chalk", False),
        ("one_more", _LIST, "- Wool\n- string\n- a red Lamp\n- chalk", False),
        ("one_more", _LIST, "Sorry.", False),
    ],
)
def test_verdicts(kind, first, second, follows):
    assert _score(kind, first, second) == 100 * follows


@pytest.mark.parametrize("kind", FOLLOW_UPS)
def test_nothing_follows_from_an_empty_answer(kind):
    assert _score(kind, "", "") == _score(kind, _LIST, " ") == _score(kind, "", "No.") == 0
    assert second_turn().count(Output("No."), TwoTurns(kind, "kettle"))[0] == 0
