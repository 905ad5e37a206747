"""The launch scripts hand the job's arguments on unharmed."""

import os
import subprocess

import pytest

ARGUMENTS = ["--config=configs/merge.py", "--config.t=self_attn=0,1; mlp=1,0; 0.5"]


def _stub(folder, name):
    """A command that prints its arguments, a line each."""
    path = folder / name
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_tpu_pod_runs_the_same_command_on_every_worker(repository, tmp_path, environment):
    _stub(tmp_path, "gcloud")
    command = [repository / "launch" / "tpu_pod.sh", "pod", "us-east5-a", *ARGUMENTS]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed[:8] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "us-east5-a", "--worker=all"]
    remote = printed[printed.index("--command") + 1]
    words = subprocess.run(
        ["bash", "-c", f"set -- {remote.split('run.sh', 1)[1]}; printf '%s\\n' \"$@\""],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == ["--distributed=auto", *ARGUMENTS]


def test_tpu_pod_without_a_job_is_refused(repository, environment):
    process = subprocess.run(
        [repository / "launch" / "tpu_pod.sh", "pod"], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 2 and process.stderr.startswith("error: ")


def test_slurm_starts_every_process_with_the_same_command(repository, tmp_path, environment):
    _stub(tmp_path, "srun")
    root = tmp_path / "repository"
    (root / "launch").mkdir(parents=True)
    (root / "launch" / "common.sh").write_text("prepare_environment() { echo prepared; }\n")
    script = tmp_path / "job1234"  # SLURM runs a copy
    script.write_text((repository / "launch" / "slurm.sbatch").read_text())
    process = subprocess.run(
        ["bash", script, *ARGUMENTS],
        env={**environment, "SLURM_SUBMIT_DIR": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = process.stdout.splitlines()
    assert printed[:2] == ["prepared", "--kill-on-bad-exit=1"]
    assert printed[3:] == ["-m", "clinmerge_jax.main", "--distributed=auto", *ARGUMENTS]
