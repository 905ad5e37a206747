"""Files of rows as people have them: JSON lines, JSON arrays, CSV, TSV, Parquet, folders of Hugging Face `datasets`.

Each but the last may be gzipped. Text is UTF-8, with or without a byte-order mark, with either kind of line end.
Messages name rows by file and number and never quote them.
"""

import csv
import datetime
import decimal
import gzip
import importlib.util
import io
import json
import math
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from clinmerge_jax.checkpoint.safetensors import parse_json
from clinmerge_jax.errors import BadInput

Row = tuple[str, dict[str, Any]]  # the name that stands for it, and its columns

FORMATS = "JSON lines, a JSON array, CSV, TSV or Parquet (each also .gz), or a folder saved by Hugging Face datasets"

_LINES, _JSON, _CSV, _TSV, _PARQUET = "JSON lines", "JSON", "CSV", "TSV", "Parquet"
_SUFFIXES = {
    ".jsonl": _LINES, ".ndjson": _LINES, ".json": _JSON, ".csv": _CSV, ".tsv": _TSV, ".parquet": _PARQUET,
}  # fmt: skip
_SAVED = ("state.json", "dataset_dict.json")  # what `datasets.save_to_disk` leaves: of one set, of one with splits
_LONGEST_CELL = 1 << 30  # characters of a CSV cell; notes are longer than the csv module allows by default
_BATCH = 256  # rows of a Parquet file that are in memory at a time


