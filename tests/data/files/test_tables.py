"""CSV, Parquet and saved folders as rows."""

import datetime
import decimal
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.data.files.tables import delimited_rows
from clinmerge_jax.errors import BadInput


def test_quoted_cells_hold_delimiters_quotes_and_line_ends_and_blank_lines_are_no_rows():
    content = b'\xef\xbb\xbf,note,n\r\n0,"one, ""two""\r\nthree",\r\n\r\n1,x,4\r\n'
    assert list(delimited_rows(io.BytesIO(content), "a.csv", ",")) == [
        {"": "0", "note": 'one, "two"\nthree', "n": ""},
        {"": "1", "note": "x", "n": "4"},
    ]


def test_parquet_gives_values_as_json_has_them(tmp_path):
    row = {
        "day": datetime.date(2026, 1, 2),
        "at": datetime.datetime(2026, 1, 2, 3, 4),
        "dose": decimal.Decimal("2.50"),
        "note": "caf\u00e9".encode(),
        "scan": b"\xff\xfe",
        "turns": [{"role": "user", "name": None, "n": [1, None]}],
        "seen": True,
    }
    table = pa.Table.from_pylist([row] * 600)
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(read_rows(str(tmp_path / "a.parquet"), "f", ""))
    assert len(rows) == 600 and rows[-1].name.endswith("a.parquet row 600")
    assert rows[-1].values == row | {
        "day": "2026-01-02", "at": "2026-01-02T03:04:00", "dose": "2.50", "note": "caf\u00e9",
    }  # fmt: skip


def test_parquet_with_a_column_twice_or_text_that_is_none_is_refused(tmp_path):
    place = tmp_path / "a.parquet"
    pq.write_table(pa.table([["x"], ["y"]], names=["note", "note"]), place)
    with pytest.raises(BadInput, match="a.parquet: has the column 'note' twice"):
        list(read_rows(str(place), "f", ""))
    broken = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table([broken], names=["note"]), place)
    with pytest.raises(BadInput, match="a.parquet row 1 or one of the 256 from there on: holds text that is not UTF-8"):
        list(read_rows(str(place), "f", ""))


def test_saved_folders_are_read_by_split_where_the_library_is_there(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "b"}, {"text": "a"}, {"text": "c"}]).select([1, 0, 2])
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "saved")
    saved, train = str(tmp_path / "saved"), str(tmp_path / "saved" / "train")
    assert [row.values["text"] for row in read_rows(train, "f", "")] == ["a", "b", "c"]
    with pytest.raises(BadInput, match="f: .*saved holds the splits 'test', 'train'; name the folder of one"):
        list(read_rows(saved, "f", ""))
    (tmp_path / "saved" / "test" / "state.json").write_text("{")
    with pytest.raises(BadInput, match="test: is not a complete folder of Hugging Face's datasets"):
        list(read_rows(str(tmp_path / "saved" / "test"), "f", ""))
    for shard in (tmp_path / "saved" / "train").glob("*.arrow"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(BadInput, match="train: is not a complete folder of Hugging Face's datasets"):
        list(read_rows(train, "f", ""))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="f: .*train was saved by Hugging Face's datasets, which is not installed"):
        list(read_rows(train, "f", ""))
