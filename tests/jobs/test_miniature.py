"""The job that trains the miniature: its stages, its controls, and what it refuses."""

import json
import runpy

import pytest
from support import run_command, run_process

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import llama_config

MODELS = ("copying", "base", "clinical", "instruct", "joint", "instruct_again")


@pytest.mark.slow
def test_every_model_has_one_vocabulary_and_a_rerun_makes_only_what_is_missing(repository, tmp_path):
    output = tmp_path / "miniature"
    arguments = ("--config=configs/miniature.py:runlocal", f"--config.output={output}")
    process = run_process(repository, *arguments)
    assert process.returncode == 0, process.stderr
    assert {path.name for path in output.iterdir()} == set(MODELS[:4])
    times = {name: (output / name / "model.safetensors").stat().st_mtime_ns for name in MODELS[:4]}
    process = run_process(repository, *arguments, f"--config.models={','.join(MODELS)}")
    assert process.returncode == 0, process.stderr
    assert {name: (output / name / "model.safetensors").stat().st_mtime_ns for name in times} == times
    checkpoints = [open_checkpoint(str(output / name), "x") for name in MODELS]
    assert len({llama_config(checkpoint) for checkpoint in checkpoints}) == 1
    assert len({(output / name / "tokenizer.json").read_bytes() for name in MODELS}) == 1
    assert len({(output / name / "model.safetensors").read_bytes() for name in MODELS}) == len(MODELS)


def test_the_shipped_models_are_those_of_the_config(repository):
    """Their records hold the stage that the config describes now, so a changed recipe must be trained again."""
    config = runpy.run_path(str(repository / "configs" / "miniature.py"))["get_config"]()
    for name in ("base", "clinical", "instruct"):
        folder = repository / "clinmerge_jax" / "miniature" / "models" / name
        record = json.loads((folder / "provenance.json").read_text())
        identity = record["identity"]
        assert identity["stage"] == config.stages[name].to_dict()
        assert identity["config"]["model"] == config.model.to_dict()
        raw = json.loads((folder / "config.json").read_text())
        assert {key: raw[key] for key in config.model} == config.model.to_dict()


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ("base,clinicle", "config.models: 'clinicle' is unknown; choose from base, clinical, copying"),
        ("clinical", "config.models: clinical starts from base, which is not there; name it too"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(repository, tmp_path, capsys, models, reason):
    output = tmp_path / "miniature"
    arguments = (f"--config={repository}/configs/miniature.py:runlocal", f"--config.output={output}")
    assert run_command(*arguments, f"--config.models={models}") == 2
    assert reason in capsys.readouterr().err and not output.exists()
