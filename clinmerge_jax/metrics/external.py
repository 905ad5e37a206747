"""Scores from an external program, for metrics that need a licence or other software (RadGraph, MEDCON, a local judge).

The program is started once for each set of answers. It reads one JSON object a line until the end of its standard
input:

    {"id": 0, "output": "...", "reference": "...", "source": "..."}

`source` is null where there is none. For each object it writes one line to its standard output, in any order, line by
line or all at the end: {"id": 0, "score": 3.5} or, where several scores are requested,
{"id": 0, "scores": {"f1": 0.5, "recall": 0.4}}. It ends with exit status 0.

I items.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import queue
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

import numpy as np

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.errors import BadInput, RunFailure
from clinmerge_jax.metrics.metric import Metric, Output, check_texts, columns

TIMEOUT = 600.0  # seconds
_SPELLING = re.compile(
    r"(?P<name>\w+)(?::(?P<parts>\w+(?:\s*,\s*\w+)*))?(?:\s+(?P<lower>[^\s=]+?)\.\.(?P<upper>[^\s=]+))?"
    r"\s*=\s*(?P<command>.*)"
)


def external(
    name: str,
    command: str,
    *,
    parts: Sequence[str] = (),
    lower: float = 0.0,
    upper: float = 100.0,
    timeout: float = TIMEOUT,
    show_stderr: bool = False,
) -> tuple[Metric, ...]:
    """Make one metric, or one for each part, that an external program scores, rescaled to 0 to 100.

    Messages contain the metric's name and the number of answers received, and never a text.

    Args:
      name: name of the metric; metrics of parts are called `name_part`.
      command: the command, split as in a shell but run without one.
      parts: the program's names of its scores, where it gives several.
      lower: the program's worst score, which becomes 0.
      upper: its best score, which becomes 100.
      timeout: seconds allowed without an answer, and from the last answer to the program's end.
      show_stderr: whether to show the program's standard error. It may repeat the texts, so it is dropped by default.

    Raises:
      BadInput: the command, the bounds or the timeout are invalid. Counting raises BadInput where the program does not
        start, a reference is not a text, or an answer breaks the protocol. It raises RunFailure where the program fails
        or times out.
    """
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise BadInput(f"{name}: its command cannot be parsed ({error}); close its quotes") from error
    if not arguments:
        raise BadInput(f"{name}: has no command; give NAME=COMMAND")
    if not -math.inf < lower < upper < math.inf:
        raise BadInput(f"{name}: its scale goes from {lower:g} to {upper:g}; give the worst score and then the best")
    if not timeout > 0:
        raise BadInput(f"{name}: its timeout is {timeout:g}; give seconds")

    def count_all(outputs: Sequence[Output], references: Sequence[Any], sources: Sequence[str] | None) -> np.ndarray:
        check_texts(references, name)
        questions = [
            {"output": output.text, "reference": reference, "source": source}
            for output, reference, source in zip(outputs, references, sources or [None] * len(outputs))
        ]
        lines = [json.dumps({"id": index} | question).encode() + b"\n" for index, question in enumerate(questions)]
        answers = _Answers(name, parts, lower, upper, len(lines))
        if lines:
            _ask(arguments, lines, answers, timeout, show_stderr)
        return np.concatenate([answers.scores, np.ones((len(lines), 1))], axis=1)

    names = [f"{name}_{part}" for part in parts] or [name]
    signature = f"external program {arguments[0]!r} ({_digest(arguments)}), {lower:g} to {upper:g} as 0 to 100"
    return columns(names, signature, count_all)


def _digest(arguments: Sequence[str]) -> str:
    """A digest of a command and the files that it names, so that a changed script changes the signature."""
    parts = [[one, sha256(pathlib.Path(one)) if os.path.isfile(one) else ""] for one in arguments]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def parse_external(spec: str, taken: Collection[str]) -> dict[str, Metric]:
    """Make metrics from a config field such as "medcon=./medcon.sh; radgraph:f1,recall 0..1=python radgraph.py --x".

    Args:
      spec: entries NAME=COMMAND, separated by semicolons. The name may be followed by the names of parts and by the
        program's scale, where it is not 0..100. A command that contains a semicolon must be put into a script.
      taken: names already in use, including those in `RESERVED`.

    Raises:
      BadInput: an entry is not of this form, a name is taken, or as in `external`.
    """
    metrics: dict[str, Metric] = {}
    for one in filter(None, (piece.strip() for piece in spec.split(";"))):
        match = _SPELLING.fullmatch(one)
        if match is None:
            raise BadInput(f"external: {one!r} is not NAME=COMMAND, NAME:PART,PART=COMMAND or NAME 0..1=COMMAND")
        parts = [part.strip() for part in (match["parts"] or "").split(",") if part]
        bounds = {key: _bound(match["name"], match[key]) for key in ("lower", "upper") if match[key] is not None}
        for metric in external(match["name"], match["command"], parts=parts, **bounds):
            if metric.name in taken or metric.name in metrics:
                raise BadInput(f"external: a metric {metric.name!r} exists already; choose another name")
            metrics[metric.name] = metric
    return metrics


def _bound(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BadInput(f"{name}: its scale has {text!r}; give numbers as in 0..1") from error


class _Answers:
    """The scores received so far, each checked and rescaled from the program's scale to 0 to 100."""

    def __init__(self, name: str, parts: Sequence[str], lower: float, upper: float, items: int):
        self.name = name
        self.parts = parts
        self.lower, self.upper = lower, upper
        self.scores = np.full((items, max(1, len(parts))), np.nan)

    @property
    def came(self) -> int:
        """The number of items answered so far."""
        return int(np.isfinite(self.scores[:, 0]).sum())

    def add(self, line: bytes) -> None:
        """Check and add the answer on one line of the program's output."""
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self.refusal("is not JSON") from error
        index = answer.get("id") if isinstance(answer, dict) else None
        if type(index) is not int or not 0 <= index < len(self.scores):
            raise self.refusal("has no valid item id")
        if np.isfinite(self.scores[index, 0]):
            raise self.refusal(f"is a second one for id {index}")
        if not self.parts:
            values = [answer.get("score")]
        else:
            given = answer.get("scores")
            if not isinstance(given, dict) or set(given) != set(self.parts):
                raise self.refusal(f"does not have exactly the scores {', '.join(self.parts)} for id {index}")
            values = [given[part] for part in self.parts]
        for value in values:
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise self.refusal(f"has no numeric score for id {index}")
            if not self.lower <= value <= self.upper:
                raise self.refusal(
                    f"has a score for id {index} outside of {self.lower:g} to {self.upper:g} (state its scale, as in"
                    f" {self.name} 1..5=COMMAND)"
                )
        self.scores[index] = [100 * (value - self.lower) / (self.upper - self.lower) for value in values]

    def refusal(self, problem: str) -> BadInput:
        """The error for an invalid answer."""
        return BadInput(f"{self.name}: its program's answer after {self.progress()} {problem}; correct the program")

    def progress(self) -> str:
        """The number of items answered, in words."""
        return f"{self.came} of {len(self.scores)} items"

    def end(self, status: int) -> None:
        """Check, after the program ended, its exit status and that every item has an answer."""
        if status:
            reason = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise RunFailure(f"{self.name}: its program {reason} after {self.progress()}; run it by hand to see why")
        missing = np.flatnonzero(np.isnan(self.scores[:, 0]))
        if len(missing):
            raise BadInput(
                f"{self.name}: its program left {len(missing)} of {len(self.scores)} items without an answer, the first"
                f" is id {missing[0]}; it must answer each"
            )


