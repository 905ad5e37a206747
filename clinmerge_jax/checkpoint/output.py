"""Output folders that appear whole or not at all.

Work happens in a hidden folder beside the target, which a last rename puts in place. A killed run
leaves that hidden folder; the next run with the same identity goes on in it, any other starts afresh.
"""

import enum
import fcntl
import json
import os
import pathlib
import shutil
from typing import Any, Callable, Mapping

from absl import logging

from clinmerge_jax.errors import BadInput

PROVENANCE_FILE = "provenance.json"
_IDENTITY_FILE = "identity.json"
_LOCK_FILE = "lock"
_COMMITTED_LAST = ("model.safetensors.index.json", "config.json")


class OutputState(enum.Enum):
    """What `OutputFolder.open` found."""

    FINISHED = "finished"  # the target holds this very result
    RESUMED = "resumed"  # an interrupted run of the same identity is continued
    FRESH = "fresh"


class OutputFolder:
    """The one writer of a result folder.

    Args:
      target: the folder to make.
      identity: what determines the result (recipe, inputs); JSON-serialisable. Two runs with equal
        identities are taken to give the same result.
      overwrite: whether a finished result of ours may be replaced.
      same_result: tells from a finished folder's provenance and this identity whether they are the
        same; by default they are if the identities are equal.
    """

    def __init__(
        self,
        target: pathlib.Path | str,
        identity: Mapping[str, Any],
        overwrite: bool = False,
        same_result: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None = None,
    ):
        if not str(target).strip():
            raise BadInput("config.output: is empty; give the folder to write")
        self.target = pathlib.Path(os.path.abspath(pathlib.Path(target).expanduser()))
        self.identity = json.loads(json.dumps(identity))
        self.overwrite = overwrite
        self._same_result = same_result or (lambda recorded, identity: recorded.get("identity") == identity)
        self.partial = self.target.with_name(f".{self.target.name}.partial")
        self._lock: int | None = None
        self._made_parents: list[pathlib.Path] = []

    def finished(self) -> dict[str, Any] | None:
        """The provenance of the finished result in the target, None where there is none.

        Raises:
          BadInput: the target exists and is no result of ours, or holds another one and
            `overwrite` is off.
        """
        if not self.target.exists():
            return None
        path = self.target / PROVENANCE_FILE
        if not path.is_file():
            raise BadInput(f"config.output: {self.target} exists and is no result of this program; name another folder")
        if self.overwrite:
            return None
        provenance = json.loads(path.read_bytes())
        if self._same_result(provenance, self.identity):
            return provenance
        raise BadInput(
            f"config.output: {self.target} holds a result of another configuration or other inputs;"
            " name another folder, or replace it with --config.overwrite=True"
        )

    def open(self) -> OutputState:
        """Looks at the target and prepares the hidden folder.

        1. A finished target of this identity: FINISHED, nothing is prepared.
        2. A hidden folder of this identity: RESUMED, what it holds stays.
        3. Otherwise: FRESH, a hidden folder of another identity is removed.

        Raises:
          BadInput: as `finished`; or another process is writing there.
        """
        if self.finished() is not None:
            return OutputState.FINISHED
        for parent in reversed(self.target.parents):
            if not parent.exists():
                try:
                    parent.mkdir()
                except OSError as error:
                    raise BadInput(f"config.output: cannot make {parent} ({error.strerror}); name another folder") from error
                self._made_parents.append(parent)
        try:
            self.partial.mkdir(exist_ok=True)
            self._lock = os.open(self.partial / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise BadInput(f"config.output: cannot write {self.partial} ({error.strerror}); name another folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise BadInput(f"config.output: another process is writing {self.target}; wait for it to end") from error
        identity = self.partial / _IDENTITY_FILE
        if identity.is_file() and json.loads(identity.read_bytes()) == self.identity:
            logging.info("continuing the interrupted run in %s", self.partial)
            return OutputState.RESUMED
        for path in self.partial.iterdir():
            if path.name != _LOCK_FILE:
                _remove(path)
        self.write_text(_IDENTITY_FILE, json.dumps(self.identity))
        return OutputState.FRESH

    def path(self, name: str) -> pathlib.Path:
        """Where a file of the result lies while the result is being made."""
        return self.partial / name

    def write_text(self, name: str, text: str) -> None:
        """Writes one small file, whole or not at all."""
        write_atomically(self.path(name), text.encode())

    def copy(self, source: pathlib.Path) -> None:
        """Copies one small file into the result under its own name."""
        write_atomically(self.path(source.name), source.read_bytes())

    def commit(self, provenance: Mapping[str, Any]) -> None:
        """Writes the provenance, makes everything durable and puts the folder in place.

        The index and config.json are synced last, so that even a machine that loses power between
        here and the rename leaves no weights that look complete and are not.
        """
        self.write_text(PROVENANCE_FILE, json.dumps({**provenance, "identity": self.identity}, indent=1) + "\n")
        (self.partial / _IDENTITY_FILE).unlink()
        (self.partial / _LOCK_FILE).unlink()
        for path in sorted(self.partial.rglob("*"), key=lambda path: path.name in _COMMITTED_LAST):
            sync(path)
        sync(self.partial)
        replaced = self.target.with_name(f".{self.target.name}.replaced")
        if self.target.exists():
            _remove(replaced)
            self.target.rename(replaced)
        self.partial.rename(self.target)
        sync(self.target.parent)
        _remove(replaced)
        self.close()

    def discard(self) -> None:
        """Removes what was begun, and the parent folders that were made for it.

        Without the lock there is nothing of ours to remove: the hidden folder is another process's.
        """
        if self._lock is not None:
            _remove(self.partial)
        for parent in reversed(self._made_parents):
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        self.close()

    def close(self) -> None:
        """Lets go of the lock; the hidden folder, if it is still there, can be resumed."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, BadInput):
            self.discard()
        else:
            self.close()


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it and renames it."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync(path: pathlib.Path) -> None:
    """Makes a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
