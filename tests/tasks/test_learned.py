"""What an evaluation says of models that were fine-tuned on what it asks."""

import json

import pytest

from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.learned import RECORD, Learned, read_learned, record, remarks
from clinmerge_jax.tasks.task import Form, Item

FORM = Form("{note} Summary:", "Be short.")
LEARNED = Learned("notes", "train", True, "letter", FORM, ("1", "2"))


def _items(*ids):
    return [Item(id, id, {}, "", "") for id in ids]


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert read_learned(tmp_path) == [] and record([]) == {}
    (tmp_path / RECORD).write_text(json.dumps({"job": "sft", **record([LEARNED])}))
    assert read_learned(tmp_path) == [LEARNED]


@pytest.mark.parametrize("content", ['{"learned": [{"task": "notes"}]}', '{"learned": 3}', "[]", "{"])
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(BadInput, match="its 'learned' does not have the form that fine-tuning writes"):
        read_learned(tmp_path)


def test_a_task_that_was_learned_is_named_whatever_its_split():
    said = remarks("mine", [LEARNED], "notes@test", FORM, True, _items("7"))
    assert said == ["mine was fine-tuned on 2 examples of notes@train, through the chat template"]
    assert remarks("mine", [LEARNED], "letters", FORM, True, _items("7")) == []


def test_another_form_and_items_that_were_learned_are_warned_of():
    said = remarks("mine", [LEARNED], "notes", Form("{note}"), False, _items("1", "7"))
    assert [line.startswith("WARNING") for line in said] == [False, True, True, True]
    assert "1 of the 2 items of notes are among the training examples of mine" in said[1]
    assert "config.chat_template=True" in said[2] and "other words" in said[3]
