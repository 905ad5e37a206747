"""Files as people have them, from the file to the tokens that are learned; and what is wrong with others."""

import csv
import gzip
import io
import json
import time

import pyarrow
import pyarrow.parquet
import pytest

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.tokenizer import load_tokenizer
from clinmerge_jax.data.examples import prepare
from clinmerge_jax.data.prompts import encode_prompt, read_prompts
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.data.row_files import read_rows
from clinmerge_jax.errors import BadInput

ROWS = [
    {"dialogue": "Fever, since two days?", "note": 'A fever; "two" days.', "nr": "p1"},
    {"dialogue": "Cough,\nand pain", "note": "A cough.", "nr": "p2"},
]
FIELDS = "prompt={dialogue} Note:; completion= {note}; id={nr}"
SECRET = "Zebra"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(open_checkpoint("miniature:instruct", "x").path, "config.model")


def _lines(rows, end="\n"):
    return "".join(json.dumps(row) + end for row in rows).encode()


def _table(rows, delimiter=",", end="\n"):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


FORMS = {
    "a.jsonl": lambda path: _lines(ROWS),
    "crlf.ndjson": lambda path: _lines(ROWS, "\r\n"),
    "array.json": lambda path: json.dumps(ROWS, indent=1).encode(),
    "lines.json": lambda path: _lines(ROWS),
    "bom.json": lambda path: b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "bom.jsonl": lambda path: b"\xef\xbb\xbf" + _lines(ROWS),
    "a.csv": lambda path: _table(ROWS),
    "excel.csv": lambda path: b"\xef\xbb\xbf" + _table(ROWS, end="\r\n"),
    "a.tsv": lambda path: _table(ROWS, "\t"),
    "A.PARQUET": lambda path: _parquet(path, ROWS),
    "no_suffix": lambda path: _lines(ROWS),
    "also_none.data": lambda path: json.dumps(ROWS).encode(),
    "parquet_by_content": lambda path: _parquet(path, ROWS),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_file_gives_the_same_trained_tokens(tmp_path, tokenizer, form, zipped):
    path = tmp_path / form
    path.write_bytes(FORMS[form](path))
    if zipped:
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    _assert_learned(str(path), tokenizer)


def test_a_folder_saved_by_datasets_is_read(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    _assert_learned(str(tmp_path / "saved"), tokenizer)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(BadInput, match="has several splits; name one of them, such as .*splits/train"):
        list(read_rows(str(tmp_path / "splits"), "config.task"))
    _assert_learned(str(tmp_path / "splits" / "train"), tokenizer)


def _assert_learned(path, tokenizer):
    documents = read_documents(path, "config.task", fields=FIELDS)
    assert [document.id for document in documents] == ["p1", "p2"]
    assert documents[1].prompt == "Cough,\nand pain Note:" and documents[0].completion == ' A fever; "two" days.'
    examples = prepare(
        documents, tokenizer, len(tokenizer), 128, chat=False, full_rows=False, field="config.model"
    )  # fmt: skip
    sequences = examples.sequences
    for row, expected in enumerate(ROWS):
        place = slice(sequences.starts[row], sequences.starts[row + 1])
        tokens, targets = sequences.tokens[place], sequences.targets[place]
        assert tokenizer.decode(tokens[targets], skip_special_tokens=True) == f" {expected['note']}"
        assert tokens[-1] == tokenizer.eos_token_id and targets[-1]


CHAT = [{"role": "user", "content": "Fever?"}, {"role": "assistant", "content": "Yes."}]
SHAREGPT = [
    {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Fever?"}, {"from": "gpt", "value": "Yes."},
]  # fmt: skip


def test_the_usual_forms_of_rows_are_told_by_their_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": CHAT},
        {"conversations": SHAREGPT, "id": 4},
        {"instruction": "Answer.", "input": "Fever?", "output": "Yes."},
        {"prompt": "Fever?", "completion": "Yes.", "extra": None},
        {"text": "Fever.", "messages": float("nan")},
    ]
    path.write_bytes(_lines(rows))
    chat, shared, alpaca, pair, text = read_documents(str(path), "config.task")
    assert chat.messages == CHAT and text.text == "Fever."
    assert [(one["role"], one["content"]) for one in shared.messages] == [
        ("system", "Be brief."), ("user", "Fever?"), ("assistant", "Yes."),
    ]  # fmt: skip
    assert (alpaca.prompt, alpaca.completion) == ("Answer.\n\nFever?", "Yes.") and pair.prompt == "Fever?"


def test_conversations_in_parquet_and_numbers_are_read(tmp_path):
    path = tmp_path / "rows.parquet"
    _parquet(path, [{"chat": SHAREGPT, "age": 41, "dose": 2.5}] * 300)
    documents = read_documents(str(path), "config.task", fields="conversations={chat}")
    assert len(documents) == 300 and documents[299].messages[2]["content"] == "Yes."
    (first, *_) = read_documents(str(path), "config.task", fields="text=Age {age}, {dose} mg of {{x}}")
    assert first.text == "Age 41, 2.5 mg of {x}"


def test_prompts_are_read_by_their_column_and_never_a_line_of_a_table(tmp_path, tokenizer):
    path = tmp_path / "prompts.csv"
    path.write_bytes(_table([{"id": "q1", "prompt": "Fever,\nsince when?"}, {"id": "q2", "prompt": "Cough?"}]))
    prompts = read_prompts(str(path), "config.prompts")
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("q1", "Fever,\nsince when?"), ("q2", "Cough?")]
    path.write_bytes(_table(ROWS))
    (first, second) = read_prompts(str(path), "config.prompts", "prompt=Summarize: {dialogue}; id={nr}")
    assert (second.id, second.text) == ("p2", "Summarize: Cough,\nand pain")
    assert tokenizer.decode(encode_prompt(first, tokenizer)[0], skip_special_tokens=True).startswith("Summarize: Fever")
    with pytest.raises(BadInput, match=r"csv row 1: has none of 'prompt'.*; it has 'dialogue', 'note', 'nr': say"):
        read_prompts(str(path), "config.prompts")
    for name, content in (("p.txt", _lines(ROWS)), ("p", b'["a"]')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="looks like JSON, and is named like text"):
            read_prompts(str(tmp_path / name), "config.prompts")


def test_conversations_are_prompts_if_the_user_has_the_last_word(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(_lines([{"conversations": SHAREGPT[:2]}]))
    assert read_prompts(str(path), "config.prompts")[0].messages[-1] == {"role": "user", "content": "Fever?"}
    path.write_bytes(_lines([{"conversations": SHAREGPT}]))
    with pytest.raises(BadInput, match="p.jsonl:1: ends with an answer"):
        read_prompts(str(path), "config.prompts")


_ONE = {"prompt": SECRET, "completion": SECRET}
MALFORMED = [
    ("empty.csv", b"", "", "is empty; give JSON lines"),
    ("header.csv", b"prompt,completion\n", "", "is empty; give JSON lines"),
    ("cells.csv", b"prompt,completion\na,b\nZebra\n", "", "row 2: has 1 cells, and the first line names 2"),
    ("more.csv", b"prompt,completion\nZebra, and,b\n", "", "row 1: has 3 cells, .* put cells with a comma"),
    ("twice.csv", b"prompt,prompt\na,b\n", "", "has the column 'prompt' twice"),
    ("unnamed.csv", b"prompt,,completion\na,b,c\n", "", "has a column without a name"),
    ("semicolon.csv", b"prompt;completion\na;b\n", "", "has cells between ';', and ',' belongs there"),
    ("quote.csv", b'prompt,completion\na,"Zebra\n', "", "is no table after row 0"),
    ("latin.csv", "prompt,completion\nZebra 37\xb0,b\n".encode("latin-1"), "", "is not UTF-8"),
    ("cut.jsonl.gz", gzip.compress(_lines([_ONE] * 2000))[:-20], "", "ends early or is damaged"),
    ("plain.csv.gz", b"prompt,completion\na,b\n", "", "is no gzip file"),
    ("damaged.parquet", b"PAR1Zebra", "", "is no readable Parquet file after row 0"),
    ("named.csv", b"PAR1Zebra", "", "is a Parquet file; name it .parquet"),
    ("unknown.dat", b"Zebra has a fever", "", "what .*unknown.dat is cannot be told; name it .csv"),
    ("object.json", b'{\n "prompt": "Zebra"\n}\n', "", "is one JSON object over several lines"),
    ("array.json", b'[{"text": "Zebra"}, ["Zebra"]]', "", "row 2: is no JSON object"),
    ("broken.json", b'[{"prompt": "Zebra"}', "", "is not valid JSON"),
    ("deep.jsonl", b"[" * 100_000, "", "is not valid JSON"),
    ("half.jsonl", b'{"text": "Zebra \\ud800"}', "", ":1: holds half of a surrogate pair"),
    ("speaker.jsonl", _lines([{"conversations": [{"from": "narrator", "value": SECRET}]}]), "", "from 'narrator'"),
    ("turn.jsonl", _lines([{"conversations": [{"from": "human"}]}]), "", "a turn lacks the text 'from' or 'value'"),
    ("none.jsonl", _lines([{"question": SECRET}]), "", "it has 'question': say which is which, .*--config.fields"),
    ("column.jsonl", _lines([_ONE]), "prompt={query}", "has nothing in 'query', .* it has 'prompt', 'completion'"),
    ("list.jsonl", _lines([{"a": [SECRET]}]), "text=x {a}", "'a' is neither text nor a number"),
    ("field.jsonl", _lines([_ONE]), "question={prompt}", "config.fields: 'question' is unknown; choose of"),
    ("again.jsonl", _lines([_ONE]), "text={a}; text={b}", "config.fields: 'text' is named twice"),
    ("brace.jsonl", _lines([_ONE]), "text={prompt", "config.fields: text: "),
    ("plain.jsonl", _lines([_ONE]), "text={prompt.real:3}", "give plain names of columns"),
    ("spelled.jsonl", _lines([_ONE]), "{prompt}", "is not spelled FIELD=TEMPLATE"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, fields, line", MALFORMED, ids=[one[0] for one in MALFORMED])
def test_each_malformed_file_gives_one_clear_line_that_quotes_nothing(tmp_path, name, content, fields, line):
    (tmp_path / name).write_bytes(content)
    start = time.monotonic()
    with pytest.raises(BadInput, match=line) as refused:
        read_documents(str(tmp_path / name), "config.task", fields=fields)
    assert SECRET not in str(refused.value) and "\n" not in str(refused.value)
    assert time.monotonic() - start < 10
