"""Prepare data sets as records, once; prepare them again when the published files or `builder.VERSION` change."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from clinmerge_jax.data.sets import files
from clinmerge_jax.data.sets.builder import VERSION, Prepared, read_records
from clinmerge_jax.data.sets.data_set import DataSet, Part, Row
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.table import SETS
from clinmerge_jax.errors import BadInput

_RECORD = "sources.json"
_LOCK = ".lock"

_Located = Mapping[str, tuple[Part, tuple[pathlib.Path, ...]]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Description of a prepared set.

    Attributes:
      folder: the folder of the records.
      sha256: the digest of each published file, by its path in data_dir.
      left_out: the number of rows left out, by split.
    """

    folder: pathlib.Path
    sha256: dict[str, str]
    left_out: dict[str, int]


def read(dataset: str, split: str, source: Source, limit: int = 0) -> list[Row]:
    """The rows of a split, in the order of the published file.

    Args:
      dataset: the name of a set in the table.
      split: the name of a split.
      source: the folders to read from.
      limit: the maximum number of rows, from the start; 0 for all. Without a limit all rows are held in memory.

    Raises:
      BadInput: there is no such set or split, its files are missing or not the known ones, or a row is malformed.
    """
    data_set = known(dataset)
    if split not in data_set.splits:
        raise BadInput(f"split: {dataset} has no {split!r}; choose from {', '.join(data_set.splits)}")
    summary = prepare(dataset, source)
    if split not in summary.left_out:
        raise files.missing(data_set, split, source)
    return read_records(summary.folder, split, limit)


def known(dataset: str) -> DataSet:
    """The set's entry in the table.

    Raises:
      BadInput: there is none.
    """
    if dataset not in SETS:
        raise BadInput(f"dataset: {dataset!r} is unknown; choose from {', '.join(SETS)}")
    return SETS[dataset]


def prepare(dataset: str, source: Source) -> Summary:
    """Prepares the records of all splits whose files exist, unless they are up to date.

    The records are in `prepared` below data_dir, or in the cache if one is given. Only their owner can read them.

    Raises:
      BadInput: as `read` does, or the folder cannot be written.
    """
    data_set = known(dataset)
    located = files.locate(data_set, source)
    if not located:
        raise files.missing(data_set, list(data_set.splits)[-1], source)
    stamps = {
        split: {_name(path, source): files.stamp(path) for path in paths} for split, (_, paths) in located.items()
    }
    root = pathlib.Path(source.cache).expanduser() if source.cache else source.folder / "prepared"
    folder = root / dataset / VERSION
    try:
        record = _read_record(folder)
        if record.get("stamps") != stamps:
            with _locked(root, dataset):
                record = _read_record(folder)
                if record.get("stamps") != stamps:
                    record = _make(data_set, located, source, root, stamps, record)
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(root)):
            raise
        raise BadInput(
            f"config.data_dir: prepared records cannot be stored in {root} ({error.strerror}); name a folder for them"
            " with config.cache"
        ) from error
    return Summary(folder, record["sha256"], record["left_out"])


def _make(
    data_set: DataSet,
    located: _Located,
    source: Source,
    root: pathlib.Path,
    stamps: Mapping[str, Any],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Verifies the files, prepares the records if the files' content changed, and writes `sources.json`."""
    sha256 = {}
    for part, paths in located.values():
        for file, path in zip(part.files, paths):
            name = _name(path, source)
            sha256[name] = sha256.get(name) or files.digest(path)
            files.check(file, path, sha256[name], data_set)
    folder = root / data_set.name / VERSION
    left_out = record.get("left_out", {})
    if record.get("sha256") != sha256 or set(left_out) != set(located):
        for old in folder.parent.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        builder = Prepared(data_set, located, root)
        builder.write()
        left_out = builder.left_out
        for path in folder.iterdir():
            path.chmod(0o600)
        folder.chmod(0o700)
        for split, number in left_out.items():
            if number:
                logging.info("%s: %s leaves out %d: %s", data_set.name, split, number, data_set.left_out)
    made = {"sha256": sha256, "left_out": left_out, "stamps": stamps}
    part_file = folder / f"{_RECORD}.part"
    part_file.touch(mode=0o600)
    part_file.write_text(json.dumps(made, indent=1), encoding="utf-8")
    part_file.replace(folder / _RECORD)
    return made


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _name(path: pathlib.Path, source: Source) -> str:
    return path.relative_to(source.folder).as_posix()


@contextlib.contextmanager
def _locked(root: pathlib.Path, dataset: str) -> Iterator[None]:
    """Creates the set's folder, accessible to its owner only, and holds an exclusive lock on it."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = root / dataset
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
