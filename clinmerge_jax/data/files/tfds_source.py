"""Read data sets that TensorFlow Datasets prepared as array records, without TensorFlow itself."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clinmerge_jax.errors import BadInput

PREFIX = "tfds:"

_NAMED = re.compile(r"tfds:(?P<name>[\w./-]+(?::\d+\.\d+\.\d+)?)(?::(?P<split>.+))?", re.ASCII)


def read_tfds(source: str, field: str, data_dir: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of each row for messages, and the row in JSON types.

    Bytes become text, and arrays become lists. A sequence of features, which the library gives as a dict of lists,
    becomes a list of dicts. Nothing is downloaded.

    Args:
      source: `tfds:NAME` or `tfds:NAME:SPLIT`; the name may have a config and a version (`name/config:1.0.0`), the
        split a slice (`train[:10%]`).
      field: the config field that holds the source, for messages.
      data_dir: the folder of prepared data sets; None for the library's default folder.

    Raises:
      BadInput: there is no such data set or split, it has not been prepared, or a row has bytes that are not UTF-8.
    """
    named = _NAMED.fullmatch(source)
    if named is None:
        raise BadInput(f"{field}: {source!r} does not have the form tfds:NAME or tfds:NAME:SPLIT; give such a name")
    import tensorflow_datasets as tfds  # slow to import

    try:
        rows = tfds.data_source(
            named["name"], split=named["split"] or "train", data_dir=data_dir, download=False,
            builder_kwargs={"file_format": "array_record"},
        )  # fmt: skip
    except (ValueError, KeyError, AssertionError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"{field}: {source} cannot be read from {data_dir or 'the default data_dir'} ({reason}); name a split that"
            " it has, or prepare it there with file_format='array_record'"
        ) from error
    for index in range(len(rows)):
        name = f"{source} row {index}"
        try:
            yield name, {key: _plain(value) for key, value in rows[index].items()}
        except UnicodeDecodeError as error:
            raise BadInput(f"{name}: has bytes that are not UTF-8; leave that feature out") from error


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode("utf-8")
        case np.ndarray():
            return _plain(value.tolist())
        case np.generic():
            return _plain(value.item())
        case list():
            return [_plain(one) for one in value]
        case Mapping():
            fields = {key: _plain(field) for key, field in value.items()}
            if not all(isinstance(field, list) for field in fields.values()):
                return fields
            return [dict(zip(fields, row)) for row in zip(*fields.values())]
    return value
