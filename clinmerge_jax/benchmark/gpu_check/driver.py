"""Runs parts one after another, each as a process with a time limit, within one time budget.

While a part measures, the next one's process imports what it needs and then waits for a line on its standard input. So
only the first part's imports take time from the budget.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence, Set

from clinmerge_jax.benchmark.gpu_check.parts import Part
from clinmerge_jax.benchmark.gpu_check.record import Record

FAILED = ("failed", "timed out")
_START_UP = 2.0  # seconds of the budget reserved for ending one process and starting another
_GO = b"go\n"


class Processes:
    """The processes of the parts. Each leads a process group, so its children are ended with it.

    Args:
      command: gives the command of a part.
      environment: of all processes.
      logs: folder for what they print.
    """

    def __init__(self, command: Callable[[Part], Sequence[str]], environment: Mapping[str, str], logs: pathlib.Path):
        self._command = command
        self._environment = environment
        self._logs = logs
        self._started: dict[str, subprocess.Popen] = {}

    def log(self, part: Part) -> pathlib.Path:
        """The file with what a part prints."""
        return self._logs / f"{part.name}.log"

    def start(self, part: Part) -> subprocess.Popen:
        """The part's process, started if need be; it waits until a line is written to its standard input."""
        if part.name not in self._started:
            with self.log(part).open("wb") as log:
                self._started[part.name] = subprocess.Popen(
                    list(self._command(part)),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(self._environment),
                    start_new_session=True,
                )
        return self._started[part.name]

    def end(self, part: Part) -> None:
        """Kills a part's process and its children, if any are left."""
        process = self._started.pop(part.name, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # all of them have already ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def run_parts(
    parts: Sequence[Part],
    processes: Processes,
    record: Record,
    budget: float,
    lacking: Set[str] = frozenset(),
    stretch: float = 1.0,
) -> bool:
    """Runs the parts in order; a part that fails does not stop those after it.

    Args:
      parts: what to run.
      processes: starts and ends their processes.
      record: gets the status of every part.
      budget: seconds for all of them.
      lacking: packages that are not installed; parts that need one are skipped.
      stretch: factor of every part's time limit.

    Returns:
      Whether no part failed or ran out of time. Skipped parts do not count.
    """
    began = time.monotonic()
    well = True
    able = [part for part in parts if not lacking.intersection(part.packages)]
    try:
        for index, part in enumerate(parts):
            left = budget - (time.monotonic() - began) - _START_UP
            reason = ""
            if part not in able:
                reason = f"{' and '.join(sorted(lacking.intersection(part.packages)))} not installed"
            elif left < part.least:
                reason = f"{max(left, 0):.0f} s of {budget:.0f} are left, and it needs at least {part.least:.0f}"
            if reason:
                processes.end(part)
                record.part(part.name, "skipped", reason=reason)
                print(f"{part.name}: skipped, {reason}", flush=True)
                continue
            following = next((one for one in parts[index + 1 :] if one in able), None)
            well &= _run(part, following, processes, record, min(part.limit * stretch, left))
    finally:
        for part in parts:
            processes.end(part)
    return well


def _run(part: Part, following: Part | None, processes: Processes, record: Record, limit: float) -> bool:
    """Runs one part while the next one's process starts; returns whether it succeeded."""
    print(f"{part.name}: at most {limit:.0f} s, {part.gigabytes:.0f} GB: {part.memory}", flush=True)
    record.part(part.name, "running", limit=limit, gigabytes=part.gigabytes, memory=part.memory)
    began = time.monotonic()
    process = processes.start(part)
    with contextlib.suppress(BrokenPipeError):  # it has already ended; its exit status is read below
        process.stdin.write(_GO)
        process.stdin.flush()
    if following is not None:
        processes.start(following)
    try:
        status = "failed" if process.wait(limit) else "done"
    except subprocess.TimeoutExpired:
        status = "timed out"
    processes.end(part)
    seconds = time.monotonic() - began
    facts = {"seconds": seconds, "limit": limit, "gigabytes": part.gigabytes, "memory": part.memory}
    if status in FAILED:
        facts["reason"] = last_line(processes.log(part))
    record.part(part.name, status, **facts)
    print(": ".join([part.name, f"{status} after {seconds:.0f} s", *filter(None, [facts.get("reason")])]), flush=True)
    return status == "done"


def last_line(log: pathlib.Path) -> str:
    """The last line of a log that is not blank."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it printed nothing")
