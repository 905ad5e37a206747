"""Figures of a name are replaced, medians shown, and those of a peer compared with ours."""

import pytest

from clinmerge_jax.benchmark.gpu_check.record import Record, Reporter, markdown


@pytest.fixture
def record(tmp_path):
    found = Record(tmp_path / "found.json")
    found.start(keep=False)
    return found


def _reporter(record, part):
    return Reporter(record, part, "a device", "a command")


def test_a_figure_with_more_repeats_replaces_the_first(record):
    for values in ([1.0], [1.0, 5.0, 2.0]):
        _reporter(record, "a").add("speed", values, "m/s", peak_bytes=2_500_000_000)
    (figure,) = record.read()["figures"]
    assert (figure["value"], figure["repeats"]) == (2.0, 3)
    assert {"device", "versions", "command", "part", "ratio"} <= set(figure)
    (line,) = [line for line in markdown(record.read()).splitlines() if line.startswith("| speed")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["speed", "2 m/s", "", "", "3", "2.5"]


def test_a_peer_is_compared_with_ours_where_that_is_known(record):
    peer = _reporter(record, "peer")
    peer.against_ours("speed, theirs", [2.0], "m/s", "speed")
    assert record.read()["figures"][0]["ratio"] is None
    _reporter(record, "a").add("speed", [3.0, 3.0, 9.0], "m/s")
    peer.against_ours("speed, theirs", [2.0], "m/s", "speed")
    assert record.read()["figures"][0]["ratio"] == 1.5


def test_a_check_of_some_parts_keeps_the_other_figures(record):
    _reporter(record, "a").add("speed", [3.0], "m/s")
    record.start(keep=True)
    assert record.values("speed") == [3.0]
    record.start(keep=False)
    assert record.values("speed") == []
