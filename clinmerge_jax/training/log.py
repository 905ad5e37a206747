"""What a training run says of itself: JSON lines and TensorBoard events, numbers only."""

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
    """A row for every step that says something; a context manager that closes it.

    Events are written by the caller's thread, not by tensorboardX's own: when the disk is full that one dies, and
    whoever adds the next events waits for it without end.

    Args:
      folder: of `log.jsonl` and of the folder `events`; made where it is not there.
      after: the step that the run goes on from; rows of later ones, from before the interruption, are dropped.
    """

    def __init__(self, folder: pathlib.Path, after: int = 0):
        (folder / _EVENTS).mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        whole = path.read_bytes() if path.is_file() else b""
        lines = whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True)  # a kill may have cut the last
        rows = map(json.loads, lines)
        self.rows: list[dict[str, float]] = list(itertools.takewhile(lambda row: after and row["step"] <= after, rows))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"  # as TensorBoard looks for it
        self._events = RecordWriter(str(folder / _EVENTS / name))
        self._flushed = time.monotonic()
        self._event(file_version="brain.Event:2")
        if after:  # TensorBoard then drops what the interrupted run wrote of later steps
            self._event(step=after + 1, session_log=SessionLog(status=SessionLog.START))
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(sum(map(len, lines[: len(self.rows)])))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was measured after a step."""
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
        """Steps and values of one name."""
        return _column(self.rows, name)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes out what is left."""
        try:
            self._file.close()
        finally:
            self._events.close()


def read_column(folder: pathlib.Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of one name, from the folder of a run that is finished."""
    return _column([json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()], name)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in rows if name in row]
