"""Many runs as one job: each folder is a single run's, a killed grid goes on, what a grid cannot do is refused."""

import json
import shutil

import numpy as np
import pytest
from support import WORDS, read_raw, run_command, write_llama, write_tokenizer

from clinmerge_jax.fine_tuning.grid import run_configs
from clinmerge_jax.fine_tuning.result import Result
from configs.sft import get_config

NAMES = ["shots-6/seed-0", "shots-6/seed-1", "shots-13/seed-0", "shots-13/seed-1"]
STEPS = [2, 2, 4, 4]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model, and texts that fill a row each."""
    folder = tmp_path_factory.mktemp("inputs")
    write_llama(folder / "model", dtype=np.float32)
    write_tokenizer(folder / "model")
    rng = np.random.default_rng(0)
    for name, count in (("task", 14), ("validation", 3)):
        texts = [" ".join(rng.choice(WORDS[3:], 11)) for _ in range(count)]
        lines = [json.dumps({"id": f"{name}-{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _fields(inputs, output):
    return [
        f"--config.model={inputs / 'model'}",
        f"--config.task={inputs / 'task.jsonl'}",
        f"--config.validation={inputs / 'validation.jsonl'}",
        "--config.length=12",
        "--config.epochs=1",
        "--config.batch_size=4",
        "--config.learning_rate=0.01",
        "--config.warmup_steps=0",
        f"--config.output={output}",
    ]


def _grid(repository, inputs, output, *more):
    given = [f"--config={repository}/configs/sft.py:grid", "--config.lora.rank=0", *_fields(inputs, output), *more]
    # A list that is given twice is appended to.
    lists = {"--config.grid.seeds": "0,1", "--config.grid.shots": "6,13"}
    own = [argument.split("=")[0] for argument in more]
    return run_command(*given, *(f"{field}={value}" for field, value in lists.items() if field not in own))


def _single(repository, inputs, output, *more):
    return run_command(f"--config={repository}/configs/sft.py:full", *_fields(inputs, output), *more)


@pytest.fixture(scope="module")
def trained(repository, inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("grid") / "runs"
    assert _grid(repository, inputs, output) == 0
    return output


def _weights(folder):
    return read_raw(folder / "model.safetensors")


def test_every_run_has_a_folder_and_a_line_of_the_table(trained):
    rows = json.loads((trained / "grid.json").read_text())
    assert [row["run"] for row in rows] == NAMES and [row["steps"] for row in rows] == STEPS
    for row in rows:
        lines = (trained / row["run"] / "log" / "log.jsonl").read_text().splitlines()
        log = [json.loads(line) for line in lines]
        assert [line["step"] for line in log] == [*range(1, row["steps"] + 1), row["steps"]]
        assert (row["loss"], row["validation_loss"]) == (log[-2]["loss"], log[-1]["validation_loss"])
        shots = json.loads((trained / row["run"] / "few_shot.json").read_text())
        assert len(set(shots)) == row["shots"] and all(name.startswith("task") for name in shots)
    assert not list(trained.glob("**/.*"))


def test_a_single_run_finds_its_result_finished(repository, inputs, trained, capsys):
    assert _single(repository, inputs, trained / NAMES[2], "--config.shots=13", "--config.seed=0") == 0
    assert "is finished already" in capsys.readouterr().out
    assert _single(repository, inputs, trained / NAMES[2], "--config.shots=13", "--config.seed=1") == 2


@pytest.mark.slow
def test_a_single_run_gives_the_same(repository, inputs, trained, tmp_path):
    assert _single(repository, inputs, tmp_path / "alone", "--config.shots=13", "--config.seed=1") == 0
    ours, theirs = _weights(trained / NAMES[3]), _weights(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    for name in ours:
        found, expected = (np.frombuffer(side[name][2], np.float32) for side in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    records = [
        json.loads((folder / "provenance.json").read_text()) for folder in (trained / NAMES[3], tmp_path / "alone")
    ]
    assert records[0]["identity"] == records[1]["identity"] and records[0].keys() == records[1].keys()


def test_a_killed_grid_keeps_what_is_finished_and_trains_the_rest(
    repository, inputs, trained, tmp_path, monkeypatch, capsys
):
    output, commit, committed = tmp_path / "runs", Result.commit, []

    def killed(self, *args):
        if len(committed) == 2:
            raise KeyboardInterrupt
        committed.append(self.config.output)
        commit(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Result, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            _grid(repository, inputs, output)
    finished = {name: (output / name).stat().st_ino for name in NAMES if (output / name).exists()}
    assert len(finished) == 2 and not (output / "grid.json").exists()
    assert _grid(repository, inputs, output) == 0
    assert all((output / name).stat().st_ino == inode for name, inode in finished.items())
    assert all(_weights(output / name) == _weights(trained / name) for name in NAMES)
    capsys.readouterr()
    assert _grid(repository, inputs, output) == 0
    assert "All 4 runs are finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.patience=2", "config.patience: is 2, but a grid trains every run to its last step"),
        ("--config.select=best", "config.select: is best, but a grid"),
        ("--config.validate_every=3", "config.validate_every: is 3, but a grid"),
        ("--config.mesh.fsdp=2", "config.mesh.fsdp: is 2, but each device of a grid trains whole runs"),
        ("--config.mesh.data=9", "config.mesh.data: is 9 with 8 devices"),
        ("--config.grid.seeds=0,0", "config.grid.seeds: "),
        ("--config.grid.seeds=-1", "config.grid.seeds: "),
        ("--config.grid.seeds=4294967296,", "config.grid.seeds: "),
        ("--config.grid.shots=()", "config.grid.shots: "),
        ("--config.grid.shots=4,15", "config.shots: 15 of 14"),
        ("--config.grid.learning_rates='a'", "config.grid.learning_rates: "),
        ("--config.grid.at_once=3", "config.grid.at_once: 3 runs cannot be shared by 8 devices"),
        ("--config.save_every=3", "save_every"),
        ("--config.shots=4", "config.shots"),
    ],
)
def test_what_a_grid_cannot_do_is_refused(repository, inputs, tmp_path, capsys, argument, says):
    assert _grid(repository, inputs, tmp_path / "runs", argument) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    assert not (tmp_path / "runs").exists()


def test_a_grid_does_not_go_into_a_result(repository, inputs, trained, tmp_path, capsys):
    shutil.copytree(trained / NAMES[0], tmp_path / "result")
    assert _grid(repository, inputs, tmp_path / "result") == 2
    assert "is a result itself" in capsys.readouterr().err


def test_rates_have_folders_of_their_own():
    config = get_config("grid")
    config.grid.learning_rates = (1e-4, 2e-4)
    names = run_configs(config)
    assert len(names) == 12 and "shots-16/learning-rate-0.0001/seed-2" in names
    assert names["shots-64/learning-rate-0.0002/seed-0"].learning_rate == 2e-4
