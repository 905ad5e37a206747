"""The command line: which job runs, with which config, and what a job's failure becomes."""

import ast
import importlib
import pathlib
import sys
import types

import pytest
import support

from clinmerge_jax import command_line, main
from clinmerge_jax.errors import BadInput


@pytest.fixture
def config_file(tmp_path):
    """A config file with the fields that these tests set."""
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=''):\n"
        "    return ConfigDict(dict(job='merge', argument=arg, number=1, size=1.0, flag=False, text=''))\n"
    )
    return path


@pytest.fixture
def jobs(monkeypatch):
    """Replaces every job by one that records its config."""
    runs = []
    for name in main.JOBS:
        record = lambda config, name=name: runs.append((name, config))  # noqa: E731
        monkeypatch.setitem(sys.modules, f"clinmerge_jax.jobs.{name}", types.SimpleNamespace(run=record))
    return runs


@pytest.mark.parametrize("job", main.JOBS)
def test_config_names_the_job(config_file, jobs, job):
    assert support.run_command(f"--config={config_file}", f"--config.job={job}") == 0
    assert [name for name, _ in jobs] == [job]


@pytest.mark.parametrize("name", ["merge", "sft", "miniature"])
def test_each_config_file_names_a_job_that_exists(repository, jobs, name):
    """And it can be run without any other argument."""
    assert support.run_command(f"--config={repository}/configs/{name}.py") == 0
    ((job, config),) = jobs
    assert job == config.job and (repository / "clinmerge_jax" / "jobs" / f"{job}.py").is_file()


def test_fields_and_argument_reach_the_job(config_file, jobs):
    fields = ["number=2", "size=3", "flag=true", "text=a b"]
    assert support.run_command(f"--config={config_file}:slow", *(f"--config.{field}" for field in fields)) == 0
    ((_, config),) = jobs
    expected = {"job": "merge", "argument": "slow", "number": 2, "size": 3.0, "flag": True, "text": "a b"}
    assert config.to_dict() == expected
    with pytest.raises(AttributeError):
        config.unknown = 1


def test_flags_may_come_in_two_words(config_file, jobs):
    assert support.run_command("--config", str(config_file), "--config.number", "5") == 0
    assert jobs[0][1].number == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: --config: is missing; give --config=configs/merge.py"),
        (["--config.number=2"], "error: --config.number: is unknown; start with --config="),
        (["--config.number=2", "--config={file}"], "error: --config: Found --config.number=2 in argv before"),
        (["--config={file}", "--config.job=quench"], "error: config.job: 'quench' is unknown; choose from merge, "),
        (["--config={file}", "--config.job="], "error: config.job: '' is unknown; choose from merge, "),
        (
            ["--config={file}", "--config.numbr=2"],
            "error: config.numbr: is not a field of this job; did you mean number",
        ),
        (
            ["--config={file}", "--config.xyz=2"],
            "error: config.xyz: is not a field of this job; its config file lists ",
        ),
        (["--config={file}", "--config.number=two"], "error: --config.number=two: "),
        (["--config={file}", "--config.number=1.5"], "error: --config.number=1.5: "),
        (["--config={file}", "--config.flag=2"], "error: --config.flag=2: "),
        (["--config={file}", "--number=2"], "error: --number: is unknown; start with --config="),
        (["--config={file}", "number=2"], "error: number=2: is an unknown argument; fields are set with --config."),
        (["--config={file}x"], "error: --config: No such file or directory: '{file}x'; start with --config="),
        (["--config="], "error: --config: "),
    ],
)
def test_bad_command_line_runs_nothing(config_file, jobs, capfd, arguments, line):
    assert support.run_command(*(argument.format(file=config_file) for argument in arguments)) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(line.format(file=config_file)) and "; " in error
    assert jobs == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1", "error: --config: module 'config_config' has no attribute 'get_config'; start with"),
        (
            "import ml_collections\nget_config = ml_collections.ConfigDict",
            "error: config.job: is not a field of this job",
        ),
        ("def get_config():\n    raise ValueError('no luck')", "error: --config={file}: no luck; "),
        (
            "from clinmerge_jax.errors import BadInput\ndef get_config():\n    raise BadInput('x: is y; z')",
            "error: x: is y; z",
        ),
    ],
)
def test_config_file_at_fault(config_file, capfd, text, line):
    config_file.write_text(text)
    assert support.run_command(f"--config={config_file}") == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(line.format(file=config_file))


def test_bad_input_of_a_job_is_one_line_and_status_2(config_file, jobs, monkeypatch, capfd):
    def run(config):
        raise BadInput("config.text: is\nwrong; fix it")

    monkeypatch.setattr(sys.modules["clinmerge_jax.jobs.merge"], "run", run)
    assert support.run_command(f"--config={config_file}") == 2
    assert capfd.readouterr().err == "error: config.text: is wrong; fix it\n"


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("bug"), KeyError("bug")])
def test_failure_of_a_job_is_no_bad_input(config_file, jobs, monkeypatch, error):
    """A real process ends with a traceback and status 1."""

    def run(config):
        raise error

    monkeypatch.setattr(sys.modules["clinmerge_jax.jobs.merge"], "run", run)
    with pytest.raises(type(error)):
        support.run_command(f"--config={config_file}")


def test_main_is_short_and_imports_no_jax(repository):
    """So that a bad command line is answered at once."""
    text = (repository / "clinmerge_jax" / "main.py").read_text()
    assert len(text.splitlines()) <= 80
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    roots = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in nodes}
    assert roots <= {"absl", "clinmerge_jax", "collections", "importlib", "logging", "ml_collections", "re", "sys"}


def test_command_lines_in_config_files_name_existing_files(repository):
    for path in sorted(pathlib.Path(repository, "configs").glob("*.py")):
        assert f"--config=configs/{path.name}" in ast.get_docstring(ast.parse(path.read_text()))
    assert importlib.import_module("clinmerge_jax.main").JOBS == main.JOBS


def test_a_message_that_quotes_pages_of_a_file_is_cut_in_its_middle(capsys):
    with pytest.raises(SystemExit) as exit:
        command_line.refuse(f"f.json: max_position_embeddings is {'é' * 9000!r}; it must be an integer")
    line = capsys.readouterr().err
    assert exit.value.code == 2 and len(line) < 1300
    assert line.startswith("error: f.json: max_position_embeddings is 'é")
    assert "é [...] é" in line and line.endswith("é'; it must be an integer\n")
