"""Log a training run as JSON lines and TensorBoard events; numbers only."""

import itertools
import json
import pathlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

LOG_FILE = "log.jsonl"
_EVENTS = "events"
_FLUSH_SECONDS = 120.0


class TrainingLog:
    """Writes a row of values per step; a context manager that closes the log.

    Events are written in the caller's thread, not by tensorboardX's writer thread: when the disk is full that thread
    dies, and adding further events blocks forever.

    Args:
      folder: the folder of `log.jsonl` and the subfolder `events`; created if missing.
      after: the step from which the run resumes; rows of later steps, from before the interruption, are dropped.
    """

    def __init__(self, folder: pathlib.Path, after: int = 0):
        (folder / _EVENTS).mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        whole = path.read_bytes() if path.is_file() else b""
        lines = whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True)  # a kill may truncate the last line
        rows = map(json.loads, lines)
        self.rows: list[dict[str, float]] = list(itertools.takewhile(lambda row: after and row["step"] <= after, rows))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"  # the name that TensorBoard expects
        self._events = RecordWriter(str(folder / _EVENTS / name))
        self._flushed = time.monotonic()
        self._event(file_version="brain.Event:2")
        if after:  # makes TensorBoard drop events of later steps from before the interruption
            self._event(step=after + 1, session_log=SessionLog(status=SessionLog.START))
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(sum(map(len, lines[: len(self.rows)])))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values measured after a step."""
        row = {"step": step, **values}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._event(step=step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()

    def _event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def column(self, name: str) -> list[tuple[int, float]]:
        """The steps and values of one name."""
        return _column(self.rows, name)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        """Flushes and closes the files."""
        try:
            self._file.close()
        finally:
            self._events.close()


def read_column(folder: pathlib.Path, name: str) -> list[tuple[int, float]]:
    """The steps and values of one name, from the log folder of a finished run."""
    return _column([json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()], name)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in rows if name in row]