def _ask(
    arguments: Sequence[str], lines: Sequence[bytes], answers: _Answers, timeout: float, show_stderr: bool
) -> None:
    """Run the program over all lines. One thread writes and one reads, so neither side blocks on a full pipe."""
    with _started(arguments, answers.name, show_stderr) as process:
        came: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=_write, args=(process.stdin, lines), daemon=True).start()
        threading.Thread(target=_read, args=(process.stdout, came), daemon=True).start()
        try:
            while (line := came.get(timeout=timeout)) is not None:
                answers.add(line)
            status = process.wait(timeout)
        except (queue.Empty, subprocess.TimeoutExpired) as error:
            raise RunFailure(
                f"{answers.name}: its program printed nothing for {timeout:g} s after {answers.progress()}, and did not"
                " end; run it by hand, or give it more time"
            ) from error
    answers.end(status)


@contextlib.contextmanager
def _started(arguments: Sequence[str], name: str, show_stderr: bool) -> Iterator[subprocess.Popen]:
    """Start the program in a process group of its own; the whole group is killed if the body raises."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show_stderr else subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise BadInput(
            f"{name}: {arguments[0]!r} cannot be started ({error.strerror}); give a program's path"
        ) from error
    try:
        yield process
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so its id cannot have been reused
        process.wait()
        raise


def _write(stream: IO[bytes], lines: Sequence[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), stream:  # it ended early; `_Answers.end` reports missing answers
        for line in lines:
            stream.write(line)


def _read(stream: IO[bytes], came: "queue.SimpleQueue[bytes | None]") -> None:
    with stream:
        for line in stream:
            if line.strip():
                came.put(line)
    came.put(None)
