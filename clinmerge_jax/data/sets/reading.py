"""Read published tables and JSON files row by row. Error messages name rows and never quote their text."""

import csv
import gzip
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.data.files.rows import check_unicode
from clinmerge_jax.errors import BadInput

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_AGAIN = "get the file again from its authors"
_LONGEST_FIELD = 1 << 30  # characters; clinical notes exceed the csv module's default limit


def csv_rows(path: pathlib.Path, columns: Sequence[str], header: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the name of each row of a table for messages, and the row. Line ends within a field become "\\n".

    Args:
      path: a file in UTF-8, with or without a byte order mark; `.gz` is unpacked.
      columns: the required columns.
      header: whether the first line names the columns; otherwise they are `columns`.

    Raises:
      BadInput: a column is missing, a row has too few or too many fields, or the text is not UTF-8.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, fieldnames=None if header else columns, strict=True)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(f"{path}: has no column {missing[0]!r}; {_AGAIN}")
            for number, row in enumerate(reader, start=1):
                name = f"{path.name} row {number}"
                if None in row or None in row.values():
                    raise BadInput(f"{name}: has {'more' if None in row else 'fewer'} fields than columns; {_AGAIN}")
                yield name, {column: _lines(text) for column, text in row.items()}
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: is not UTF-8 after row {number}; {_AGAIN}, or save it as UTF-8") from error
        except csv.Error as error:
            raise BadInput(f"{path}: is not a table after row {number} ({error}); {_AGAIN}") from error
        except (EOFError, gzip.BadGzipFile) as error:
            raise BadInput(f"{path}: ends early or is not a gzip file; {_AGAIN}") from error


def json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of each line of a JSON lines file for messages, and its object.

    Raises:
      BadInput: a line is not a JSON object, or the text is not UTF-8.
    """
    number = 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    name = f"{path.name} line {number}"
                    row = parse_json(line, name)
                    if not isinstance(row, dict):
                        raise BadInput(f"{name}: is not a JSON object; {_AGAIN}")
                    check_unicode(row, name)
                    yield name, row
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: is not UTF-8 after line {number}; {_AGAIN}, or save it as UTF-8") from error


def json_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file that is one JSON object.

    Raises:
      BadInput: the file is not a JSON object, or not UTF-8.
    """
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 at byte {error.start}; {_AGAIN}, or save it as UTF-8") from error
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON; {_AGAIN}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: is not a JSON object; {_AGAIN}")
    check_unicode(content, str(path))
    return content


def xlsx_rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields name and values of each row of a workbook's first sheet, in these columns; empty rows are skipped.

    Raises:
      BadInput: the file is not a workbook, or a column is missing.
    """
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, OSError) as error:
        raise BadInput(f"{path}: is not a .xlsx workbook; {_AGAIN}") from error
    cells = book.worksheets[0].iter_rows(values_only=True, max_col=16)  # some sheets declare thousands of empty columns
    try:
        header = [str(value) for value in next(cells, ())]
        missing = [column for column in columns if column not in header]
        if missing:
            raise BadInput(f"{path}: has no column {missing[0]!r}; {_AGAIN}")
        places = {column: header.index(column) for column in columns}
        for number, row in enumerate(cells, start=1):
            values = {column: "" if row[at] is None else _lines(str(row[at])) for column, at in places.items()}
            if any(values.values()):
                yield f"{path.name} row {number}", values
    finally:
        cells.close()
        book.close()


def filled(row: Mapping[str, Any], key: str, name: str) -> str:
    """The text of a row's field, which must not be blank; its line ends become "\\n".

    Raises:
      BadInput: the field is missing, blank or not text; the message names the row and the field.
    """
    if key not in row:
        raise BadInput(f"{name}: has no {key!r}; {_AGAIN}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise BadInput(f"{name}: {key!r} is empty or not text; {_AGAIN}")
    return _lines(row[key])


def letter(value: Any, options: int, name: str) -> str:
    """Validates an answer and returns its letter.

    Args:
      value: the letter, or its index from 0.
      options: the number of options.
      name: the name of the row, for messages.

    Raises:
      BadInput: there is no such option.
    """
    letters = LETTERS[:options]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < options:
        return letters[value]
    if isinstance(value, str) and len(value) == 1 and value in letters:
        return value
    raise BadInput(f"{name}: the answer is not one of its {options} options; {_AGAIN}")


def _lines(text: str) -> str:
    return re.sub(r"\r\n?", "\n", text)
