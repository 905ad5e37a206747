"""Fine-tuning by two processes: what one process gives, and one end for both at SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.alone, pytest.mark.slow]

STEPS = 12


def _start(repository, folder, output, processes, devices):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(processes):
        command = [
            sys.executable, "-m", "clinmerge_jax.main", "--config=configs/sft.py:full", "--config.shots=32",
            "--config.length=256", f"--config.steps={STEPS}", "--config.batch_size=8", "--config.micro_batch=4",
            "--config.warmup_steps=1", "--config.mesh.data=2", "--config.mesh.fsdp=1", "--config.mesh.tensor=1",
            f"--config.output={output}",
        ]  # fmt: skip
        if processes > 1:
            command += [f"--distributed=localhost:{port}", f"--num_processes={processes}", f"--process_id={index}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        with (folder / f"{output.name}-{index}.err").open("w") as errors:
            started.append(
                subprocess.Popen(command, cwd=repository, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            )
    return started


def _losses(output):
    rows = map(json.loads, (output / "log" / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows]


def test_two_processes_train_as_one_does_and_stop_and_go_on_together(repository, tmp_path, figures):
    one, two = tmp_path / "one", tmp_path / "two"
    (alone,) = _start(repository, tmp_path, one, 1, 2)
    assert alone.wait() == 0
    both = _start(repository, tmp_path, two, 2, 1)
    log = two.with_name(".two.partial") / "log" / "log.jsonl"
    while both[0].poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    os.kill(both[1].pid, signal.SIGTERM)
    assert [process.wait() for process in both] == [1, 1]
    assert "run the same command again to continue" in (tmp_path / "two-0.err").read_text()
    stopped = log.read_bytes().count(b"\n")
    assert stopped < STEPS and not two.exists()
    assert [process.wait() for process in _start(repository, tmp_path, two, 2, 1)] == [0, 0]
    losses = _losses(one), _losses(two)
    assert len(losses[1]) == STEPS
    difference = float(np.max(np.abs(np.subtract(*losses)) / losses[0]))
    figures.append(f"fine-tuning by 2 processes, stopped after step {stopped}: losses within {difference:.1e} of one's")
    assert difference < 1e-6
