"""Files of every kind as rows, from a file to the tokens that are trained; malformed ones as one clear line."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import support
import transformers

from clinmerge_jax.data import examples
from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
PAIRS = [{"id": "n1", "prompt": "the patient has ", "completion": "a fever and\na cough ."},
         {"id": "n2", "prompt": "a patient", "completion": " has, the \"cough\""}]  # fmt: skip
ANSWERS = ["a fever and a cough . </s>", "has <unk> the <unk> cough <unk> </s>"]
CHAT = [{"role": "user", "content": "the patient has"}, {"role": "assistant", "content": "a fever"}]
SHARED = [{"from": "human", "value": "the patient has"}, {"from": "gpt", "value": "a fever"}]
SECRET = "zebra"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    support.write_tokenizer(folder, chat_template=TEMPLATE)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _table(rows, delimiter=",", ends="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, lineterminator=ends)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _array(rows):
    return json.dumps(rows, indent=1).encode()


FILES = {
    "rows.jsonl": _lines(PAIRS),
    "rows.ndjson": _lines(PAIRS).replace(b"\n", b"\r\n"),
    "lines.json": _lines(PAIRS),
    "rows.json": b"\xef\xbb\xbf" + _array(PAIRS),
    "rows.csv": _table(PAIRS),
    "windows.CSV": b"\xef\xbb\xbf" + _table(PAIRS, ends="\r\n").replace(b"and\n", b"and\r\n"),
    "rows.tsv": _table(PAIRS, "\t"),
    "rows.parquet": _parquet(PAIRS),
    "array": _array(PAIRS),
    "lines": _lines(PAIRS),
    "columns": _parquet(PAIRS),
}
FILES |= {f"{name}.gz": gzip.compress(FILES[name]) for name in (
    "rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet")}  # fmt: skip


def _write(path, content):
    path.write_bytes(content)
    return str(path)


def _learned(documents, tokenizer, chat=False):
    """The tokens that are learned, as words, row by row."""
    prepared = examples.prepare(
        documents, tokenizer, len(tokenizer), 24, chat=chat, full_rows=False, field="config.model"
    )
    one, ends = prepared.sequences, prepared.sequences.starts[1:-1]
    rows = zip(np.split(one.tokens, ends), np.split(one.targets, ends))
    return [" ".join(tokenizer.convert_ids_to_tokens(tokens[targets])) for tokens, targets in rows]


@pytest.mark.parametrize("name", FILES)
def test_each_form_of_file_gives_the_same_trained_tokens(tmp_path, tokenizer, name):
    documents = examples.read(_write(tmp_path / name, FILES[name]), "config.task")
    assert [document.id for document in documents] == ["n1", "n2"]
    assert documents[0].completion == PAIRS[0]["completion"]
    plain = examples.read(_write(tmp_path / "plain.jsonl", _lines(PAIRS)), "config.task")
    assert _learned(documents, tokenizer) == _learned(plain, tokenizer)
    assert _learned(documents, tokenizer)[0] == ANSWERS[0]


@pytest.mark.parametrize("write", [_lines, _array, _parquet], ids=["lines", "array", "parquet"])
@pytest.mark.parametrize(
    ("row", "learned"),
    [
        ({"messages": CHAT}, "a fever"),
        ({"conversations": SHARED}, "a fever"),
        ({"instruction": "the patient", "input": "has", "output": "a fever"}, "a fever"),
        ({"instruction": "the patient has", "input": None, "output": "a fever"}, "a fever"),
        ({"input": "the patient has", "output": "a fever"}, "a fever"),
        ({"prompt": "the patient has", "completion": "a fever"}, "a fever"),
        ({"text": "the patient has a fever"}, "patient has a fever </s>"),
    ],
)
def test_each_form_of_row_gives_its_trained_tokens(tmp_path, tokenizer, write, row, learned):
    suffix = {_lines: "jsonl", _array: "json", _parquet: "parquet"}[write]
    documents = examples.read(_write(tmp_path / f"rows.{suffix}", write([row])), "config.task")
    assert _learned(documents, tokenizer, chat=True) == [learned]


def test_text_is_a_document_a_file_and_a_saved_folder_its_rows(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(PAIRS).save_to_disk(tmp_path / "saved")
    assert _learned(examples.read(str(tmp_path / "saved"), "config.task"), tokenizer)[0] == ANSWERS[0]
    _write(tmp_path / "note.txt.gz", gzip.compress(b"\xef\xbb\xbfthe patient\r\nhas"))
    (one,) = examples.read(str(tmp_path / "note.txt.gz"), "config.task")
    assert one.text == "the patient\nhas"
    assert _learned([one], tokenizer) == ["patient has </s>"]


def test_nothing_is_read_beyond_the_rows_that_are_asked_for(tmp_path):
    lines = _write(tmp_path / "rows.jsonl", _lines(PAIRS) + b"{\n")
    table = _write(tmp_path / "rows.csv", _table(PAIRS) + b"one cell\n")
    for path in (lines, table):
        rows = read_rows(path, "config.task", "")
        assert [next(rows).values["id"], next(rows).values["id"]] == ["n1", "n2"]
        with pytest.raises(BadInput):
            next(rows)


def test_nulls_and_nan_are_missing(tmp_path):
    path = _write(tmp_path / "rows.json", b'[{"a": NaN, "b": null, "c": 1.5}]')
    assert next(read_rows(path, "f", "")).values == {"a": None, "b": None, "c": 1.5}
    path = _write(tmp_path / "rows.parquet", _parquet([{"a": float("nan"), "b": None, "c": 1.5}]))
    assert next(read_rows(path, "f", "")).values == {"a": None, "b": None, "c": 1.5}


def _damaged_page(content):
    """A Parquet file whose footer is whole and whose pages are not."""
    return content[:4] + b"\xff" * 60 + content[64:]


_LATIN = f"prompt,completion\n{SECRET} caf\u00e9,x\n".encode("latin-1")
_HEAD = f"prompt,completion\n{SECRET},x\n".encode()
_ROW = {"prompt": SECRET, "completion": "x"}
MALFORMED = {
    "missing.csv": (None, "config.task: .*missing.csv is not a file; give JSON lines"),
    "empty.csv": (b"", "empty.csv: is empty; give"),
    "header.csv": (b"prompt,completion\n", "header.csv: is empty"),
    "empty.json": (b"[]", "empty.json: is empty"),
    "empty.parquet": (_parquet([_ROW][:0]), "empty.parquet: is empty"),
    "nothing.parquet": (b"", "nothing.parquet: is empty"),
    "blank.jsonl.gz": (gzip.compress(b"\n \n"), "blank.jsonl.gz: is empty"),
    "long.csv": (_HEAD + f"{SECRET},x,y\n".encode(), "long.csv row 2: has 3 cells, but there are 2 columns"),
    "short.tsv": (b"prompt\tcompletion\n" + SECRET.encode(), "short.tsv row 1: has 1 cells, but there are 2"),
    "twice.csv": (b"prompt,prompt\na,b\n", "twice.csv: has the column 'prompt' twice"),
    "quote.csv": (_HEAD + f'"{SECRET},x\n'.encode(), "quote.csv: is not a table after row 1; close each quote"),
    "semicolons.csv": (b"prompt;completion\na;b\n", "semicolons.csv: its first line has no ',', but ';'"),
    "latin.csv": (_LATIN, "latin.csv: is not UTF-8 after row 0; save it as UTF-8"),
    "utf16.csv": (_HEAD.decode().encode("utf-16"), "utf16.csv: is UTF-16; save it as UTF-8"),
    "zeros.csv": (_HEAD.decode().encode("utf-16-le"), "zeros.csv: is not UTF-8 text"),
    "headless.csv": (f"The {SECRET} came in with a cough and went.,She rests.\nx,y\n".encode(),
                     r"headless.csv row 1: has none of .* its columns are \(no plain name\)"),
    "latin.jsonl": (_lines([_ROW]) + f'{{"text": "{SECRET} \u00e9"}}'.encode("latin-1"), "latin.jsonl:2: is not UTF-8"),
    "half.jsonl": (_lines([{"text": SECRET + "\ud83d"}]), "half.jsonl:1: holds half of a surrogate pair"),
    "half.json": (_array([{"text": SECRET + "\udc00"}]), "half.json row 1: holds half of a surrogate pair"),
    "syntax.jsonl": (_lines([_ROW]) + f'{{"text": {SECRET}}}'.encode(), "syntax.jsonl:2: is not valid JSON"),
    "nested.json": (json.dumps([[_ROW]]).encode(), "nested.json row 1: is not a JSON object"),
    "deep.json": (b"[" * 100_000, "deep.json: is not valid JSON"),
    "cut.json": (_array([_ROW])[:-4], "cut.json: is not valid JSON"),
    "object.json": (json.dumps({"rows": [_ROW]}, indent=1).encode(), "object.json:1: is not a complete JSON object"),
    "oneline.json": (json.dumps({"rows": [_ROW]}).encode(), "oneline.json:1: has none of .* its columns are 'rows'"),
    "array.jsonl": (_array([_ROW]), "array.jsonl:1: is not a JSON object; .* end the name of a file with"),
    "words.json": (SECRET.encode(), "words.json: holds neither an array nor JSON lines"),
    "lines.csv": (_lines([_ROW]), "lines.csv: is JSON; end its name in .json or .jsonl"),
    "table.parquet": (_HEAD, "table.parquet: is not a complete Parquet file"),
    "columns.csv": (_parquet([_ROW]), "columns.csv: is a Parquet file; end its name in .parquet"),
    "cut.parquet": (_parquet([_ROW])[:-30], "cut.parquet: is not a complete Parquet file"),
    "damaged.parquet": (_damaged_page(_parquet([_ROW] * 9)), "damaged.parquet: is not a complete Parquet file"),
    "book.csv": (b"PK\x03\x04 and more", "book.csv: is a workbook or a zip file; save its rows as CSV"),
    "cut.csv.gz": (gzip.compress(_HEAD * 999)[:-20], "cut.csv.gz: ends early or is not a gzip file"),
    "damaged.jsonl.gz": (gzip.compress(_lines([_ROW]))[:12] + b"\xff" * 40, "damaged.jsonl.gz: ends early or is not"),
    "plain.csv.gz": (_HEAD, "plain.csv.gz: ends early or is not a gzip file"),
    "packed.csv": (gzip.compress(_HEAD), "packed.csv: is a gzip file; end its name in .gz"),
    "unknown.dat": (_HEAD, "unknown.dat: is not of a recognized format; end its name in .jsonl"),
    "latin.txt": (f"{SECRET} \u00e9".encode("latin-1"), "latin.txt: is not UTF-8 at byte"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_one_clear_line(tmp_path, name):
    content, message = MALFORMED[name]
    if content is not None:
        _write(tmp_path / name, content)
    with pytest.raises(BadInput, match=message) as refusal:
        read_documents(str(tmp_path / name), "config.task", fields="")
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)
