"""Read rows of CSV, TSV and Parquet files, and of folders saved by Hugging Face's `datasets`."""

import contextlib
import csv
import datetime
import decimal
import io
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from clinmerge_jax.data.files.fields import shown
from clinmerge_jax.errors import BadInput

_LONGEST_CELL = 1 << 30  # characters; clinical notes exceed the csv module's default limit
_ROWS_AT_ONCE = 256  # batch size of Parquet and Arrow readers
_SAVED, _SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"  # as `datasets.save_to_disk` writes them


def delimited_rows(file: BinaryIO, path: str, delimiter: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a table whose first line names the columns. Values are text; line ends in them become "\\n".

    Args:
      file: bytes in UTF-8, with or without a byte-order mark.
      path: for messages.
      delimiter: separates cells; a cell in double quotes may contain it, line ends and doubled quotes.

    Raises:
      BadInput: a column name occurs twice, a row has more or fewer cells than there are columns, a quote is not closed,
        or the text is not UTF-8.
    """
    csv.field_size_limit(_LONGEST_CELL)
    number = 0
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            cells = (row for row in reader if row)
            columns = next(cells, [])
            _check_columns(columns, path)
            others = [mark for mark in ",;\t|" if len(columns) == 1 and mark in columns[0]]
            if others:
                raise BadInput(
                    f"{path}: its first line has no {delimiter!r}, but {others[0]!r}; separate cells by commas in .csv,"
                    " by tabs in .tsv"
                )
            for number, row in enumerate(cells, start=1):
                if len(row) != len(columns):
                    raise BadInput(
                        f"{path} row {number}: has {len(row)} cells, but there are {len(columns)} columns; put cells"
                        " that hold commas, tabs, quotes or line ends in double quotes"
                    )
                yield {column: cell.replace("\r\n", "\n").replace("\r", "\n") for column, cell in zip(columns, row)}
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: is not UTF-8 after row {number}; save it as UTF-8") from error
        except csv.Error as error:
            raise BadInput(
                f"{path}: is not a table after row {number}; close each quote, and double the quotes within a cell"
            ) from error


def parquet_rows(source: str | io.BytesIO, path: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, a few hundred in memory at a time. Nulls and NaN become None.

    Args:
      source: the file's path, or its bytes.
      path: for messages.

    Raises:
      BadInput: it is not a complete Parquet file, a column name occurs twice, or text in it is not UTF-8.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    broken = f"{path}: is not a complete Parquet file; fetch or write it again"
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(broken) from error
    with file:
        _check_columns(file.schema_arrow.names, path)
        batches = file.iter_batches(_ROWS_AT_ONCE)
        with contextlib.closing(batches):
            yield from _arrow_rows(batches, path, broken)


def is_saved(folder: pathlib.Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / _SPLITS).is_file() or all((folder / name).is_file() for name in _SAVED)


def saved_rows(folder: pathlib.Path, path: str, field: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a folder written by `datasets.save_to_disk`, a few hundred in memory at a time.

    Args:
      folder: the folder of one split.
      path: for messages.
      field: the config field that holds the path, for messages.

    Raises:
      BadInput: the library is not installed, the folder holds several splits, or it cannot be read.
    """
    if (folder / _SPLITS).is_file():
        splits = sorted(one.parent.name for one in folder.glob(f"*/{_SAVED[0]}"))
        raise BadInput(f"{field}: {path} holds the splits {shown(splits)}; name the folder of one of them")
    try:
        import datasets  # optional, and slow to import
    except ImportError as error:
        raise BadInput(
            f"{field}: {path} was saved by Hugging Face's datasets, which is not installed; install datasets, or save"
            " the rows as Parquet"
        ) from error
    import pyarrow as pa

    broken = f"{path}: is not a complete folder of Hugging Face's datasets; save it again"
    try:
        rows = datasets.load_from_disk(str(folder)).with_format("arrow")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(broken) from error
    yield from _arrow_rows(rows.iter(_ROWS_AT_ONCE), path, broken)


def _arrow_rows(batches: Iterator[Any], path: str, broken: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    first = 1
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{path} row {first} or one of the {_ROWS_AT_ONCE} from there on: holds text that is not UTF-8; write"
                " it as UTF-8"
            ) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadInput(broken) from error
        for row in rows:
            yield {column: _plain(value) for column, value in row.items()}
        first += len(rows)


def _plain(value: Any) -> Any:
    """Converts an Arrow value to JSON types. Bytes that are not UTF-8, such as images, stay bytes."""
    match value:
        case float() if math.isnan(value):
            return None
        case bytes():
            with contextlib.suppress(UnicodeDecodeError):
                return value.decode("utf-8")
        case decimal.Decimal():
            return str(value)
        case datetime.date() | datetime.time():  # datetime.datetime is a date
            return value.isoformat()
        case list():
            return [_plain(one) for one in value]
        case dict():
            return {key: _plain(one) for key, one in value.items()}
    return value


def _check_columns(columns: Sequence[str], path: str) -> None:
    twice = [column for place, column in enumerate(columns) if column in columns[:place]]
    if twice:
        raise BadInput(f"{path}: has the column {shown(twice[:1])} twice; give each column its own name")
