"""Columns mapped to fields by templates."""

import json

import pytest

from clinmerge_jax.data.files.fields import Fields, shown, suggestion
from clinmerge_jax.data.prompts import read_prompts
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput

FORMS = (("prompt", "completion"), ("text",), ("messages",))
NOTES = "ID,section header,dialogue,note\n7,GENHX,Doctor: a fever? Patient: yes.,She has a fever.\n"


def test_a_template_makes_fields_of_columns_and_keeps_what_is_around_them():
    fields = Fields.parse("prompt=Sum up; {{briefly}}: {a b}\n= {n};completion={c};", "config.fields", FORMS)
    row = {"a b": "x {c}", "n": 2, "c": 1.5, "id": "own"}
    assert fields.apply(row, "f:1") == {"id": "own", "prompt": "Sum up; {briefly}: x {c}\n= 2", "completion": "1.5"}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("prompt", "does not have the form prompt={COLUMN}; completion={COLUMN}"),
        ("prompt=a; completion={b}", "does not have the form"),
        ("text={a}; text={b}", "does not have the form"),
        ("prompt={a}", "maps 'prompt'; map prompt and completion, or text, or messages, and optionally id"),
        ("prompt={a}; answer={b}", "maps 'prompt', 'answer'; map"),
        ("prompt={a}; completion={b}; text={c}", "maps 'prompt', 'completion', 'text'; map"),
        ("text={a.real}", "{a.real} is not a plain field name"),
        ("text={a!r}", "{a} is not a plain field name"),
        ("text={}", "{} is not a plain field name"),
        ("text={a", "write field names in braces"),
        ("messages=x {a}", "messages is more than one column"),
    ],
)
def test_a_map_that_is_none_is_refused(spec, problem):
    with pytest.raises(BadInput) as refusal:
        Fields.parse(spec, "config.fields", FORMS)
    assert str(refusal.value).startswith("config.fields: ") and problem in str(refusal.value)


def test_columns_of_a_table_are_learned_and_asked_by_their_map(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(NOTES)
    fields = "prompt={section header}: {dialogue}; completion={note}; id={ID}"
    (document,) = read_documents(str(path), "config.task", "section header", fields=fields)
    assert (document.prompt, document.completion) == (
        "GENHX: Doctor: a fever? Patient: yes.",
        "She has a fever.",
    )
    assert (document.id, document.label) == ("7", "GENHX")
    (prompt,) = read_prompts(str(path), "config.prompts", "prompt={dialogue}; id={ID}")
    assert (prompt.text, prompt.id) == ("Doctor: a fever? Patient: yes.", "7")


def test_a_column_that_is_missing_or_empty_is_refused_with_those_that_there_are(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(NOTES)
    problem = "row 1: has no column 'summary', which config.fields names; its columns are 'ID', 'section header'"
    with pytest.raises(BadInput, match=problem):
        read_documents(str(path), "config.task", fields="prompt={dialogue}; completion={summary}")
    with pytest.raises(BadInput, match="has no column 'x', which config.replay.fields names"):
        read_documents(str(path), "config.replay.task", fields="text={x}")
    for value in (None, "", float("nan"), ["x"]):
        place = tmp_path / "rows.jsonl"
        place.write_text(json.dumps({"a": "x", "b": value}))
        with pytest.raises(BadInput, match="rows.jsonl:1: 'b', which config.fields names, is (empty|neither)"):
            read_documents(str(place), "config.task", fields="prompt={a}; completion={b}")


def test_what_cannot_be_told_is_refused_with_its_columns_and_the_map_that_would_mend_it(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(NOTES)
    with pytest.raises(BadInput) as refusal:
        read_documents(str(path), "config.task", fields="")
    assert "row 1: has none of" in str(refusal.value) and "'ID', 'section header', 'dialogue'" in str(refusal.value)
    assert str(refusal.value).endswith('--config.fields="prompt={dialogue}; completion={note}"')
    with pytest.raises(BadInput) as refusal:
        read_prompts(str(path), "config.prompts")
    assert str(refusal.value).endswith('--config.fields="prompt={dialogue}"')
    with pytest.raises(BadInput) as refusal:
        read_documents(str(path), "config.evaluate")
    assert "--config" not in str(refusal.value)


def test_text_in_the_place_of_column_names_is_not_shown():
    assert shown(["section header", "_x.y", "The patient came in with a cough", "a\nb"]) == (
        "'section header', '_x.y', (no plain name), (no plain name)"
    )
    assert shown(map(str, range(23))).endswith("'19', 3 more") and shown([]) == "none"
    assert suggestion({"The patient came in with a cough": "x"}, ("text",)) == "text={COLUMN1}"
