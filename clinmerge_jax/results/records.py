"""Results: one JSON line for each system, task and setting, with the counts of every item. I items, K counts.

No line holds a word of a question or an answer. Items and clusters have salted ids: a keyed hash, whose key is in the
same folder and readable by the owner alone. So a person who is given the lines cannot look up the items.
"""

import csv
import dataclasses
import fcntl
import hashlib
import hmac
import io
import json
import os
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.output import refuse_place, result_path, write_atomically
from clinmerge_jax.errors import BadInput

REFERENCE = "the reference itself"
BOUNDS = frozenset({REFERENCE, "obedient reference"})  # upper bounds: no system is expected to beat them
RESULTS_FILE = "results.jsonl"
# The config fields that shape every answer; `evaluation/plan.py` adds those of generated and sampled answers.
COMPUTED = ("dtype", "int8_weights", "int8_cache", "attention", "too_long", "length")
_SALT_FILE = ".salt"
_LOCK_FILE = ".lock"
_ID_LENGTH = 16
_SALT_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a Result measures: a system on a task, asked in one way.

    Attributes:
      system: the system's name; trivial baselines and bounds have one too.
      seed: the seed of the system's training.
      task: the task with its split, such as `mts_dialog@test1`.
      mode: "generated", or "letters" if a choice was made by log-likelihood.
      chat: whether prompts went through the chat template.
      shots: number of few-shot examples.
      example_seed: the seed of the choice of examples and of the sampling.
      floor: whether the answers are those of a trivial baseline or bound instead of a model.
      stored: whether another program answered, with unknown settings.
    """

    system: str
    seed: int
    task: str
    mode: str = "generated"
    chat: bool = False
    shots: int = 0
    example_seed: int = 0
    floor: bool = False
    stored: bool = False

    def __str__(self) -> str:
        seeds = f", seed {self.seed}/{self.example_seed}" if self.seed or self.example_seed else ""
        shots = f", {self.shots} shots" if self.shots else ""
        return f"{self.system} on {self.task} ({self.mode}{', chat' if self.chat else ''}{shots}{seeds})"


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of a results file.

    Attributes:
      key: a digest of everything that determines the line.
      cell: what it measures.
      scores: the score by metric name.
      signatures: the signature by metric name.
      counts: the counts [I, K] by metric name.
      items: the salted id of each item.
      clusters: the salted cluster id of each item.
      about: figures about the work: items cut, seconds, tokens.
      provenance: versions, digests, settings.
    """

    key: str
    cell: Cell
    scores: Mapping[str, float]
    signatures: Mapping[str, str]
    counts: Mapping[str, np.ndarray]
    items: Sequence[str]
    clusters: Sequence[str]
    about: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def to_json(self) -> str:
        """The JSON line, without its newline."""
        counts = {name: [[_short(x) for x in row] for row in array.tolist()] for name, array in self.counts.items()}
        return json.dumps({**dataclasses.asdict(self), "counts": counts})

    @classmethod
    def from_json(cls, line: bytes | str) -> "Result":
        """Parses a line."""
        row = json.loads(line)
        counts = {name: np.array(rows, np.float64) for name, rows in row["counts"].items()}
        return cls(**{**row, "cell": Cell(**row["cell"]), "counts": counts})


def read_results(path: pathlib.Path) -> list[Result]:
    """Reads the Results of a file, without a last line torn by a kill; none if there is no file.

    Raises:
      BadInput: the file holds something else.
    """
    if not path.is_file():
        return []
    whole = path.read_bytes()
    try:
        return [Result.from_json(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: holds lines that are not Results of this version; name another folder") from error


class ResultsFolder:
    """The only writer of a folder of Results. Lines are appended as cells finish; a torn last line is dropped.

    Args:
      target: the folder; created if it is missing.

    Raises:
      BadInput: the folder cannot be written, holds something else, or another process is writing to it.
    """

    def __init__(self, target: str):
        self.path = result_path(target)
        if not self.path.name:
            raise BadInput(f"config.output: {self.path} is the root of the file system; name a folder in it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            refuse_place("write", self.path, error)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise BadInput(f"config.output: another process is writing {self.path}; wait for it to end") from error
        try:
            self._salt = self._own_salt()
            self._drop_torn_line()
            results = read_results(self.path / RESULTS_FILE)
        except BaseException:
            os.close(self._lock)
            raise
        self.known = {result.key: result for result in results}
        self._lines = len(results)

    def _own_salt(self) -> bytes:
        path = self.path / _SALT_FILE
        if not path.is_file():
            self.write(_SALT_FILE, secrets.token_hex(_SALT_BYTES), private=True)
        try:
            salt = bytes.fromhex(path.read_text())
        except ValueError:
            salt = b""
        if len(salt) != _SALT_BYTES:
            raise BadInput(
                f"{path}: is damaged, so ids would no longer match those of {RESULTS_FILE}; name another folder"
            )
        return salt

    def _drop_torn_line(self) -> None:
        path = self.path / RESULTS_FILE
        whole = path.read_bytes() if path.is_file() else b""
        if not whole.endswith(b"\n") and whole:
            write_atomically(path, whole[: whole.rfind(b"\n") + 1])

    def salted(self, task: str, ids: Sequence[str]) -> list[str]:
        """The salted ids that stand for a task's item or cluster ids in Results."""
        return [hmac.new(self._salt, f"{task}/{one}".encode(), hashlib.sha256).hexdigest()[:_ID_LENGTH] for one in ids]

    def add(self, result: Result) -> None:
        """Appends a line and syncs it to disk; it replaces a line with the same key."""
        self.known.pop(result.key, None)  # so that the newest is the last
        self.known[result.key] = result
        self._lines += 1
        with (self.path / RESULTS_FILE).open("ab") as file:
            file.write(result.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, text: str, private: bool = False) -> pathlib.Path:
        """Writes a file of the folder atomically.

        Args:
          name: the file's name; may have folders before it.
          text: the content.
          private: whether only the owner may read the file and these folders.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            for folder in path.parents[: len(path.relative_to(self.path).parts) - 1]:
                folder.chmod(0o700)
            temporary = path.with_name(path.name + ".part")
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
        write_atomically(path, text.encode())
        return path

    def close(self) -> None:
        """Removes the lines that were replaced, and releases the folder."""
        path = self.path / RESULTS_FILE
        try:
            if self._lines > len(self.known):
                write_atomically(path, b"".join(one.to_json().encode() + b"\n" for one in self.known.values()))
        finally:
            os.close(self._lock)

    def __enter__(self) -> "ResultsFolder":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def key_of(identity: Mapping[str, Any]) -> str:
    """A digest (32 hexadecimal digits) of what determines a cell."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _short(value: float) -> float | int:
    """The shortest JSON form of a count; fractions keep 10 significant digits."""
    return int(value) if value == int(value) else float(f"{value:.10g}")


def csv_text(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
