"""Read users' files of rows: JSON lines, JSON arrays, CSV, TSV, Parquet and text, each also as .gz."""

import gzip
import io
import json
import math
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.data.files.tables import delimited_rows, is_saved, parquet_rows, saved_rows
from clinmerge_jax.data.files.tfds_source import PREFIX, read_tfds
from clinmerge_jax.errors import BadInput

_KINDS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".tab": "TSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".txt": "text",
}
_BOM = b"\xef\xbb\xbf"
_HEAD = 4096  # bytes inspected to detect the file type
_SIGNATURES = {  # first bytes of files that are not text
    b"PAR1": "is a Parquet file; end its name in .parquet",
    b"\x1f\x8b": "is a gzip file; end its name in .gz, once for each time that it was compressed",
    b"PK\x03\x04": "is a workbook or a zip file; save its rows as CSV",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}


class Row(NamedTuple):
    """One row of a file.

    Attributes:
      name: identifies the row in error messages, which never quote its text.
      number: the line or row number, from 1.
      values: the values by column. Nulls and NaN are None; all values of CSV and TSV are text.
    """

    name: str
    number: int
    values: dict[str, Any]


def read_rows(
    path: str, field: str, mend: str, *, text: Literal["", "document", "lines"] = "", data_dir: str | None = None
) -> Iterator[Row]:
    """Yields the rows of a file, a folder or a prepared data set in order.

    The suffix determines the format: `.jsonl` or `.ndjson` (one object per line); `.json` (an array of objects, or JSON
    lines); `.csv`; `.tsv` or `.tab`; `.parquet` or `.pq`; `.txt`; each optionally followed by `.gz`. For any other
    suffix the content decides. Everything except JSON arrays, text and compressed Parquet is read row by row.

    Args:
      path: a file; a folder written by Hugging Face's `datasets.save_to_disk`; a folder of `.txt` files; `tfds:NAME` or
        `tfds:NAME:SPLIT`.
      field: the config field that holds the path, for messages.
      mend: what to give instead, for messages.
      text: how a `.txt` file is read. "document": one row with the column `text` (required for folders of them).
        "lines": a row with the column `prompt` for each line that is not blank. "": refused.
      data_dir: the folder of prepared data sets for `tfds:`; None for the default folder of TensorFlow Datasets.

    Raises:
      BadInput: there is no such file, it has no rows, or its content contradicts its suffix. The message names the
        file, and the line or row if known, and never quotes text.
    """
    if path.startswith(PREFIX):
        rows = (Row(name, number, values) for number, (name, values) in enumerate(read_tfds(path, field, data_dir), 1))
    else:
        rows = _rows(pathlib.Path(path).expanduser(), path, field, mend, text)
    empty = True
    try:
        for row in rows:
            empty = False
            yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: ends early or is not a gzip file; fetch or write it again") from error
    except OSError as error:
        raise BadInput(
            f"{field}: {path} cannot be read ({error.strerror}); make it readable, or give another file"
        ) from error
    if empty:
        raise BadInput(f"{path}: is empty; {mend}")


def check_unicode(row: Any, name: str) -> None:
    """Refuses JSON text that is not valid Unicode.

    Raises:
      BadInput: the row holds half of a surrogate pair; the message names the row.
    """
    if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
        raise BadInput(f"{name}: holds half of a surrogate pair, which is not valid Unicode; write the file as UTF-8")


def _rows(place: pathlib.Path, path: str, field: str, mend: str, text: str) -> Iterator[Row]:
    if place.is_dir():
        yield from _folder(place, path, field, mend, text)
        return
    if not place.is_file():
        raise BadInput(f"{field}: {path} is not a file; {mend}")
    packed = place.suffix.lower() == ".gz"
    suffix = (place.with_suffix("") if packed else place).suffix.lower()
    with gzip.open(place) if packed else place.open("rb") as file:
        head = file.read(_HEAD)
        if not head.removeprefix(_BOM).strip():
            return
        kind = _kind(path, suffix, head)
        file.seek(0)
        match kind:
            case "JSON lines":
                yield from _json_lines(file, path)
            case "JSON":
                yield from _json_array(file, path)
            case "text":
                yield from _text(file, path, field, mend, text)
            case "Parquet":
                source = io.BytesIO(file.read()) if packed else str(place)
                yield from _numbered(parquet_rows(source, path), path)
            case _:
                yield from _numbered(delimited_rows(file, path, "\t" if kind == "TSV" else ","), path)


