"""Atomic output folders: a result appears complete or not at all.

Files are written to a hidden folder beside the target, which a final rename puts in place. A killed run leaves the
hidden folder: the next run with the same identity resumes in it, and any other run starts afresh.
"""

import contextlib
import enum
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import tqdm

from clinmerge_jax import full_disk
from clinmerge_jax.errors import BadInput

PROVENANCE_FILE = "provenance.json"
SYNC_BYTES = 256 << 20  # writers flush to the disk after so many bytes, so that not all data waits for the end
# Working files: hidden, and removed once the result is in place.
_JOURNAL_FILE = ".journal.json"
_IDENTITY_FILE = ".identity.json"
_LOCK_FILE = ".lock"
_LOCK_TRIES = 10  # each fails only if another process removes the folder at that very moment
_COMMITTED_LAST = ("model.safetensors.index.json", "config.json")


class OutputState(enum.Enum):
    """What `OutputFolder.open` found."""

    FINISHED = "finished"  # the target holds this very result
    RESUMED = "resumed"  # an interrupted run of the same identity is continued
    FRESH = "fresh"


class OutputFolder:
    """A result folder, which one process at a time may write.

    Args:
      target: the folder to create.
      identity: what determines the result (recipe, inputs); JSON-serialisable. Two runs with equal
        identities are assumed to give the same result.
      overwrite: whether a finished result of this program may be replaced.
      same_result: function of a finished folder's provenance and this identity, true if they describe the same result;
        by default the identities are compared.
    """

    def __init__(
        self,
        target: pathlib.Path | str,
        identity: Mapping[str, Any],
        overwrite: bool = False,
        same_result: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None = None,
    ):
        self.target = result_path(target)
        if not self.target.name:
            raise BadInput(f"config.output: {self.target} is the root of the file system; name a folder in it")
        self.identity = json.loads(json.dumps(identity))
        self.overwrite = overwrite
        self._same_result = same_result or (lambda recorded, identity: recorded.get("identity") == identity)
        self.partial = self.target.with_name(f".{self.target.name}.partial")
        self._lock: int | None = None
        self._made_parents: list[pathlib.Path] = []

    def finished(self) -> dict[str, Any] | None:
        """The provenance of the finished result in the target; None if there is none or it is to be replaced.

        Raises:
          BadInput: the target exists and is not a result of this program, or holds a different result and `overwrite`
            is off.
        """
        if not os.path.lexists(self.target):
            return None
        provenance = _read_provenance(self.target / PROVENANCE_FILE)
        if provenance is None:
            raise BadInput(
                f"config.output: {self.target} exists and is not a result of this program; name another folder"
            )
        if self.overwrite:
            return None
        if self._same_result(provenance, self.identity):
            return provenance
        raise BadInput(
            f"config.output: {self.target} holds a result of another configuration or other inputs;"
            " name another folder, or replace it with --config.overwrite=True"
        )

    def open(self) -> OutputState:
        """Checks the target and prepares the hidden folder.

        1. A finished target of this identity: FINISHED, nothing is prepared.
        2. A hidden folder of this identity: RESUMED, its content is kept.
        3. Otherwise: FRESH, the content of a hidden folder of another identity is removed.

        Raises:
          BadInput: as `finished`; or the folder cannot be made, or another process is writing there.
        """
        if self.finished() is not None:
            self._remove_leftovers()
            return OutputState.FINISHED
        for _ in range(_LOCK_TRIES):
            self._make_parents()
            if self._take_lock():
                break
        else:
            raise BadInput(f"config.output: cannot create {self.partial}; name another folder")
        if self.finished() is not None:  # by a process that has just released the lock
            self.discard()
            return OutputState.FINISHED
        identity = self.partial / _IDENTITY_FILE
        if identity.is_file() and json.loads(identity.read_bytes()) == self.identity:
            return OutputState.RESUMED
        for path in self.partial.iterdir():
            if path.name != _LOCK_FILE:
                _remove(path)
        self.write_text(_IDENTITY_FILE, json.dumps(self.identity))
        return OutputState.FRESH

    def _make_parents(self) -> None:
        for parent in reversed(self.target.parents):
            if not os.path.exists(parent):
                try:
                    parent.mkdir(exist_ok=True)
                except OSError as error:
                    refuse_place("make", parent, error)
                self._made_parents.append(parent)

    def _remove_leftovers(self) -> None:
        """Removes the working files that a process left if it was killed just after putting the target in place."""
        for name in (_JOURNAL_FILE, _IDENTITY_FILE, _LOCK_FILE):
            (self.target / name).unlink(missing_ok=True)
        shutil.rmtree(self._replaced(), ignore_errors=True)

    def _replaced(self) -> pathlib.Path:
        return self.target.with_name(f".{self.target.name}.replaced")

    def _take_lock(self) -> bool:
        """Creates and locks the hidden folder; False if it was put in place or removed in the meantime."""
        path = self.partial / _LOCK_FILE
        try:
            self.partial.mkdir(exist_ok=True)
            self._lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:
            return False
        except OSError as error:
            refuse_place("write", self.partial, error)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise BadInput(f"config.output: another process is writing {self.target}; wait for it to end") from error
        except OSError as error:
            self.close()
            refuse_place("lock", path, error)
        try:
            if os.path.samestat(os.fstat(self._lock), os.stat(path)):
                return True
        except FileNotFoundError:
            pass
        self.close()
        return False

    def refuse_overlap(self, inputs: Mapping[str, pathlib.Path]) -> None:
        """Refuses a target that is, contains or lies inside an input folder.

        Args:
          inputs: the input folders by config field.

        Raises:
          BadInput: the target overlaps an input; the message names its field.
        """
        target = self.target.resolve()
        for field, folder in inputs.items():
            if folder.resolve() in (target, *target.parents):
                raise BadInput(f"config.output: {self.target} is in the folder of {field}; name another folder")
            if target in folder.resolve().parents:
                raise BadInput(f"config.output: {self.target} contains the folder of {field}; name another folder")

    def path(self, name: str) -> pathlib.Path:
        """The path of a result file in the hidden folder."""
        return self.partial / name

    def write_text(self, name: str, text: str) -> None:
        """Writes one small text file atomically."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes one small binary file atomically."""
        write_atomically(self.path(name), content)

    def copy(self, source: pathlib.Path, name: str = "") -> None:
        """Copies one small file into the result, under its own name or another."""
        write_atomically(self.path(name or source.name), source.read_bytes())

    @contextlib.contextmanager
    def weight_file(self, name: str, header: bytes) -> Iterator[Callable[[np.ndarray], int]]:
        """Writes a weight file piece by piece; it gets its name if the block ends without an error.

        It is on the disk by then, so the journal may name it even if the power fails.

        Yields:
          A function that appends an array's values and returns their bytes.
        """
        part = self.path(name + ".part")
        with part.open("wb", buffering=0) as file:
            unsynced = 0

            def append(values: np.ndarray) -> int:
                nonlocal unsynced
                data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                unsynced += written
                if unsynced >= SYNC_BYTES:
                    os.fdatasync(file.fileno())
                    unsynced = 0
                return written

            file.write(header)
            yield append
            os.fsync(file.fileno())
        part.rename(self.path(name))
        sync(self.partial)

    def read_journal(self) -> dict[str, Any]:
        """The journal in the hidden folder; empty if there is none."""
        path = self.path(_JOURNAL_FILE)
        return json.loads(path.read_bytes()) if path.is_file() else {}

    def write_journal(self, content: Mapping[str, Any]) -> None:
        """Stores durably what an interrupted run resumes from; `commit` removes it."""
        self.write_text(_JOURNAL_FILE, json.dumps(content))

    def check_space(
        self, nbytes: int, result: str = "the result", mend: str = "free some space or name a folder elsewhere"
    ) -> None:
        """Refuses a result that is larger than the free disk space.

        Args:
          nbytes: bytes of the result.
          result: its name in the message.
          mend: the remedy in the message.

        Raises:
          BadInput: it is too large; the message gives both sizes.
        """
        free = shutil.disk_usage(self.partial).free
        if free < nbytes:
            need, have = (tqdm.tqdm.format_sizeof(count, "B") for count in (nbytes, free))
            raise BadInput(f"config.output: {result} takes {need} and {self.target.parent} has {have} free; {mend}")

    def finished_text(self, same: str, tables: str) -> str:
        """The message for a result that `open` found finished.

        Args:
          same: what is unchanged since then.
          tables: the beginning of the sentence that ends in "README.md in that folder.", saying what that file holds.
        """
        return (
            f"{self.target} is finished already: {same}, nothing to do.\n"
            f"To make it again: --config.overwrite=True. {tables} README.md in that folder."
        )

    def commit(self, provenance: Mapping[str, Any]) -> None:
        """Writes the provenance, syncs every file and renames the folder into place.

        The index and config.json are synced last, so that a power failure before the rename leaves no weights that look
        complete but are not. The lock and the identity stay until the folder is in place, so that no other process
        takes it for abandoned.
        """
        self.write_text(PROVENANCE_FILE, json.dumps({**provenance, "identity": self.identity}, indent=1) + "\n")
        for path in sorted(self.partial.rglob("*"), key=lambda path: path.name in _COMMITTED_LAST):
            sync(path)
        sync(self.partial)
        replaced = self._replaced()
        if os.path.lexists(self.target):
            _remove(replaced)
            self.target.rename(replaced)
        self.partial.rename(self.target)
        sync(self.target.parent)
        self._remove_leftovers()
        self.close()

    def discard(self) -> None:
        """Removes the hidden folder, and the empty parent folders that were created for it.

        Without the lock the hidden folder belongs to another process and is kept.
        """
        if self._lock is not None:
            _remove(self.partial)
        for parent in reversed(self._made_parents):
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        self.close()

    def close(self) -> None:
        """Releases the lock; a hidden folder that still exists can be resumed."""
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


def result_path(text: pathlib.Path | str) -> pathlib.Path:
    """The absolute path that `config.output` names.

    Raises:
      BadInput: it is empty, or names the home folder of an unknown user.
    """
    if not str(text).strip():
        raise BadInput("config.output: is empty; give the folder to write")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise BadInput(f"config.output: {text} names the home of a user who does not exist; name another folder")
    return pathlib.Path(os.path.abspath(expanded))


def refuse_place(do: str, path: pathlib.Path, error: OSError) -> NoReturn:
    """Refuses a config.output that cannot be used.

    Args:
      do: the action that failed, such as "write".
      path: the file or folder that it failed on.
      error: the system's error.

    Raises:
      OSError: `error` itself if the disk is full: the location is valid, and a rerun can resume there.
      BadInput: otherwise.
    """
    if full_disk.cause_of(error) is not None:
        raise error
    raise BadInput(f"config.output: cannot {do} {path} ({error.strerror}); name another folder") from error


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it to disk and renames it."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync(path: pathlib.Path) -> None:
    """Syncs a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_provenance(path: pathlib.Path) -> dict[str, Any] | None:
    """The provenance that `commit` wrote; None if there is no such file or another program wrote it."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("identity"), dict) else None


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
