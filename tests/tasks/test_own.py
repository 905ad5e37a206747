"""A user's own task, from JSON lines and a config alone."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.items import items as items_of
from clinmerge_jax.tasks.own import own_task
from clinmerge_jax.tasks.task import Kind

SECRET = "Zebra"
ROWS = [
    {"id": 1, "input": f"{SECRET} fever and tea.", "output": "Fever.", "ward": "A", "visit": "v1"},
    {"id": 2, "input": f"{SECRET} cough and rest.", "output": "Cough.", "ward": "B", "visit": "v1"},
]
CHOICE = {"id": "a", "input": "Which drug?", "output": "tea", "choices": ["rest", "tea", "ice"]}


def _own(path, rows, **fields):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = {
        "name": "mine",
        "test": str(path),
        "train": "",
        "kind": "generation",
        "source": "input",
        "target": "output",
        "choices": "choices",
        "id": "id",
        "cluster": "",
        "label": "",
        "instruction": "",
        "question": "",
        "metrics": "",
        "composite": "",
        "max_new_tokens": 256,
        "shareable": False,
        "floors": True,
    }
    return ConfigDict(usual | fields)


def _refusal(own):
    with pytest.raises(BadInput) as error:
        own_task(own)[1]("test")
    assert SECRET not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_task_of_generation_with_metrics_composite_clusters_and_classes(tmp_path):
    own = _own(
        tmp_path / "rows.jsonl",
        ROWS,
        cluster="visit",
        label="ward",
        instruction="Summarize.",
        question="Ward {ward}: {input}\nSummary:",
        metrics="rougeL_unstemmed,length_ratio",
        composite="both = rouge1_unstemmed, bleu",
        floors=False,
        shareable=True,
        max_new_tokens=9,
    )
    task, read = own_task(own)
    assert [metric.name for metric in task.metrics] == ["both", "rougeL_unstemmed", "length_ratio"]
    assert [part.name for part in task.metrics[0].parts] == ["rouge1_unstemmed", "bleu"]
    assert (task.name, task.kind, task.train, task.max_new_tokens) == ("mine", Kind.GENERATION, "", 9)
    assert task.shareable and not task.floors and task.form.instruction == "Summarize."
    first, second = read("test")
    assert (first.id, first.cluster, first.label, first.target) == ("1", "v1", "A", "Fever.")
    assert second.name == f"{tmp_path}/rows.jsonl:2"
    assert task.form.question.format(**first.fields) == f"Ward A: {SECRET} fever and tea.\nSummary:"


def test_by_default_the_source_is_the_prompt_and_the_usual_metrics_are_taken(tmp_path):
    rows = [{"input": "a b", "output": "c"}]
    task, read = own_task(_own(tmp_path / "rows.jsonl", rows, train=str(tmp_path / "rows.jsonl")))
    assert task.form.question == "{input}" and task.metrics[0].name == "rougeL_unstemmed"
    assert not task.shareable and task.floors and task.train == "train"
    assert [read(split)[0].id for split in ("test", "train")] == ["test-1", "train-1"]


@pytest.mark.parametrize(
    "answer, choices",
    [
        ("tea", ["rest", "tea", "ice"]),
        ("B", ["rest", "tea", "ice"]),
        (1, ["rest", "tea", "ice"]),
        ("1", ["rest", "tea", "ice"]),
        ("y", {"x": "rest", "y": "tea", "z": "ice"}),
        ("2", ["1", "2", "3"]),  # a text before a place
    ],
)
def test_the_right_option_is_given_by_letter_place_or_text(tmp_path, answer, choices):
    own = _own(tmp_path / "rows.jsonl", [CHOICE | {"output": answer, "choices": choices}], kind="choice")
    task, read = own_task(own)
    (item,) = read("test")
    assert (item.target, item.label, len(item.choices)) == ("B", "B", 3)
    assert task.kind is Kind.CHOICE and [metric.name for metric in task.metrics] == ["accuracy"] and not task.floors
    prompt = task.form.question.format(**item.fields)
    assert prompt.startswith("Question: Which drug?\nA. ") and prompt.endswith(f"\nC. {item.choices[2]}\nAnswer:")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output": None}, "rows.jsonl:2: 'output' is empty or not text"),
        ({"output": "  "}, "rows.jsonl:2: 'output' is empty or not text"),
        ({"input": ["x"]}, "rows.jsonl:2: 'input' is empty or not text"),
        ({"id": 1}, "rows.jsonl:2: has the same 'id' as"),
        ({"input": "\ud800"}, "rows.jsonl:2: holds half of a surrogate pair"),
    ],
)
def test_rows_that_are_wrong_are_named_by_file_line_and_field(tmp_path, change, message):
    assert message in _refusal(_own(tmp_path / "rows.jsonl", [ROWS[0], ROWS[1] | change]))


def test_a_missing_column_is_named_with_the_config_field_that_names_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    columns = "name one of 'id', 'input', 'output', 'ward', 'visit'"
    assert f"rows.jsonl:1: has no 'summary'; {columns} with config.own.target" in _refusal(
        _own(path, ROWS, target="summary")
    )
    assert f"rows.jsonl:1: has no 'patient'; {columns} with config.own.cluster" in _refusal(
        _own(path, ROWS, cluster="patient")
    )
    assert "rows.jsonl:1: has no text 'bed', which config.own.question names" in _refusal(
        _own(path, ROWS, question="{bed} {input}")
    )


def test_tables_arrays_and_parquet_make_the_same_items_as_json_lines(tmp_path):
    wanted = own_task(_own(tmp_path / "rows.jsonl", ROWS, id="", cluster="visit"))[1]("test")
    frame = pa.Table.from_pylist(ROWS)
    pq.write_table(frame, tmp_path / "rows.parquet")
    pacsv.write_csv(frame, tmp_path / "rows.csv")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    for name in ("rows.parquet", "rows.csv", "rows.json"):
        own = _own(tmp_path / "rows.jsonl", ROWS, id="", cluster="visit")
        own.test = str(tmp_path / name)
        found = own_task(own)[1]("test")
        assert [item.name for item in found] == [f"{own.test} row 1", f"{own.test} row 2"]
        assert [dataclasses.replace(item, name=old.name) for item, old in zip(found, wanted)] == wanted
    pq.write_table(pa.Table.from_pylist([CHOICE, CHOICE | {"id": "b", "output": "A"}]), tmp_path / "rows.parquet")
    own = _own(tmp_path / "rows.jsonl", ROWS, kind="choice")
    own.test = str(tmp_path / "rows.parquet")
    assert [item.target for item in own_task(own)[1]("test")] == ["B", "A"]
    own.test = "tfds:notes"
    assert "config.own.test: tfds:notes is not a file" in _refusal(own)


def test_another_encoding_an_empty_file_and_none_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    own = _own(path, ROWS)
    path.write_bytes(f'{{"input": "{SECRET} 37\xb0"}}'.encode("latin-1"))
    assert "rows.jsonl:1: is not UTF-8 at byte" in _refusal(own)
    path.write_text("[1]\n")
    assert "rows.jsonl:1: is not a JSON object" in _refusal(own)
    path.write_text("\n")
    assert "rows.jsonl: is empty" in _refusal(own)
    path.unlink()
    assert "config.own.test: " in _refusal(own)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output": "coffee"}, "the answer in 'output' is not one of its options"),
        ({"output": 3}, "the answer in 'output' is not one of its options"),
        ({"output": True}, "has no answer in 'output'"),
        ({"output": "B", "choices": ["B", "tea"]}, "the answer in 'output' could be several of its options"),
        ({"output": "tea", "choices": ["tea", "tea"]}, "the answer in 'output' could be several of its options"),
        ({"choices": ["tea"]}, "'choices' is not a list of 2 to 26 options"),
        ({"choices": "tea"}, "'choices' is not a list of 2 to 26 options"),
        ({"choices": ["tea", ""]}, "'B' is empty or not text"),
    ],
)
def test_choices_that_cannot_be_scored_are_refused(tmp_path, change, message):
    assert f"rows.jsonl:1: {message}" in _refusal(_own(tmp_path / "rows.jsonl", [CHOICE | change], kind="choice"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "My task"}, "config.own.name: 'My task' is not a valid name"),
        ({"name": "gsm8k"}, "config.own.name: a task 'gsm8k' exists already"),
        ({"kind": "essay"}, "config.own.kind: 'essay' is unknown; choose from generation, choice"),
        ({"test": ""}, "config.own.test: is empty"),
        ({"max_new_tokens": 0}, "config.own.max_new_tokens: is 0"),
        ({"question": "{input"}, "config.own.question: "),
        ({"question": "{input.real}"}, "config.own.question: {input.real} is not a plain field name"),
        ({"question": "{}"}, "config.own.question: {} is not a plain field name"),
        ({"metrics": "rouge9"}, "config.own.metrics: 'rouge9' is unknown"),
        ({"composite": "bleu"}, "config.own.composite: 'bleu' does not have the form"),
        ({"composite": "bleu=chrf_sentence"}, "config.own.composite: 'bleu=chrf_sentence' does not have the form"),
        ({"composite": "x=bleu,repetition"}, "config.own.composite: repetition is not a score that goes up to 100"),
        ({"kind": "choice", "metrics": "bleu"}, "config.own.metrics: for choices only accuracy and exact_match"),
        ({"kind": "choice", "composite": "x=bleu"}, "config.own.composite: for choices only"),
    ],
)
def test_fields_that_are_wrong_are_refused_before_anything_is_read(tmp_path, fields, message):
    with pytest.raises(BadInput) as error:
        own_task(_own(tmp_path / "rows.jsonl", ROWS, **fields))
    assert str(error.value).startswith(message)


def test_without_a_training_file_there_are_no_training_items(tmp_path):
    _, read = own_task(_own(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(BadInput, match="config.own: mine has no split 'train'; name its file with config.own.train"):
        read("train")


def test_the_questions_of_mediqa_are_a_task_from_flags_alone(shared, tmp_path):
    if not (shared / "data/mediqa2021_qs").is_dir():
        pytest.skip("the shared data lacks data/mediqa2021_qs")
    theirs = items_of("mediqa_qs", "test", Source(str(shared / "data"), str(tmp_path)))
    rows = [{"q_id": item.id, "NLM Question": item.source, "Summary": item.target} for item in theirs]
    own = _own(tmp_path / "rows.jsonl", rows, id="q_id", source="NLM Question", target="Summary")
    task, read = own_task(own)
    ours = read("test")
    assert [(item.source, item.target) for item in ours] == [(item.source, item.target) for item in theirs]
    assert task.form.question.format(**ours[0].fields) == theirs[0].source
