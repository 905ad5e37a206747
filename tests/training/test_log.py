"""The log of a training run."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event

from clinmerge_jax.training.log import LOG_FILE, TrainingLog


def _events(folder) -> list[tuple[str, int, float]]:
    found = []
    for path in sorted((folder / "events").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def test_every_row_is_a_line_and_an_event(tmp_path):
    with TrainingLog(tmp_path / "log") as log:
        log.add(1, {"loss": 2.5, "tokens_per_second": 10.0})
        log.add(2, {"loss": 2.25})
    lines = (tmp_path / "log" / LOG_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == log.rows
    assert log.column("loss") == [(1, 2.5), (2, 2.25)] and log.column("tokens_per_second") == [(1, 10.0)]
    assert _events(tmp_path / "log") == [("loss", 1, 2.5), ("tokens_per_second", 1, 10.0), ("loss", 2, 2.25)]


def test_a_run_that_goes_on_has_one_row_for_every_step(tmp_path):
    with TrainingLog(tmp_path / "log") as log:
        for step in (1, 2, 3):
            log.add(step, {"loss": float(step)})
    with (tmp_path / "log" / LOG_FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with TrainingLog(tmp_path / "log", after=2) as again:
        again.add(3, {"loss": 30.0})
    lines = (tmp_path / "log" / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 2.0, 30.0]
    assert again.column("loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_run_that_starts_again_has_no_row_from_before(tmp_path):
    with TrainingLog(tmp_path / "log") as log:
        log.add(0, {"validation_loss": 1.0})
    with TrainingLog(tmp_path / "log") as again:
        pass
    assert again.rows == [] and (tmp_path / "log" / LOG_FILE).read_bytes() == b""
