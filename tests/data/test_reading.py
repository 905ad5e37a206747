"""Files, folders and prepared data sets as documents; refusals that quote nothing."""

import json
import sys
import types

import numpy as np
import pytest

from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput

CONVERSATION = [{"role": "user", "content": "Where is the dog?"}, {"role": "assistant", "content": "In the barn."}]


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_lines_of_text_and_messages_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "A note."}) + "\n\n" + json.dumps({"messages": CONVERSATION}) + "\n")
    first, second = read_documents(str(path), "config.text")
    assert (first.text, first.name) == ("A note.", f"{path}:1")
    assert (second.messages, second.name) == (CONVERSATION, f"{path}:3")


@pytest.mark.parametrize(
    "line", ["{", "[1]", "{}", '{"text": ""}', '{"text": 3}', '{"messages": []}', '{"messages": [{"role": "user"}]}']
)
def test_malformed_lines_are_refused_by_number_without_quoting_text(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "Secret patient words."}\n' + line + "\n")
    with pytest.raises(BadInput, match=":2: ") as error:
        read_documents(str(path), "config.text")
    assert "Secret" not in str(error.value)


def test_line_separators_inside_json_text_do_not_split_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one \u2028 two \u0085 three"}\n{"text": "next"}\r\n', encoding="utf-8")
    assert [document.text for document in read_documents(str(path), "config.text")] == [
        "one \u2028 two \u0085 three",
        "next",
    ]


def test_prompts_with_completions_are_read_under_both_names(tmp_path):
    path = _write(
        tmp_path / "rows.jsonl",
        {"prompt": "Dog?", "completion": "Barn.", "id": 7},
        {"input": "Dog?", "output": "Barn."},
        {"instruction": "Say where.", "input": "Dog?", "output": "Barn."},
        {"instruction": "Say where.", "input": "", "output": "Barn."},
    )
    documents = read_documents(path, "config.text")
    assert [document.prompt for document in documents] == ["Dog?", "Dog?", "Say where.\n\nDog?", "Say where."]
    assert {document.completion for document in documents} == {"Barn."}
    assert documents[0].id == "7" and len({document.id for document in documents}) == 4


def test_ids_do_not_depend_on_the_order_of_rows_and_tell_copies_apart(tmp_path):
    rows = [{"text": "one"}, {"text": "two"}, {"text": "one"}, {"text": "three", "id": "own"}]
    ids = {document.id for document in read_documents(_write(tmp_path / "a.jsonl", *rows), "config.text")}
    again = {document.id for document in read_documents(_write(tmp_path / "b.jsonl", *rows[::-1]), "config.text")}
    assert ids == again and len(ids) == 4 and "own" in ids


def test_rows_that_share_an_id_are_refused_by_both_lines(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"text": "one", "id": 3}, {"text": "two", "id": "3"})
    with pytest.raises(BadInput, match=r":2: has the same id as .*:1"):
        read_documents(path, "config.text")


def test_the_class_is_read_from_the_field_that_is_named(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"text": "one", "section": "GENHX"}, {"text": "two", "section": 4})
    assert [document.label for document in read_documents(path, "config.text", "section")] == ["GENHX", "4"]
    assert [document.label for document in read_documents(path, "config.text")] == [None, None]
    with pytest.raises(BadInput, match=":1: has no 'kind' to balance classes by"):
        read_documents(path, "config.text", "kind")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "secret", "messages": CONVERSATION}, "has more than one of 'text', 'messages'"),
        ({"prompt": "secret"}, "has none of 'text', 'messages', .*; its columns are 'prompt'; give one"),
        ({"completion": "secret"}, "'prompt' is empty or not text"),
        ({"prompt": "secret", "completion": " "}, "'completion' is empty or not text"),
        ({"prompt": ["secret"], "completion": "secret"}, "'prompt' is empty or not text"),
        ({"output": "secret"}, "'input' is empty or not text"),
        ({"input": "secret", "instruction": 3, "output": "secret"}, "'instruction' is empty or not text"),
        ({"text": "secret", "id": 1.5}, "'id' is neither text nor a whole number"),
    ],
)
def test_rows_that_are_no_document_are_refused_by_line_and_not_quoted(tmp_path, row, problem):
    with pytest.raises(BadInput, match=problem) as error:
        read_documents(_write(tmp_path / "a.jsonl", {"text": "fine"}, row), "config.text")
    assert str(error.value).startswith(f"{tmp_path / 'a.jsonl'}:2: ") and "secret" not in str(error.value)


def test_a_text_file_is_one_document_and_a_folder_holds_many(tmp_path):
    (tmp_path / "b.txt").write_text("A note.\n\nIts second paragraph.\n")
    (tmp_path / "a.txt").write_text("Another.")
    (tmp_path / "LICENSE").write_text("not text to learn")
    (one,) = read_documents(str(tmp_path / "b.txt"), "config.text")
    assert one.text == "A note.\n\nIts second paragraph.\n"
    assert [(document.id, document.text[:1]) for document in read_documents(str(tmp_path), "config.text")] == [
        ("a.txt", "A"), ("b.txt", "A"),
    ]  # fmt: skip
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(BadInput, match="a.txt: 'text' is empty or not text"):
        read_documents(str(tmp_path), "config.text")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="config.text: the folder .* has no .txt file"):
        read_documents(str(tmp_path / "none"), "config.text")


@pytest.fixture
def prepared(monkeypatch):
    """Stands for tensorflow_datasets: one data set of two rows, as that library gives them; what it was asked for."""
    asked = []

    def data_source(name, **options):
        asked.append((name, options["split"], options["data_dir"], options["download"]))
        if name != "notes" or options["split"] not in ("train", "test[:50%]"):
            raise ValueError("there is no\nsuch split")
        messages = {"role": np.array([b"user", b"assistant"], object), "content": [b"Dog?", b"Barn."]}
        return [
            {"id": b"n1", "label": np.int64(2), "messages": messages},
            {"id": b"n2", "label": np.int64(0), "text": "caf\u00e9".encode()},
        ]

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(data_source=data_source))
    return asked


def test_rows_of_a_prepared_data_set_are_read_without_downloading(prepared):
    first, second = read_documents("tfds:notes", "config.text", "label", "/data")
    assert (first.id, first.label, second.id, second.text) == ("n1", "2", "n2", "caf\u00e9")
    assert first.messages == [{"role": "user", "content": "Dog?"}, {"role": "assistant", "content": "Barn."}]
    read_documents("tfds:notes:test[:50%]", "config.text")
    assert prepared == [("notes", "train", "/data", False), ("notes", "test[:50%]", None, False)]


def test_what_cannot_be_read_of_prepared_data_sets_is_refused_in_one_line(prepared):
    with pytest.raises(
        BadInput, match=r"config.text: tfds:notes:dev cannot be read from .* \(there is no such split\)"
    ):
        read_documents("tfds:notes:dev", "config.text")
    with pytest.raises(BadInput, match="does not have the form tfds:NAME or tfds:NAME:SPLIT"):
        read_documents("tfds:some notes", "config.text")
