"""Fine-tuning a checkpoint."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import run_command

import configs.sft
from clinmerge_jax.checkpoint.adapters.adapter import open_adapter
from clinmerge_jax.checkpoint.adapters.lora import load_lora
from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.fine_tuning.settings import step_settings
from clinmerge_jax.fine_tuning.source import Source, open_start
from clinmerge_jax.training.lora import merge_lora


@pytest.fixture(scope="module")
def miniature(repository):
    """The shipped models."""
    return repository / "clinmerge_jax" / "miniature" / "models"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve examples in two forms, and two more that nothing is learned from."""
    folder = tmp_path_factory.mktemp("rows")
    examples = [
        {"id": f"case-{i}", "input": f"cough for {i} days, fever", "output": f"a cold, day {i}", "kind": "ab"[i % 2]}
        for i in range(6)
    ]
    for i in range(6):
        asked = [{"role": "user", "content": f"what is {i} and {i}?"}, {"role": "assistant", "content": str(2 * i)}]
        examples.append({"id": f"chat-{i}", "messages": asked, "kind": "c"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    held_out = [{"prompt": "how long does a cold last?", "completion": f" about {i} days"} for i in (7, 9)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    return folder


def _arguments(repository, model, rows, output, *more: str) -> tuple[str, ...]:
    return (
        f"--config={repository / 'configs' / 'sft.py'}:full",
        f"--config.model={model / 'clinical'}",
        f"--config.task={rows / 'train.jsonl'}",
        f"--config.output={output}",
        "--config.length=64",
        "--config.batch_size=4",
        "--config.warmup_steps=1",
        "--config.learning_rate=3e-3",
        *more,
    )


def test_training_lowers_the_losses_and_writes_a_checkpoint(repository, miniature, rows, tmp_path, capsys):
    output = tmp_path / "trained"
    arguments = _arguments(
        repository, miniature, rows, output, "--config.shots=8", "--config.label=kind", "--config.epochs=10",
        f"--config.validation={rows / 'held_out.jsonl'}", "--config.validate_every=5", "--config.select=best",
    )  # fmt: skip
    assert run_command(*arguments) == 0
    assert "Next: " in capsys.readouterr().out
    log = [json.loads(line) for line in (output / "log" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    held_out = [row["validation_loss"] for row in log if "validation_loss" in row]
    assert len(losses) == 20 and losses[-1] < 0.8 * losses[0] and len(held_out) == 5
    assert all(row["tokens_per_second"] > 0 and row["peak_bytes"] > 0 for row in log if "loss" in row)
    assert sorted(path.name for path in (output / "log").iterdir()) == ["events", "log.jsonl"]
    chosen = json.loads((output / "few_shot.json").read_text())
    assert len(set(chosen)) == 8 and sum(name.startswith("case") for name in chosen) in (5, 6)  # of three kinds, evenly
    start, trained = (open_checkpoint(str(path), "x") for path in (miniature / "clinical", output))
    assert {name: entry.dtype for name, entry in trained.tensors.items()} == {
        name: entry.dtype for name, entry in start.tensors.items()
    }
    record = json.loads((output / "provenance.json").read_text())
    assert record["training"]["steps"] == 20 and record["credentialed"] is False
    assert record["training"]["result_of_step"] == 5 * (1 + int(np.argmin(held_out[1:])))
    assert "derived from" not in (output / "README.md").read_text().lower()
    assert not list(output.glob("**/*.orbax*")) and not (output / "steps").exists()
    assert run_command(*arguments) == 0 and "finished already" in capsys.readouterr().out


def test_an_adapter_is_written_as_peft_has_it_and_merges_exactly(repository, miniature, rows, tmp_path):
    more = ("--config.lora.rank=4", "--config.lora.alpha=8", "--config.lora.dropout=0.1", "--config.steps=4")
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert run_command(*_arguments(repository, miniature, rows, adapter, *more)) == 0
    assert run_command(*_arguments(repository, miniature, rows, merged, *more, "--config.merge_adapter=True")) == 0
    start = open_checkpoint(str(miniature / "clinical"), "x")
    config, params = load_params(start)
    lora, factors = load_lora(str(adapter), "x", config)
    assert (lora.rank, lora.alpha, lora.dropout) == (4, 8, 0.1) and np.any(
        factors["layers"]["mlp"]["up_proj"]["lora_b"]
    )
    expected = merge_lora(params, factors, lora)
    _, found = load_params(open_checkpoint(str(merged), "x"))
    for module in ("q_proj", "o_proj"):
        assert np.array_equal(
            expected["layers"]["self_attn"][module]["weight"], found["layers"]["self_attn"][module]["weight"]
        )
    opened = open_adapter(str(adapter), "x")
    assert len(opened.targets) == 7 * config.num_hidden_layers
    untouched = "model.embed_tokens.weight"
    assert np.array_equal(
        read_tensor(open_checkpoint(str(merged), "x").tensors[untouched]), read_tensor(start.tensors[untouched])
    )


@pytest.mark.slow
def test_frozen_tensors_stay_and_wise_ft_lies_between(repository, miniature, rows, tmp_path):
    more = ("--config.freeze=embed|norm", "--config.steps=3", "--config.wise_ft=")
    results = {}
    for share in ("1.0", "0.25"):
        arguments = _arguments(repository, miniature, rows, tmp_path / share, *more[:2], more[2] + share)
        assert run_command(*arguments) == 0
        results[share] = load_params(open_checkpoint(str(tmp_path / share), "x"), jnp.float32)[1]
    start = load_params(open_checkpoint(str(miniature / "clinical"), "x"), jnp.float32)[1]
    for one in results.values():
        assert np.array_equal(one["embed_tokens"]["weight"], start["embed_tokens"]["weight"])
    whole, part, begun = (
        tree["layers"]["mlp"]["up_proj"]["weight"] for tree in (results["1.0"], results["0.25"], start)
    )
    assert np.any(whole != begun)
    np.testing.assert_allclose(part, 0.75 * begun + 0.25 * whole, atol=2**-8)  # both were rounded to bfloat16


# The job with short rows and programs that cost nothing, so that a small run goes through batches of several shapes.
_SEVERAL_SHAPES = """
from absl import app
from clinmerge_jax import command_line, main
from clinmerge_jax.training import batching
batching._CPU = batching._Device(unit=16, at_a_time=64, compiling=0.0)
app.run(main.main, flags_parser=command_line.parse_flags)
"""


def _launch(repository: pathlib.Path, arguments, said: int | IO[str] = subprocess.DEVNULL) -> subprocess.Popen:
    command = [sys.executable, "-c", _SEVERAL_SHAPES, *arguments]
    return subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=said)


def _steps_done(output: pathlib.Path) -> int:
    log = output.with_name(f".{output.name}.partial") / "log" / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _kill_after(process: subprocess.Popen, output: pathlib.Path, steps: int, how: signal.Signals) -> None:
    while process.poll() is None and _steps_done(output) < steps:
        time.sleep(0.001)
    if process.poll() is None:
        os.kill(process.pid, how)
        process.wait()


@pytest.mark.slow
def test_a_killed_run_ends_bit_identical_to_an_undisturbed_one(repository, miniature, rows, tmp_path, figures):
    kills = 20
    more = (
        "--config.steps=60", "--config.save_every=1", "--config.lora.rank=2", "--config.lora.dropout=0.1",
        "--config.replay.task=miniature:clinical", "--config.merge_adapter=True",
    )  # fmt: skip
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    with (tmp_path / "said").open("w") as said:
        process = _launch(repository, _arguments(repository, miniature, rows, undisturbed, *more), said)
        assert process.wait() == 0
    (plan,) = re.findall(r"rows x tokens \(steps\): (.*);", (tmp_path / "said").read_text())
    assert 2 <= plan.count("tokens") <= 4
    arguments = _arguments(repository, miniature, rows, killed, *more)
    draw = random.Random(0)
    happened = 0
    for _ in range(2 * kills + 5):
        if killed.exists():
            break
        process = _launch(repository, arguments)
        if happened < kills:
            how = draw.choice([signal.SIGKILL, signal.SIGTERM])
            _kill_after(process, killed, _steps_done(killed) + 1 + draw.randrange(max(1, 50 // kills)), how)
            happened += process.returncode != 0
        assert process.wait() in (0, 1, -signal.SIGKILL)
    assert happened == kills
    logs = [
        [(row["step"], row["loss"]) for row in map(json.loads, (one / "log" / "log.jsonl").read_text().splitlines())]
        for one in (undisturbed, killed)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 60
    assert sha256(undisturbed / "model.safetensors") == sha256(killed / "model.safetensors")
    figures.append(f"fine-tuning: killed {happened} times in 60 steps, the weights are those of an undisturbed run")


@pytest.mark.parametrize(
    "argument, named",
    [
        ("--config.task=nowhere.jsonl", "config.task"),
        ("--config.task=", "config.task"),
        ("--config.task=miniature:base", "config.task"),
        ("--config.validation=nowhere.jsonl", "config.validation"),
        ("--config.shots=13", "config.shots"),
        ("--config.length=100000", "config.length"),
        ("--config.length=1", "config.length"),
        ("--config.batch_size=0", "config.batch_size"),
        ("--config.micro_batch=-1", "config.micro_batch"),
        ("--config.packing=True", "config.packing"),
        ("--config.steps=-3", "config.steps"),
        ("--config.epochs=inf", "config.epochs"),
        ("--config.epochs=0", "config.epochs"),
        ("--config.model=nowhere", "config.model"),
        ("--config.schedule=stairs", "config.schedule"),
        ("--config.remat=some", "config.remat"),
        ("--config.dtype=float16", "config.dtype"),
        ("--config.select=best", "config.validation"),
        ("--config.seed=-1", "config.seed"),
        ("--config.warmup_steps=9", "config.warmup_steps"),
        ("--config.select=first", "config.select"),
        ("--config.patience=-1", "config.patience"),
        ("--config.keep_last=0", "config.keep_last"),
        ("--config.freeze=lm_head", "config.freeze"),
        ("--config.wise_ft=0", "config.wise_ft"),
        ("--config.merge_adapter=True", "config.merge_adapter"),
        ("--config.kl=-1", "config.kl"),
        ("--config.learning_rate=-1", "learning_rate"),
        ("--config.mesh.data=3", "config.mesh"),
    ],
)
def test_bad_input_is_refused_by_field(repository, miniature, rows, tmp_path, argument, named, capsys):
    output = tmp_path / "trained"
    status = run_command(*_arguments(repository, miniature, rows, output, argument))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and named in errors[0]
    assert not output.exists() and not list(tmp_path.glob(".*"))


def test_examples_in_the_validation_set_are_refused(repository, miniature, rows, tmp_path, capsys):
    arguments = _arguments(repository, miniature, rows, tmp_path / "trained")
    assert run_command(*arguments, f"--config.validation={rows / 'train.jsonl'}") == 2
    assert "config.validation: 12 of its documents are also among the examples" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["", "lora", "full", "uf_lora", "pretrain", "runlocal"])
def test_every_variant_fits_the_miniature_as_it_stands(variant):
    config = configs.sft.get_config(variant)
    start = open_start(config)
    sets = Source(config, start).sets(config.shots, config.seed)
    settings = step_settings(config, start.llama, len(sets.examples.sequences), 0.0, jax.devices()[0])
    assert settings.steps > 0 and len(sets.examples.sequences) == sets.examples.packed.sequences > 0


def test_weights_that_diverge_end_the_run_with_a_line_that_names_rows(repository, miniature, rows, tmp_path, capsys):
    arguments = _arguments(repository, miniature, rows, tmp_path / "trained", "--config.epochs=20")
    assert run_command(*arguments, "--config.learning_rate=1e30", "--config.clip_norm=0") == 1
    message = capsys.readouterr().err
    assert "is not finite" in message and "cough" not in message and not (tmp_path / "trained").exists()


def test_credentials_of_the_start_are_inherited(repository, miniature, rows, tmp_path):
    start, output = tmp_path / "clinical", tmp_path / "trained"
    shutil.copytree(miniature / "clinical", start)
    (start / "provenance.json").write_text('{"credentialed": true}')
    assert run_command(*_arguments(repository, tmp_path, rows, output, "--config.steps=1")) == 0
    assert json.loads((output / "provenance.json").read_text())["credentialed"] is True
    assert "Derived from credentialed data" in (output / "README.md").read_text()