def _folder(place: pathlib.Path, path: str, field: str, mend: str, text: str) -> Iterator[Row]:
    if is_saved(place):
        yield from _numbered(saved_rows(place, path, field), path)
        return
    if text != "document":
        raise BadInput(f"{field}: {path} is not a file; {mend}")
    files = sorted(place.glob("*.txt"))
    if not files:
        raise BadInput(f"{field}: the folder {path} has no .txt file; {mend}")
    for number, file in enumerate(files, start=1):
        content = _decoded(file.read_bytes(), str(file))
        yield Row(str(file), number, {"id": file.name, "text": content})


def _kind(path: str, suffix: str, head: bytes) -> str:
    """The format of a file by its suffix, which its first bytes must not contradict; without one, by these bytes."""
    named, start = _KINDS.get(suffix, ""), head.removeprefix(_BOM).lstrip()
    if not named and head.startswith(b"PAR1"):
        return "Parquet"
    if named == "Parquet":
        return named  # its reader refuses other files
    for signature, problem in _SIGNATURES.items():
        if head.startswith(signature):
            raise BadInput(f"{path}: {problem}")
    if b"\0" in head:
        raise BadInput(f"{path}: is not UTF-8 text; save it as UTF-8")
    content = "JSON" if start.startswith(b"[") else "JSON lines" if start.startswith(b"{") else ""
    if named in ("", "JSON"):
        if not content:
            what = "holds neither an array nor JSON lines" if named else "is not of a recognized format"
            raise BadInput(
                f"{path}: {what}; end its name in .jsonl, .json, .csv, .tsv, .parquet or .txt to match its content"
            )
        return content
    if named in ("CSV", "TSV") and content:
        raise BadInput(f"{path}: is JSON; end its name in .json or .jsonl")
    return named


def _json_lines(file: BinaryIO, path: str) -> Iterator[Row]:
    empty = True
    for number, line in enumerate(file, start=1):
        name = f"{path}:{number}"
        content = _decoded(line, name).strip()
        if not content:
            continue
        if empty and content == "{":
            raise BadInput(f"{name}: is not a complete JSON object; give one object per line, or a JSON array of them")
        if empty and content.startswith("["):
            raise BadInput(
                f"{name}: is not a JSON object; give one object per line, or end the name of a file with an array in"
                " .json"
            )
        yield Row(name, number, _json_row(parse_json(content, name), _may_hold_surrogates(content), name))
        empty = False


def _json_array(file: BinaryIO, path: str) -> Iterator[Row]:
    content = _decoded(file.read(), path)
    suspect = _may_hold_surrogates(content)
    for number, row in enumerate(parse_json(content, path), start=1):
        name = f"{path} row {number}"
        yield Row(name, number, _json_row(row, suspect, name))


def _json_row(row: Any, suspect: bool, name: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"{name}: is not a JSON object; give one object per row")
    if suspect:
        check_unicode(row, name)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _may_hold_surrogates(content: str) -> bool:
    """Whether UTF-8 JSON may hold half of a surrogate pair, possible only as an escape. A cheap check for every row."""
    return "\\ud" in content or "\\uD" in content


def _text(file: BinaryIO, path: str, field: str, mend: str, text: str) -> Iterator[Row]:
    if not text:
        raise BadInput(f"{field}: {path} is text without columns; {mend}")
    content = _decoded(file.read(), path)
    if text == "document":
        yield Row(path, 1, {"text": content})
        return
    for number, line in enumerate(content.split("\n"), start=1):  # not splitlines, which also splits at U+2028
        if line.strip():
            yield Row(f"{path}:{number}", number, {"prompt": line})


def _numbered(rows: Iterator[dict[str, Any]], path: str) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        yield Row(f"{path} row {number}", number, values)


def _decoded(content: bytes, name: str) -> str:
    """Decodes UTF-8, drops a byte-order mark, and converts line ends to "\\n"."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
