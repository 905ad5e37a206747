"""Everyday conversations: right answers, read from what the request states."""

import json
import random
import re

import miniature_text
import pytest

from clinmerge_jax.miniature import chat, constraints
from clinmerge_jax.miniature.facts import SPLITS

_CLOSED = {  # question -> the statement that makes the answer yes
    r"Is the (\w+) of (\w+) (\w+)\?": r"\2 has a \3 \1.",
    r"Did (\w+) leave the (\w+) in the (\w+)\?": r"\1 left the \2 in the \3.",
    r"Did (\w+) give the (\w+) some (\w+)\?": r"\1 gave the \2 some \3.",
    r"Did (\w+) buy (\w+) (\w+)\?": r"\1 bought \2 \3.",
    r"Did (\w+) see a (\w+) on (\w+)\?": r"\1 saw a \2 on \3.",
}
KINDS = (chat.PLAIN, *constraints.KINDS)


def _turns(kind, count=150):
    rng = random.Random(f"turns {kind}")
    return [chat.turn(rng, SPLITS[index % 3], (kind,)) for index in range(count)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("yes_no", "bullets", "order")])
def test_the_answer_is_what_the_request_states(kind):
    asked = 0
    for turn in _turns(kind):
        if "\n\n" not in turn.user:
            value = miniature_text.stated(turn.user, turn.user)
            assert value.lower() in turn.assistant.lower() and value in turn.content
            asked += 1
    assert asked > 50


def test_yes_and_no_agree_with_what_is_stated_and_are_balanced():
    said = []
    for turn in _turns("yes_no", 400):
        (statement,) = [
            found.expand(stated) for asked, stated in _CLOSED.items() for found in re.finditer(asked, turn.user)
        ]
        assert turn.assistant == ("Yes" if statement in turn.user else "No")
        said.append(turn.assistant)
    assert 0.4 < said.count("Yes") / len(said) < 0.6


@pytest.mark.parametrize("kind", ["bullets", "order"])
def test_lists_have_the_stated_items_in_the_asked_order(kind):
    for turn in _turns(kind):
        items = re.findall(r"\ban? (\w+)(?=,| and|\.)", turn.user.split("?")[0])
        if "reverse order" in turn.user:
            items.reverse()
        assert turn.assistant == ("\n".join(f"* {item}" for item in items) if kind == "bullets" else ", ".join(items))
        assert kind == "order" or str(len(items)) in turn.user


@pytest.mark.parametrize("kind", [chat.PLAIN, *constraints.ON_ANY_TEXT, *constraints.HELD_OUT])
def test_half_of_the_requests_are_about_documents_whose_answer_is_kept(kind):
    turns = [turn for turn in _turns(kind) if "\n\n" in turn.user]
    assert 0.3 < len(turns) / 150 < 0.7
    for turn in turns:
        answer = json.loads(turn.assistant).popitem()[1] if kind == "json" else turn.assistant
        assert turn.content.lower() in answer.lower()


def test_what_is_asked_for_is_in_the_request():
    """The argument of each checker, read from the checks, stands in the request."""
    for kind in constraints.KINDS:
        for turn in _turns(kind, 30):
            assert turn.checks
            for _, arguments in turn.checks:
                for name, value in arguments.items():
                    if name in ("word", "end_phrase", "prompt_to_repeat", "num_bullets"):
                        assert str(value) in turn.user
                    elif name in ("keys", "forbidden_words"):
                        assert all(word in turn.user for word in value)


def test_the_count_of_words_is_the_one_asked_for():
    counts = set()
    for turn in _turns("words"):
        (asked,) = re.findall(r"(\d+) words", turn.user)
        assert len(turn.assistant.split()) == int(asked)
        counts.add(asked)
    assert len(counts) > 3  # not to be guessed
