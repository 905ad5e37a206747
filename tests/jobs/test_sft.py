"""Continuing a checkpoint on text, and the whole miniature in small."""

import json
import shutil

import pytest
from support import run_command, run_process

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.params import llama_config


@pytest.fixture(scope="module")
def small_miniature(repository, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "miniature"
    process = run_process(repository, "--config=configs/miniature.py:runlocal", f"--config.output={output}")
    assert process.returncode == 0, process.stderr
    return output


def test_the_miniature_job_writes_three_checkpoints_of_one_vocabulary(small_miniature):
    checkpoints = [open_checkpoint(str(small_miniature / name), "x") for name in ("base", "clinical", "instruct")]
    assert len({llama_config(checkpoint) for checkpoint in checkpoints}) == 1
    tokenizers = {(small_miniature / name / "tokenizer.json").read_bytes() for name in ("base", "clinical", "instruct")}
    assert len(tokenizers) == 1


def test_training_lowers_the_loss_and_writes_a_checkpoint(repository, small_miniature, tmp_path):
    output = tmp_path / "trained"
    arguments = (
        "--config=configs/sft.py:pretrain",
        f"--config.model={small_miniature / 'base'}",
        "--config.text=miniature:clinical",
        "--config.steps=30",
        "--config.length=64",
        f"--config.output={output}",
    )
    process = run_process(repository, *arguments)
    assert process.returncode == 0, process.stderr
    losses = json.loads((output / "provenance.json").read_text())["losses"]
    assert len(losses) == 30 and losses[-1] < losses[0]
    assert (
        open_checkpoint(str(output), "x").tensors.keys()
        == open_checkpoint(str(small_miniature / "base"), "x").tensors.keys()
    )
    assert "derived from" not in (output / "README.md").read_text().lower()
    again = run_process(repository, *arguments)
    assert again.returncode == 0 and "finished already" in again.stdout


@pytest.mark.parametrize(
    "argument, named",
    [
        ("--config.text=nowhere.jsonl", "config.text"),
        ("--config.text=miniature:base", "config.text"),
        ("--config.length=100000", "config.length"),
        ("--config.batch_size=0", "config.batch_size"),
        ("--config.steps=-3", "config.steps"),
        ("--config.epochs=inf", "config.epochs"),
        ("--config.model=nowhere", "config.model"),
    ],
)
def test_bad_input_is_refused_by_field(repository, small_miniature, tmp_path, argument, named, capsys):
    output = tmp_path / "trained"
    status = run_command(
        f"--config={repository / 'configs' / 'sft.py'}",
        f"--config.model={small_miniature / 'base'}",
        f"--config.output={output}",
        argument,
    )
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and named in errors[0]
    assert not output.exists()


def test_credentials_of_the_start_are_inherited(repository, small_miniature, tmp_path):
    start, output = tmp_path / "start", tmp_path / "trained"
    shutil.copytree(small_miniature / "base", start)
    (start / "provenance.json").write_text('{"credentialed": true}')
    process = run_process(
        repository,
        "--config=configs/sft.py",
        f"--config.model={start}",
        "--config.steps=1",
        "--config.length=32",
        f"--config.output={output}",
    )
    assert process.returncode == 0, process.stderr
    assert json.loads((output / "provenance.json").read_text())["credentialed"] is True
    assert "Derived from credentialed data" in (output / "README.md").read_text()
