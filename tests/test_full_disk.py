"""A disk that fills ends a job in one line with status 1, and what is there stays resumable."""

import contextlib
import errno
import json
import resource
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import support

from clinmerge_jax import full_disk
from clinmerge_jax.checkpoint.output import refuse_place
from clinmerge_jax.errors import BadInput
from clinmerge_jax.training.checkpoints import Checkpoints
from clinmerge_jax.training.log import TrainingLog

LIMIT = 40_000  # bytes of a file


@contextlib.contextmanager
def full_at(nbytes):
    """No file can grow over so many bytes, which Linux reports much as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # its files are larger
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_enable_compilation_cache", cached)


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
    assert "cannot be written (File too large); free some space, and the same command goes on" in lines[0]
    assert (parents / ".out.partial").is_dir() and not (parents / "out").exists()
    assert support.run_command(*command) == 0
    assert (parents / "out" / "provenance.json").is_file()


def _rows(path, count, **columns):
    path.write_text("".join(json.dumps({name: text for name, text in columns.items()}) + "\n" for _ in range(count)))
    return path


JOBS = {
    "generate": ("model={0}/instruct", "prompts={0}/prompts.jsonl", "max_new_tokens=4"),
    "evaluate": (
        "model=one={0}/instruct", "tasks=", "own.name=starts", "own.test={0}/prompts.jsonl", "own.source=prompt",
        "own.target=completion", "own.max_new_tokens=4", "length=32",
    ),
    "compare": ("model={0}/instruct", "prompts={0}/prompts.jsonl", "max_new_tokens=4", "limit=0"),
    "sft": ("model={0}/instruct", "task={0}/prompts.jsonl", "length=32", "batch_size=4", "epochs=1"),
    "sft:full": ("model={0}/instruct", "task={0}/prompts.jsonl", "length=32", "batch_size=4", "epochs=1"),
    "sft:grid": (
        "model={0}/instruct", "task={0}/prompts.jsonl", "length=32", "batch_size=4", "epochs=1", "grid.seeds=0,1",
        "grid.shots=4",
    ),
    "convert": ("source={0}/instruct", "dtype=float32"),
}  # fmt: skip
LIMITS = {"generate": 2000, "evaluate": 2000, "compare": 3000}  # progress goes into files too, in tests


@pytest.mark.parametrize("job", JOBS)
def test_jobs_that_run_a_model_end_in_one_line_and_go_on(job, parents, repository, capfd):
    support.write_tokenizer(parents / "instruct")
    _rows(parents / "prompts.jsonl", 40, prompt="the patient has", completion="a fever and cough")
    name, _, variant = job.partition(":")
    fields = [*JOBS[job], "output={0}/out", *(() if job.startswith("compare") else ("chat_template=False",))]
    fields = [field.format(parents) for field in fields if name != "convert" or "chat" not in field]
    config = f"--config={repository}/configs/{name}.py{':' + variant if variant else ''}"
    command = [config, *(f"--config.{field}" for field in fields)]
    with full_at(LIMITS.get(job, LIMIT)):
        status = support.run_command(*command)
    errors = capfd.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in errors, errors
    assert "cannot be written (File too large); free some space, and the same command goes on" in lines[0]
    assert not (parents / "out" / "provenance.json").exists()
    assert support.run_command(*command) == 0


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


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of the events' file, as it is collected
def test_a_log_that_cannot_be_written_says_so_and_keeps_nobody_waiting(tmp_path):
    with pytest.raises(OSError, match="File too large"), full_at(2000), TrainingLog(tmp_path / "log") as log:
        for step in range(10_000):
            log.add(step, {"loss": 1.0})


def test_what_the_interpreter_closes_on_a_full_disk_is_not_reported_again(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    full_disk.report_once.__wrapped__()
    for error in (OSError(errno.ENOSPC, "No space left on device"), ValueError("other")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(one.exc_value) for one in told] == ["other"]


def test_a_place_on_a_full_disk_is_no_bad_input(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
    with pytest.raises(OSError) as caught:
        refuse_place("make", tmp_path, full)
    assert caught.value is full
    with pytest.raises(BadInput, match="cannot make .* \\(Permission denied\\); name another folder"):
        refuse_place("make", tmp_path, OSError(errno.EACCES, "Permission denied"))


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
