"""Conversations and ids of rows in the forms in which people write them."""

import pytest

from clinmerge_jax.data.files.forms import conversation, identifier
from clinmerge_jax.errors import BadInput


def test_the_roles_of_sharegpt_become_those_of_chat_templates():
    names = ("system", "human", "gpt", "user", "chatgpt", "assistant")
    row = {"conversations": [{"from": name, "value": str(at), "weight": 1} for at, name in enumerate(names)]}
    assert conversation(row, "conversations", "f:1") == [
        {"role": role, "content": str(at)}
        for at, role in enumerate(("system", "user", "assistant", "user", "assistant", "assistant"))
    ]


def test_keys_without_a_value_are_left_out_of_messages():
    row = {"messages": [{"role": "user", "content": "x", "name": None}]}
    assert conversation(row, "messages", "f:1") == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([{"from": "bing", "value": "secret"}], "f:1: a message is from 'bing'; give one of system, human"),
        ([{"from": "the secret patient said so", "value": "x"}], r"a message is from \(no plain name\)"),
        ([{"role": "user", "content": "secret"}], "lacks the text 'from' or 'value'"),
        ([{"from": "human", "value": None}], "lacks the text 'from' or 'value'"),
        ("secret", "'conversations' is not a list of messages"),
        ([], "'conversations' is not a list of messages"),
    ],
)
def test_what_is_no_conversation_is_refused(turns, problem):
    with pytest.raises(BadInput, match=problem) as refusal:
        conversation({"conversations": turns}, "conversations", "f:1")
    assert "secret" not in str(refusal.value)


def test_an_id_is_text_or_a_whole_number_or_missing():
    assert [identifier({"id": value}, "f:1") for value in ("a", 3, "", None)] == ["a", "3", None, None]
    for value in (1.5, True, ["a"]):
        with pytest.raises(BadInput, match="'id' is neither text nor a whole number"):
            identifier({"id": value}, "f:1")
