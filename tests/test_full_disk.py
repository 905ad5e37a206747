"""A disk that fills ends a job in one line with status 1, and what is there stays resumable."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import resource
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
import support
from support import in_every_run

from clinmerge_jax import full_disk
from clinmerge_jax.errors import BadInput
from clinmerge_jax.results.records import ResultsFolder
from clinmerge_jax.training.checkpoints import Checkpoints
from clinmerge_jax.training.log import LOG_FILE, TrainingLog

LIMIT = 40_000  # bytes of a file


@contextlib.contextmanager
def full_at(nbytes):
    """No file can grow over so many bytes, which Linux reports much as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cached = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # read alone: new files are larger
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", cached)


@pytest.fixture
def parents(tmp_path):
    sizes = {"hidden_size": 64, "vocab_size": 200, "intermediate_size": 96}
    for seed, role in enumerate(("instruct", "clinical")):
        support.write_llama(tmp_path / role, seed, **sizes)
    return tmp_path


@pytest.mark.parametrize("job", ["", ":inspect", ":extract_lora", "mesh"])
def test_a_job_ends_in_one_line_and_goes_on_from_what_is_there(job, parents, repository, capfd):
    roles = {":extract_lora": ("model", "base")}.get(job, ("instruct", "clinical"))
    fields = [f"{field}={parents / role}" for field, role in zip(roles, ("instruct", "clinical"))]
    fields += [f"output={parents}/out"] + ([] if job == ":extract_lora" else ["base="])
    fields += ["engine=mesh"] if job == "mesh" else []
    config = f"--config={repository}/configs/merge.py{job if job.startswith(':') else ''}"
    command = [config, *(f"--config.{field}" for field in fields)]
    with full_at(LIMIT if job != ":inspect" else 2_000):
        assert support.run_command(*command) == 1
    errors = capfd.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    assert "cannot be written (File too large); free some space and run the same command again" in lines[0]
    assert (parents / ".out.partial").is_dir() and not (parents / "out").exists()
    assert support.run_command(*command) == 0
    assert (parents / "out" / "provenance.json").is_file()


class Job(NamedTuple):
    """A job that runs out of space when some of its work is done.

    Attributes:
      config: the file, with its argument.
      fields: of the config, "{0}" standing for the folder of the test.
      limit: bytes that a file can have.
      goes_on: what the rerun says of the work that is there, a regular expression; "" if none can be.
    """

    config: str
    fields: str
    limit: int
    goes_on: str = ""


_SFT = "model={0}/model task={0}/rows.jsonl chat_template=False length=16 batch_size=4 lora.targets=q_proj"
JOBS = {
    "generate": Job(
        "generate.py", "model={0}/model prompts={0}/rows.jsonl max_new_tokens=4 slots=4", 1300,
        r"continuing the interrupted run: \d+ of 24 answers",
    ),
    "evaluate": Job(
        "evaluate.py",
        "model=one={0}/model,two={0}/model tasks= own.name=ends own.test={0}/rows.jsonl own.source=prompt"
        " own.target=completion own.max_new_tokens=4 length=32 slots=4 limit=12", 31_000,
        "1 are there already, 1 to do",
    ),
    "compare": Job("compare.py", "model={0}/model prompts={0}/rows.jsonl max_new_tokens=4 limit=2", 800),
    "a state of sft": Job("sft.py", _SFT + " lora.rank=64 epochs=0.5", 12_000),
    "the weights of sft": Job(
        "sft.py", _SFT + " lora.rank=1 epochs=0.5 merge_adapter=True", LIMIT, "continuing after step 3"
    ),
    "the weights of full sft": Job(
        "sft.py:full", _SFT + " freeze=proj|embed|head epochs=0.5", LIMIT, "continuing after step 3"
    ),
    "sft_grid": Job(
        "sft.py:grid", _SFT + " lora.rank=1 epochs=8 grid.seeds=0 grid.shots=4,12", 9_000, "1 runs of 24 to 24 steps"
    ),
    "convert": Job(
        "convert.py", "source={0}/model dtype=float32 max_shard_gb=3e-5", LIMIT, "continuing the interrupted conversion"
    ),
    "convert to Orbax": Job("convert.py", "source={0}/model format=orbax", LIMIT),
}  # fmt: skip


def _prepare(job, tmp, repository):
    """Makes a job's model and rows; gives its command line, which lacks the output."""
    sizes = {"hidden_size": 64, "vocab_size": 100, "intermediate_size": 300, "num_hidden_layers": 1}
    support.write_tokenizer(support.write_llama(tmp / "model", **sizes))  # the first weights fit under LIMIT
    row = {"prompt": "the patient has", "completion": "a fever and cough"}
    (tmp / "rows.jsonl").write_text(24 * (json.dumps(row) + "\n"))
    fields = job.fields.format(tmp).split()
    return [f"--config={repository}/configs/{job.config}", *(f"--config.{field}" for field in fields)]


def _refused(errors):
    """Whether this is all that a full disk is to say."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors and "Exception ignored" not in errors, errors
    return "cannot be written (File too large); free some space and run the same command again" in lines[0]


def _files(folder):
    """Relative paths without what is random in the names of Orbax, TensorBoard and keys."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"[0-9a-f]{8,}|[0-9]{8,}", "", name) for name in names}


