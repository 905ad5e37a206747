"""What a training run says of itself: JSON lines and TensorBoard events, numbers only."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import tensorboardX

LOG_FILE = "log.jsonl"
_EVENTS = "events"


class TrainingLog:
    """A row for every step that says something; a context manager that closes it.

    Args:
      folder: of `log.jsonl` and of the folder `events`; made where it is not there.
      after: the step that the run goes on from; rows of later ones, from before the interruption, are dropped.
    """

    def __init__(self, folder: pathlib.Path, after: int = 0):
        folder.mkdir(exist_ok=True)
        path = folder / LOG_FILE
        whole = path.read_bytes() if path.is_file() else b""
        lines = whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True)  # a kill may have cut the last
        kept = [line for line in lines if after and json.loads(line)["step"] <= after]
        path.write_bytes(b"".join(kept))
        self.rows: list[dict[str, float]] = [json.loads(line) for line in kept]
        self._file = path.open("a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(str(folder / _EVENTS), purge_step=after + 1 if after else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was measured after a step."""
        row = {"step": step, **values}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

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
