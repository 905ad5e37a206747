"""The GPU check begins only where it can, and its rehearsal runs every part."""

import json
import os
import pathlib
import subprocess

import pytest

from clinmerge_jax.benchmark.gpu_check.parts import PARTS


def _run(repository, out, *arguments):
    return subprocess.run(
        [repository / "launch" / "gpu_check.sh", *arguments],
        env={**os.environ, "OUT": str(out)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rehearse", "--only=merge,speed"], "--only: 'speed' is not a part; choose from parity, merge, "),
        ([], "/dev: has no NVIDIA GPU"),
        (["--rehearse", "--model=nowhere"], "--model: nowhere has no config.json"),
        (["--rehearse", "--wheels=nowhere"], "--wheels: nowhere holds no wheels"),
    ],
)
def test_what_cannot_begin_is_refused_in_one_line(repository, tmp_path, arguments, said):
    if not arguments and any(pathlib.Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("here is a GPU")
    process = _run(repository, tmp_path, *arguments)
    assert process.returncode == 2 and process.stderr.startswith(f"error: {said}")
    assert process.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_rehearsal_runs_every_part(repository, tmp_path):
    process = _run(repository, tmp_path, "--rehearse")
    assert process.returncode == 0, process.stdout
    found = json.loads((tmp_path / "gpu_check.json").read_bytes())
    assert list(found["parts"]) == [part.name for part in PARTS]
    skipped = {name: part["reason"] for name, part in found["parts"].items() if part["status"] != "done"}
    assert not set(skipped) - {"lora_peer"} and set(skipped.values()) <= {"peft not installed"}
    by_part = {part.name: [one for one in found["figures"] if one["part"] == part.name] for part in PARTS}
    assert all(by_part[name] for name in by_part if name not in skipped)
    answered = by_part["parity"][0]
    assert answered["name"] == f"greedy tokens as in transformers, of {answered['value']:.0f}"
    table = pathlib.Path(tmp_path / "gpu_check.md").read_text()
    assert all(f"| {one['name']} " in table for one in found["figures"])
    assert table in process.stdout
