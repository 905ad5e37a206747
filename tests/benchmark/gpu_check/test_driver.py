"""Parts run in their order, each within its time; one that fails or hangs does not stop the others."""

import json
import os
import sys
import time

import pytest

from clinmerge_jax.benchmark.gpu_check.driver import Processes, run_parts
from clinmerge_jax.benchmark.gpu_check.parts import Part
from clinmerge_jax.benchmark.gpu_check.record import Record

FIGURE = """
import pathlib, sys
from clinmerge_jax.benchmark.gpu_check.record import Record, Reporter
report = Reporter(Record(pathlib.Path(sys.argv[2])), sys.argv[1], "a device", "a command")
"""


def _part(name, limit=30.0, least=0.0, packages=()):
    return Part(name, "", limit, least, "nothing", 0, {}, {}, packages)


@pytest.fixture
def run(repository, tmp_path):
    """Runs programs by the name of their part; returns whether all went well, and the record."""

    def run(scripts, parts=None, budget=100.0, **more):
        record = Record(tmp_path / "found.json")
        record.start(keep=False)

        def command(part):
            return [sys.executable, "-c", f"input()\n{scripts[part.name]}", part.name, str(record.path)]

        processes = Processes(command, {**os.environ, "PYTHONPATH": str(repository)}, tmp_path)
        return run_parts(parts or [_part(name) for name in scripts], processes, record, budget, **more), record

    return run


def test_parts_run_in_their_order_and_one_that_fails_does_not_stop_the_others(run, tmp_path):
    order = f"print(open({str(tmp_path / 'order')!r}, 'a').write(%r))"
    well, record = run({"a": order % "a", "b": order % "b" + "\nraise ValueError('too bad')\n", "c": order % "c"})
    assert (tmp_path / "order").read_text() == "abc"
    parts = record.read()["parts"]
    assert not well and [part["status"] for part in parts.values()] == ["done", "failed", "done"]
    assert parts["b"]["reason"] == "ValueError: too bad"


def test_a_part_that_hangs_ends_with_its_children_and_keeps_its_figures(run, tmp_path):
    hangs = FIGURE + (
        "report.add('speed', [2.0, 4.0, 3.0], 'm/s', ratios=[0.5], ratio_of='of light')\n"
        "import subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '60'])\nopen({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "print('still here', flush=True)\ntime.sleep(60)\n"
    )
    began = time.monotonic()
    well, record = run({"a": hangs, "b": ""}, [_part("a", limit=4.0), _part("b")])
    assert time.monotonic() - began < 40
    assert not well
    found = record.read()
    assert found["parts"]["a"]["status"] == "timed out" and found["parts"]["a"]["reason"] == "still here"
    assert found["parts"]["b"]["status"] == "done"
    (figure,) = found["figures"]
    assert (figure["value"], figure["unit"], figure["ratio"], figure["repeats"]) == (3.0, "m/s", 0.5, 3)
    child = int((tmp_path / "child").read_text())
    with open(f"/proc/{child}/stat") if os.path.exists(f"/proc/{child}/stat") else open(os.devnull) as stat:
        assert stat.read().rpartition(") ")[2][:1] in ("", "Z")  # gone, or waiting to be reaped


def test_a_figure_is_in_the_file_before_its_part_ends(run, tmp_path):
    looks = FIGURE + (
        "report.add('speed', [1.0], 'm/s')\n"
        "import json\n"
        "found = json.loads(pathlib.Path(sys.argv[2]).read_bytes())\n"
        "assert found['parts']['a']['status'] == 'running' and found['figures'][0]['value'] == 1.0\n"
    )
    well, _ = run({"a": looks})
    assert well


def test_what_does_not_fit_into_the_budget_is_skipped_with_the_reason(run):
    parts = [_part("a"), _part("b", least=1000.0), _part("c", packages=("no_such_package",)), _part("d")]
    well, record = run(dict.fromkeys("abcd", ""), parts, lacking={"no_such_package"})
    found = record.read()["parts"]
    assert well and [found[name]["status"] for name in "abcd"] == ["done", "skipped", "skipped", "done"]
    assert found["b"]["reason"].endswith("s of 100 are left, and it needs at least 1000")
    assert found["c"]["reason"] == "no_such_package not installed"


def test_a_part_gets_no_more_time_than_is_left(run):
    well, record = run({"a": "import time; time.sleep(60)"}, budget=4.0)
    assert not well and record.read()["parts"]["a"]["limit"] < 2.1


def test_a_part_that_dies_before_its_turn_is_recorded(run):
    well, record = run({"a": "import time; time.sleep(1)", "b": "1 +"})
    assert not well
    assert json.dumps(record.read()["parts"]["b"]).count("SyntaxError") == 1
