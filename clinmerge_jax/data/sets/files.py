"""Locate, verify and download the published files of data sets."""

import dataclasses
import hashlib
import http.client
import os
import pathlib
import urllib.request
from collections.abc import Iterator

from absl import logging

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.data.sets.data_set import DataSet, File, Part
from clinmerge_jax.errors import BadInput

_SECONDS = 60
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """The folders from which data sets are read.

    Attributes:
      data_dir: the user's folder of published files; prepared records go to its folder `prepared`.
      cache: another folder for prepared records, for when data_dir is not writable; "" for none.
      offline: whether downloads are forbidden.
    """

    data_dir: str
    cache: str = ""
    offline: bool = True

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the published files."""
        return pathlib.Path(self.data_dir).expanduser()


def locate(data_set: DataSet, source: Source) -> dict[str, tuple[Part, tuple[pathlib.Path, ...]]]:
    """Finds the layout and the paths of each split whose files exist, after downloading what may be downloaded.

    Raises:
      BadInput: there is no such folder, or a download fails.
    """
    if not source.data_dir or not source.folder.is_dir():
        raise BadInput(
            f"config.data_dir: {source.data_dir!r} is not a folder; give the one that holds the published files"
        )
    found = {}
    for split, parts in data_set.splits.items():
        for part in parts:
            paths = [_path(file, source) for file in part.files]
            if all(paths):
                found[split] = part, tuple(paths)
                break
        else:
            fetched = [part for part in parts if all(file.url or _path(file, source) for file in part.files)]
            if fetched and not source.offline:
                paths = [_path(file, source) or _fetch(file, data_set, source) for file in fetched[0].files]
                found[split] = fetched[0], tuple(paths)
    return found


def missing(data_set: DataSet, split: str, source: Source) -> BadInput:
    """The error for a split whose files are missing; it names the files, their source and their licence."""
    fewest = min(len(part.files) for part in data_set.splits[split])  # leaves out layouts with optional files
    layouts = [
        " and ".join(file.paths[0] for file in part.files)
        for part in data_set.splits[split]
        if len(part.files) == fewest
    ]
    fetch = any(all(file.url for file in part.files) for part in data_set.splits[split])
    return BadInput(
        f"config.data_dir: {source.data_dir} lacks {' or '.join(layouts)}, the split {split} of {data_set.name}; get it"
        f" from {data_set.home} ({data_set.licence})"
        + (", or run with config.offline=False to have it fetched" if fetch else "")
    )


def stamp(path: pathlib.Path) -> list[int]:
    """A stamp that changes when files are written: number of files, total bytes, sum of modification times in ns."""
    stats = [one.stat() for one in _files(path)]
    return [len(stats), sum(one.st_size for one in stats), sum(one.st_mtime_ns for one in stats)]


def digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file, or for a folder the SHA-256 of its files' names and SHA-256s."""
    if path.is_file():
        return sha256(path)
    lines = (f"{one.relative_to(path).as_posix()}\0{sha256(one)}\n" for one in _files(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check(file: File, path: pathlib.Path, found: str, data_set: DataSet) -> None:
    """Refuses a file whose digest differs from the known one.

    Raises:
      BadInput: the digest differs.
    """
    if file.sha256 and found != file.sha256:
        raise BadInput(
            f"{path}: is not the expected file (sha256 {found[:12]}, not {file.sha256[:12]}); get it again from"
            f" {file.url or data_set.home} ({data_set.licence})"
        )


def _path(file: File, source: Source) -> pathlib.Path | None:
    return next((path for one in file.paths if (path := source.folder / one).exists()), None)


def _files(path: pathlib.Path) -> Iterator[pathlib.Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (pathlib.Path(folder, name) for name in sorted(names))


def _fetch(file: File, data_set: DataSet, source: Source) -> pathlib.Path:
    path = source.folder / file.paths[0]
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    logging.info("%s: fetching %s (%s) into %s", data_set.name, file.url, data_set.licence, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(file.url, timeout=_SECONDS) as answer, part.open("wb") as target:
            while chunk := answer.read(_CHUNK):
                target.write(chunk)
        check(file, pathlib.Path(file.url), sha256(part), data_set)
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(
            f"config.data_dir: {path} cannot be fetched from {file.url} ({type(error).__name__}: {error}); check the"
            " network, or put the file there yourself"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path