def _weights(folder):
    return {path.stat().st_ino for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name", in_every_run(JOBS, lambda name: name in ("generate", "evaluate", "a state of sft")))
def test_jobs_that_run_a_model_end_in_one_line_and_go_on(name, tmp_path, repository, capfd, caplog):
    job = JOBS[name]
    command = _prepare(job, tmp_path, repository)
    assert support.run_command(*command, f"--config.output={tmp_path}/undisturbed") == 0  # compiles what is needed
    before = _weights(tmp_path)
    out = tmp_path / "out"
    command.append(f"--config.output={out}")
    capfd.readouterr()
    with full_at(job.limit):
        assert support.run_command(*command) == 1
    assert _refused(capfd.readouterr().err)
    assert not any((out / end).exists() for end in ("provenance.json", "summary.md", "grid.json"))
    made = _weights(tmp_path) - before
    assert bool(made) == (name in ("convert", "sft_grid"))
    caplog.clear()
    assert support.run_command(*command) == 0
    assert re.search(job.goes_on, caplog.text + capfd.readouterr().out)
    assert made <= _weights(out), "weights that were there are not made again"
    assert _files(out) == _files(tmp_path / "undisturbed") and not list(tmp_path.glob(".out*"))


_LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("clinmerge_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "a state of sft", "sft_grid", "convert to Orbax"])
def test_a_process_of_its_own_says_nothing_more_at_its_end(name, tmp_path, repository):
    command = _prepare(JOBS[name], tmp_path, repository)
    program = [sys.executable, "-c", _LIMITED, str(JOBS[name].limit), *command, f"--config.output={tmp_path}/out"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    ended = subprocess.run(program, cwd=repository, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1 and _refused(ended.stderr)


def _full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "/place/folder")


@pytest.mark.parametrize("name", ["convert", "evaluate"])
def test_no_room_for_the_folder_itself_is_a_full_disk_too(name, tmp_path, repository, capfd, monkeypatch):
    command = [*_prepare(JOBS[name], tmp_path, repository), f"--config.output={tmp_path}/out"]
    monkeypatch.setattr(pathlib.Path, "mkdir", _full)
    assert support.run_command(*command) == 1
    assert "error: /place/folder: cannot be written (No space left on device); free" in capfd.readouterr().err


def test_input_that_a_full_disk_spoils_is_said_with_status_1(tmp_path, repository, capfd, monkeypatch):
    def run(config):
        try:
            _full()
        except OSError as error:
            raise BadInput("config.data_dir: no room; name another") from error

    monkeypatch.setattr("clinmerge_jax.jobs.convert.run", run)
    assert support.run_command(f"--config={repository}/configs/convert.py") == 1
    assert "error: config.data_dir: no room; name another" in capfd.readouterr().err


def test_a_folder_of_results_that_could_not_be_made_is_no_longer_locked(tmp_path):
    with full_at(1), pytest.raises(OSError, match="File too large"):
        ResultsFolder(str(tmp_path / "out"))
    with ResultsFolder(str(tmp_path / "out")) as folder:
        assert not folder.known


def test_a_log_that_cannot_be_written_raises_and_is_closed(tmp_path):
    with full_at(LIMIT), pytest.raises(OSError, match="File too large"), TrainingLog(tmp_path / "log") as log:
        for step in range(2000):  # events are larger than lines, so that they are the first without room
            log.add(step, {"loss": 1.0})
    kept = (tmp_path / "log" / LOG_FILE).read_bytes().splitlines()
    assert 500 < len(kept) < 2000
    with TrainingLog(tmp_path / "log", after=400) as again:
        again.add(401, {"loss": 2.0})
    assert again.column("loss") == [*((step, 1.0) for step in range(401)), (401, 2.0)]


def test_event_loops_do_not_print_a_full_disk_that_is_reported_anyway(caplog):
    full_disk.report_once()
    for error in (ValueError("Error writing: No space left on device"), ValueError("a bug")):
        logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=error)
    assert [record.exc_info[1].args for record in caplog.records] == [("a bug",)]


_FAILED = """
import sys, threading
from clinmerge_jax import full_disk
with full_disk.no_waiting():
    threading.Thread(target=threading.Event().wait).start()
    print("the line", file=sys.stderr)
    sys.exit(1)
"""


def test_a_failed_run_ends_though_threads_still_wait(repository):
    ended = subprocess.run([sys.executable, "-c", _FAILED], cwd=repository, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1 and ended.stderr == "the line\n"


def test_a_state_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    checkpoints = Checkpoints(tmp_path / "steps")
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoints.save(1, {"x": jnp.zeros(1000)}, {})
    assert caught.value.errno == errno.ENOSPC and checkpoints.latest() is None
    checkpoints.close()


def test_orbax_and_its_threads_report_a_full_disk_once(tmp_path, capfd):
    checkpoints = Checkpoints(tmp_path / "steps")
    state = {f"leaf {index}": jnp.arange(20_000.0) * index for index in range(8)}
    full_disk.report_once()
    with full_at(LIMIT), pytest.raises(ValueError) as caught:
        checkpoints.save(1, state, {"step": 1})
        checkpoints.wait()
    with contextlib.suppress(ValueError):
        checkpoints.close()
    assert full_disk.message(full_disk.cause_of(caught.value)).startswith("config.output: cannot be written (File too")
    assert "Traceback" not in capfd.readouterr().err


def test_other_errors_are_no_full_disk():
    assert full_disk.cause_of(OSError(errno.ENOENT, "No such file or directory", "x")) is None
    assert full_disk.cause_of(ValueError("no")) is None
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/place/file")
        except OSError as error:
            raise ValueError("wrapped") from error
    except ValueError as error:
        assert full_disk.message(full_disk.cause_of(error)).startswith("/place/file: cannot be written (No space")
    assert json.dumps(full_disk.message(OSError(errno.EDQUOT, "Disk quota exceeded"))).startswith('"config.output: ')