def read_rows(path: str, field: str) -> Iterator[Row]:
    """Yields the rows of a file or folder, each with the name that stands for it.

    The name is `FILE:LINE` of JSON lines and `FILE row N` otherwise, both from 1. Columns without a value (null, NaN)
    are left out of a row; cells of CSV and TSV are text.

    Args:
      path: the file; its suffix says what it is, and where it has no known one its first characters do.
      field: the config field that gave it, for messages.

    Raises:
      BadInput: there is no such file, it has no rows, or it is not what its suffix says.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        rows = _saved(place, field)
    elif not place.is_file():
        raise BadInput(f"{field}: {path} is not a file; give {FORMATS}")
    else:
        rows = _rows(path, place, field)
    found = False
    for name, row in rows:
        found = True
        check_unicode(row, name)
        yield name, {key: value for key, value in row.items() if not _is_missing(value)}
    if not found:
        raise BadInput(f"{path}: is empty; give {FORMATS}")


def holds_rows(path: str) -> bool:
    """Whether a file's or folder's name says that `read_rows` reads it."""
    place = pathlib.Path(path).expanduser()
    return _kind(place) is not None or any((place / name).is_file() for name in _SAVED)


def _kind(place: pathlib.Path) -> str | None:
    """What a file is by its suffix, behind which there may be .gz; None where that says nothing."""
    suffixes = [suffix.lower() for suffix in place.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def check_unicode(row: Any, name: str) -> None:
    """Refuses what a file gave that is no Unicode text.

    Raises:
      BadInput: naming the row.
    """
    if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False, default=str)):
        raise BadInput(f"{name}: holds half of a surrogate pair, which is no Unicode text; write the file as UTF-8")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rows(path: str, place: pathlib.Path, field: str) -> Iterator[Row]:
    try:
        with place.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        if place.suffix.lower() == ".gz" and not packed and place.stat().st_size:
            raise BadInput(f"{path}: is no gzip file; take .gz off its name, or pack it again")
        with gzip.open(place) if packed else place.open("rb") as file:
            yield from _opened(path, file, _kind(place) or _guessed(path, file, field))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path}: ends early or is damaged; pack or fetch it again") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8; save it as UTF-8") from error


def _opened(path: str, file: BinaryIO, kind: str) -> Iterator[Row]:
    if kind == _PARQUET:
        yield from _parquet(path, file)
        return
    if file.peek(4)[:4] == b"PAR1":
        raise BadInput(f"{path}: is a Parquet file; name it .parquet")
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if kind in (_CSV, _TSV) else "\n") as text:
        if kind in (_CSV, _TSV):
            yield from _table(path, text, "\t" if kind == _TSV else ",")
        elif kind == _JSON and _first_character(text) == "[":
            yield from _array(path, text)
        else:
            yield from _lines(path, text)


def _guessed(path: str, file: BinaryIO, field: str) -> str:
    """What a file without a known suffix is, by how it begins."""
    start = file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    for begins, kind in ((b"PAR1", _PARQUET), (b"{", _LINES), (b"[", _JSON)):
        if start.startswith(begins):
            return kind
    if not start:
        raise BadInput(f"{path}: is empty; give {FORMATS}")
    raise BadInput(f"{field}: what {path} is cannot be told; name it .csv, .tsv, .jsonl, .json or .parquet as it is")


def _first_character(text: io.TextIOWrapper) -> str:
    """The first that is no white space; the file is then at its start again."""
    while (character := text.read(1)).isspace():
        pass
    text.seek(0)
    return character


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[Row]:
    for number, line in enumerate(text, start=1):
        if number == 1 and line.strip() == "{":
            raise BadInput(f"{path}: is one JSON object over several lines; give an object a line, or an array of them")
        if line.strip():
            yield _object(parse_json(line, f"{path}:{number}"), f"{path}:{number}")


def _array(path: str, text: io.TextIOWrapper) -> Iterator[Row]:
    for number, row in enumerate(parse_json(text.read(), path), start=1):
        yield _object(row, f"{path} row {number}")


def _object(row: Any, name: str) -> Row:
    if not isinstance(row, dict):
        raise BadInput(f"{name}: is no JSON object; give an object with named fields for every row")
    return name, row


def _table(path: str, text: io.TextIOWrapper, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    number = 0
    try:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        columns = next(reader, [])
        twice = [column for column in columns if columns.count(column) > 1]
        if twice:
            raise BadInput(f"{path}: has the column {twice[0]!r} twice; give each a name of its own")
        if columns and not all(column.strip() for column in columns):
            raise BadInput(f"{path}: has a column without a name; its first line must name them all")
        other = next((mark for mark in ",;\t|" if len(columns) == 1 and mark in columns[0]), None)
        if other is not None:
            raise BadInput(
                f"{path}: its first line has cells between {other!r}, and {delimiter!r} belongs there; save it so, or"
                " name a file with tabs .tsv"
            )
        for row in reader:
            if not row:  # a blank line
                continue
            number += 1
            name = f"{path} row {number}"
            if len(row) != len(columns):
                raise BadInput(
                    f"{name}: has {len(row)} cells, and the first line names {len(columns)} columns; put cells with a"
                    f" {'tab' if delimiter == chr(9) else 'comma'} or a line break in them into double quotes"
                )
            yield name, dict(zip(columns, (cell.replace("\r\n", "\n") for cell in row)))
    except csv.Error as error:
        raise BadInput(f"{path}: is no table after row {number} ({error}); save it again as CSV") from error


def _parquet(path: str, file: BinaryIO) -> Iterator[Row]:
    number = 0
    try:
        source = pyarrow.parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        for batch in source.iter_batches(_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        raise BadInput(f"{path}: is no readable Parquet file after row {number}; write or fetch it again") from error


def _saved(place: pathlib.Path, field: str) -> Iterator[Row]:
    """A folder of `datasets.save_to_disk`."""
    if not any((place / name).is_file() for name in _SAVED):
        raise BadInput(f"{field}: the folder {place} holds no data set that was saved by Hugging Face datasets")
    if importlib.util.find_spec("datasets") is None:
        raise BadInput(f"{field}: {place} needs the library that saved it; pip install datasets")
    import datasets  # slow to import

    if (place / "dataset_dict.json").is_file():
        splits = parse_json((place / "dataset_dict.json").read_bytes(), place / "dataset_dict.json").get("splits", [])
        raise BadInput(f"{field}: {place} has several splits; name one of them, such as {place / str(splits[0])}")
    try:
        rows = datasets.load_from_disk(str(place))
        for number, row in enumerate(rows, start=1):
            yield f"{place} row {number}", row
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise BadInput(f"{place}: is no readable data set; save it again with save_to_disk") from error


def as_text(value: Any) -> str | None:
    """Text, a number or a date as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, decimal.Decimal, datetime.date)):
        return None
    return str(value)


def shown_columns(row: Mapping[str, Any]) -> str:
    """The columns of a row, for messages."""
    return ", ".join(map(repr, row)) or "none"
