"""Several processes as one run: the bytes of one process, one end for all, and flags that are refused."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from support import in_every_run, run_command, run_process, write_llama, write_tokenizer

from clinmerge_jax.errors import BadInput
from clinmerge_jax.main import JOBS
from clinmerge_jax.parallel import distributed

pytestmark = pytest.mark.alone

LIMIT = 60  # seconds in which a run ends once one of its processes failed
SIZES = {
    "vocab_size": 51,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
}
LARGE = {**SIZES, "vocab_size": 16_385, "hidden_size": 256, "head_dim": 32}
SHARD_GB = "--config.max_shard_gb=0.0001"
GONE = "another task died|another process is gone|one was killed"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one process ended."""

    status: int
    out: str
    err: str
    seconds: float


class Run:
    """Processes of this Python that form one run.

    Args:
      folder: for what they print.
      commands: the arguments of each.
      environments: variables of each, besides those of the tests; None removes one.
    """

    def __init__(self, repository, folder, commands, environments):
        self.folder = folder
        self.processes = []
        for index, (command, changes) in enumerate(zip(commands, environments)):
            changes = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PYTHONUNBUFFERED": "1", **changes}
            environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
            with self.path(index, "out").open("w") as out, self.path(index, "err").open("w") as err:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        cwd=repository,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                    )
                )
        self.start()

    def path(self, index, stream):
        """The file with what a process printed."""
        return self.folder / f"{index}.{stream}"

    def text(self, index, stream):
        """What a process printed, with its carriage returns."""
        return self.path(index, stream).read_bytes().decode()

    def start(self):
        """Begins to count the seconds until the processes end."""
        self.since = time.monotonic()
        self.seconds = [None] * len(self.processes)

    def kill_one(self, index):
        """Kills a process; the seconds count from then on."""
        self.processes[index].send_signal(signal.SIGKILL)
        self.start()

    def running(self):
        """How many processes run."""
        for index, process in enumerate(self.processes):
            if self.seconds[index] is None and process.poll() is not None:
                self.seconds[index] = time.monotonic() - self.since
        return self.seconds.count(None)

    def end(self):
        """Waits for all processes, within the limit, and returns how they ended."""
        try:
            while self.running() and time.monotonic() < self.since + LIMIT:
                time.sleep(0.01)
        finally:
            self.kill()
        ended = [
            Ended(process.returncode, self.text(index, "out"), self.text(index, "err"), seconds)
            for index, (process, seconds) in enumerate(zip(self.processes, self.seconds))
        ]
        assert None not in self.seconds, ended
        return ended

    def kill(self):
        """Leaves no process behind."""
        for process in self.processes:
            process.kill()
            process.wait(LIMIT)


@pytest.fixture(scope="module")
def start(repository, tmp_path_factory):
    """Starts the processes of one run."""
    runs = []

    def start(commands, environments=({}, {})):
        runs.append(Run(repository, tmp_path_factory.mktemp("printed"), commands, environments))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


_WORKER = """
import sys, time
import jax, numpy as np
from clinmerge_jax.parallel import distributed

def collective():
    mesh = jax.make_mesh((8,), ("x",))
    x = jax.make_array_from_callback((8,), jax.NamedSharding(mesh, jax.P("x")), lambda index: np.arange(8.0)[index])
    return jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P())), x

where, *numbers = sys.argv[1:]
with distributed.session(where, *map(int, numbers)):
    index = jax.process_index()
"""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _workers(body):
    """Two processes with this body of their session."""
    address, script = f"127.0.0.1:{_free_port()}", _WORKER + textwrap.indent(textwrap.dedent(body), "    ")
    return [["-c", script, address, "2", str(index)] for index in range(2)]


def _main(*arguments, only=((), ())):
    """Two processes of the command line, with arguments that only one has."""
    flags = [*arguments, f"--distributed=127.0.0.1:{_free_port()}", "--num_processes=2"]
    return [["-m", "clinmerge_jax.main", *flags, f"--process_id={index}", *only[index]] for index in range(2)]


def _merge(parents, output, method="linear", engine="mesh", mesh=(0, 0, 0), evaluate=""):
    """The arguments of a merge."""
    axes = zip(("data", "fsdp", "tensor"), mesh)
    return [
        f"--config=configs/merge.py:{method}",
        f"--config.engine={engine}",
        *(f"--config.mesh.{axis}={size}" for axis, size in axes),
        f"--config.instruct={parents[0]}",
        f"--config.clinical={parents[1]}",
        "--config.base=",
        f"--config.evaluate={evaluate}",
        f"--config.output={output}",
        SHARD_GB,
    ]


def _files(folder, besides=("provenance.json",)):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in besides}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Two tiny checkpoints of several weight files."""
    folder = tmp_path_factory.mktemp("parents")
    folders = [write_llama(folder / name, seed, shards=3, **SIZES) for seed, name in enumerate(("one", "two"))]
    for parent in folders:
        write_tokenizer(parent)
    return folders


@pytest.fixture(scope="module")
def alone(repository, parents, tmp_path_factory):
    """What the streaming engine writes in one process, by method: folders named "merged"."""
    folder = tmp_path_factory.mktemp("alone")
    for method in ("linear", "slerp"):
        process = run_process(repository, *_merge(parents, folder / method / "merged", method, "streaming"))
        assert process.returncode == 0, process.stderr
    return {method: folder / method / "merged" for method in ("linear", "slerp")}


def test_two_processes_write_the_bytes_of_one_and_only_the_first_talks(start, parents, alone, tmp_path):
    columns_cut = (1, 8, 1)  # across the processes
    first, second = run = start(_main(*_merge(parents, tmp_path / "merged", "slerp", mesh=columns_cut))).end()
    assert [ended.status for ended in run] == [0, 0], run
    assert _files(tmp_path / "merged") == _files(alone["slerp"])
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == 3
    assert (
        "How much instruct and clinical differ\n|" in first.out
        and "\r" in first.err
        and "merge of 30 tensors" in first.err
    )
    assert not set("|%\r") & set(second.out + second.err) and "merge" not in second.out + second.err
    assert "Traceback" not in first.err + second.err


@pytest.mark.slow
def test_two_processes_measure_what_the_merge_keeps(start, parents, alone, tmp_path):
    text = tmp_path / "held.jsonl"
    text.write_text('{"text": "the patient has a fever"}\n{"text": "a cough and a fever"}\n')
    arguments = _merge(parents, tmp_path / "merged", mesh=(8, 1, 1), evaluate=f"notes={text}")
    first, second = run = start(_main(*arguments)).end()
    assert [ended.status for ended in run] == [0, 0], run
    rows = [json.loads(line) for line in (tmp_path / "merged" / "results.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["clinical", "instruct", "merged"]
    assert all(f"{row['estimate']:.3f}" in first.out for row in rows)
    assert not set("|%\r") & set(second.out + second.err)
    besides = ("provenance.json", "README.md", "results.jsonl")
    assert _files(tmp_path / "merged", besides) == _files(alone["linear"], besides)


def test_two_processes_find_the_result_that_one_has_finished(start, parents, alone):
    before = _files(alone["linear"], ())
    first, second = run = start(_main(*_merge(parents, alone["linear"]))).end()
    assert [ended.status for ended in run] == [0, 0], run
    assert "finished already" in first.out and second.out == ""
    assert _files(alone["linear"], ()) == before


@pytest.mark.parametrize("bad", in_every_run([0, 1], bool))
def test_bad_input_of_one_process_ends_both_with_its_line(start, parents, tmp_path, bad):
    homes = [tmp_path / "home0", tmp_path / "home1"]
    for index, home in enumerate(homes):  # as on machines of which one lacks the model's weights
        (home / "model").mkdir(parents=True)
        files = parents[0].glob("config.json" if index == bad else "*")
        for file in files:
            (home / "model" / file.name).symlink_to(file)
    commands = _main(*_merge(["~/model", parents[1]], tmp_path / "merged"))
    run = start(commands, [{"HOME": str(home)} for home in homes]).end()
    assert [ended.status for ended in run] == [2, 2], run
    line = f"error: config.instruct: {homes[bad]}/model has neither "
    assert line in run[bad].err and f"process {bad}: {line}" in run[1 - bad].err
    assert "Traceback" not in run[0].err + run[1].err
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_bad_input_of_all_ends_all_with_the_line(start, parents, tmp_path):
    run = start(_main(*_merge(parents, tmp_path / "merged", engine="streaming"))).end()
    assert [ended.status for ended in run] == [2, 2], run
    for ended in run:
        *before, line = ended.err.splitlines()
        assert re.fullmatch(r"(process [01]: )?error: config.engine: streaming merges in one process; .+", line)
        assert all("waiting for the others" in other for other in before)
    assert list(tmp_path.iterdir()) == []


DIFFERENT = [("t", "0.3"), ("mesh.fsdp", "8"), ("dtype", "float32"), ("output", "elsewhere")]


@pytest.mark.parametrize("difference", in_every_run(DIFFERENT, lambda one: one[0] == "mesh.fsdp", "=".join))
def test_processes_with_different_configs_are_refused(start, parents, tmp_path, difference):
    field, value = difference
    run = start(_main(*_merge(parents, tmp_path / "merged"), only=[[], [f"--config.{field}={value}"]])).end()
    assert [ended.status for ended in run] == [2, 2], run
    line = f"error: --distributed: the config ({field.split('.')[0]}) of process 1 differs from that of process 0"
    assert line in run[1].err and f"process 1: {line}" in run[0].err
    assert list(tmp_path.iterdir()) == []


def test_processes_with_different_parents_in_one_place_are_refused(start, parents, tmp_path):
    """As on machines whose disks hold different models under one path."""
    homes = [tmp_path / "home0", tmp_path / "home1"]
    for home, parent in zip(homes, parents):
        home.mkdir()
        (home / "model").symlink_to(parent)
    (tmp_path / "small").mkdir()
    write_llama(tmp_path / "small" / "model", **{**SIZES, "num_hidden_layers": 2})
    homes[1] = tmp_path / "small"
    commands = _main(*_merge(["~/model", "~/model"], tmp_path / "merged"))
    run = start(commands, [{"HOME": str(home)} for home in homes]).end()
    assert [ended.status for ended in run] == [2, 2], run
    assert "the content of the folder (instruct) of process 1 differs from that of process 0" in run[1].err


@pytest.mark.slow
def test_an_output_folder_that_the_other_process_does_not_see_is_refused(start, parents, tmp_path):
    environments = [{"HOME": str(tmp_path / name)} for name in ("home0", "home1")]
    run = start(_main(*_merge(parents, "~/merged")), environments).end()
    assert [ended.status for ended in run] == [2, 2], run
    line = f"process 1: error: config.output: process 1 does not see {tmp_path}/home1/.merged.partial"
    assert line in run[0].err
    assert not list(tmp_path.glob("*/merged")) and not list(tmp_path.glob("*/.merged.partial"))


def test_a_run_ends_at_sigterm(start):
    run = start(_workers("print('ready', flush=True)\ntime.sleep(100)"))
    while not all("ready" in run.text(index, "out") for index in range(2)):
        time.sleep(0.05)
    for process in run.processes:
        process.terminate()
    assert [ended.status for ended in run.end()] == [-signal.SIGTERM] * 2


def test_a_port_that_is_taken_is_refused(start):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = [f"--distributed=127.0.0.1:{port}", "--num_processes=2", "--process_id=0"]
        (ended,) = start([["-m", "clinmerge_jax.main", "--config=configs/merge.py", *flags]], [{}]).end()
    assert ended.status == 2 and "the port cannot be used" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("failing", in_every_run([0, 1], bool))
@pytest.mark.parametrize(
    "wait",
    ["distributed.barrier('the other')", "f, x = collective(); f(x).block_until_ready()"],
    ids=["in a barrier", "in a collective"],
)
def test_a_process_that_fails_ends_the_one_that_waits(start, failing, wait):
    body = f"""
    if index == {failing}:
        raise RuntimeError("boom")
    {wait}
    time.sleep(100)
    """
    run = start(_workers(body)).end()
    assert [ended.status for ended in run] == [1, 1], run
    assert "Traceback" in run[failing].err and "\nerror: RuntimeError: boom" in run[failing].err
    assert f"process {failing}: error: RuntimeError: boom" in run[1 - failing].err
    assert "Traceback" not in run[1 - failing].err


@pytest.mark.slow
def test_a_full_disk_in_one_process_is_one_line_in_each(start):
    body = """
    if index == 1:
        raise ValueError("wrapped") from OSError(28, "No space left on device", "/place/file")
    distributed.barrier("the other")
    """
    run = start(_workers(body)).end()
    assert [ended.status for ended in run] == [1, 1], run
    line = "error: /place/file: cannot be written (No space left on device); free some space"
    for ended, begins in zip(run, (f"process 1: {line}", line)):
        assert "Traceback" not in ended.err
        assert sum(one.startswith(begins) for one in ended.err.splitlines()) == 1, ended.err


@pytest.mark.slow
@pytest.mark.parametrize("failing", in_every_run([0, 1], bool))
def test_the_first_process_stays_until_a_slow_one_has_ended(start, failing):
    body = f"""
    class Slow:
        def write(self, text):
            time.sleep(0.2)
            return sys.__stderr__.write(text)

        def flush(self):
            time.sleep(0.2)
            sys.__stderr__.flush()

    if index == 1:
        sys.stderr = Slow()
    if index == {failing}:
        raise RuntimeError("boom")
    distributed.barrier("the other")
    """
    run = start(_workers(body)).end()
    assert [ended.status for ended in run] == [1, 1], run
    assert f"process {failing}: error: RuntimeError: boom" in run[1 - failing].err


def test_what_the_first_process_raises_while_the_others_wait_for_it_ends_all(start):
    first, second = run = start(_workers("distributed.on_first(lambda: {}['nothing'])")).end()
    assert [ended.status for ended in run] == [1, 1], run
    assert "error: KeyError: 'nothing'" in first.err
    assert "process 0: error: KeyError: 'nothing'" in second.err


_READY = "print('ready', flush=True)\n"
_BARRIER = _READY + "if index != {killed}: distributed.barrier('the other')\ntime.sleep(100)"
_COLLECTIVE = "f, x = collective()\nf(x).block_until_ready()\n" + _READY + "while True: f(x).block_until_ready()"


@pytest.fixture(scope="module")
def large_parents(tmp_path_factory):
    """Two checkpoints of 19 MB."""
    folder = tmp_path_factory.mktemp("large")
    return [write_llama(folder / name, seed, **LARGE) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def killed(start, large_parents, tmp_path_factory, figures):
    """How each run ended of which a process was killed, by name; all at once, as they mostly wait.

    And the folders of the killed merge and of the same merge by the streaming engine.
    """
    output = tmp_path_factory.mktemp("killed") / "merged"
    runs = {f"barrier, {index}": (start(_workers(_BARRIER.format(killed=index))), index) for index in range(2)}
    runs["collective, 1"] = start(_workers(_COLLECTIVE)), 1
    runs["merge, 1"] = start(_main(*_merge(large_parents, output, "slerp"))), 1
    alone = tmp_path_factory.mktemp("alone") / "merged"
    reference = start([["-m", "clinmerge_jax.main", *_merge(large_parents, alone, "slerp", "streaming")]], [{}])
    deadline = time.monotonic() + 2 * LIMIT
    waiting = dict(runs)
    while any([run.running() for run, _ in runs.values()]) and time.monotonic() < deadline:
        for name, (run, index) in list(waiting.items()):
            begun = (output.parent / ".merged.partial").exists()
            if begun if name == "merge, 1" else "ready" in run.text(index, "out"):
                run.kill_one(index)
                del waiting[name]
        time.sleep(0.01)
    ended = {name: (run.end(), index) for name, (run, index) in runs.items()}
    for name, (run, index) in ended.items():
        figures.append(f"distributed, {name} killed: the other process ended after {run[1 - index].seconds:.1f} s")
    assert reference.end()[0].status == 0
    return ended, output, alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["barrier, 0", "barrier, 1", "collective, 1", "merge, 1"])
def test_a_killed_process_ends_the_other_which_says_so(killed, name):
    run, index = killed[0][name]
    other = run[1 - index]
    assert run[index].status == -signal.SIGKILL
    assert other.status not in (0, -signal.SIGKILL), other
    assert re.search(GONE, other.err), other.err
    assert other.seconds < LIMIT


@pytest.mark.slow
def test_a_merge_of_which_a_process_was_killed_leaves_no_result_and_a_rerun_finishes(start, killed, large_parents):
    _, output, alone = killed
    assert [path.name for path in output.parent.iterdir()] == [".merged.partial"]
    run = start(_main(*_merge(large_parents, output, "slerp"))).end()
    assert [ended.status for ended in run] == [0, 0], run
    assert "continuing the interrupted run" in run[0].err
    assert _files(output) == _files(alone)


def test_what_the_first_process_finds_reaches_all_in_order(start):
    body = """
    print("one", distributed.on_first(lambda: {"index": index, "list": [1, None]}))
    print("two", distributed.on_first(lambda: distributed.is_first()))
    """
    for ended in start(_workers(body)).end():
        assert ended.status == 0, ended.err
        assert ended.out == "one {'index': 0, 'list': [1, None]}\ntwo True\n"


def test_a_barrier_waits_for_all_and_may_be_passed_again(start):
    body = """
    for late in (0, 1):
        time.sleep(index == late)
        before = time.time()
        distributed.barrier("again")
        print(before, time.time())
    """
    run = start(_workers(body)).end()
    assert [ended.status for ended in run] == [0, 0], run
    times = [[tuple(map(float, line.split())) for line in ended.out.splitlines()] for ended in run]
    for passage in zip(*times):
        assert max(before for before, _ in passage) <= min(after for _, after in passage)


def test_one_process_is_first_and_waits_for_nobody(start):
    script = (
        _WORKER + "    distributed.barrier('a')\n    print(distributed.on_first(lambda: (1, 2)), jax.device_count())"
    )
    alone = [["-c", script, ""], ["-c", script, f"127.0.0.1:{_free_port()}", "1", "0"]]
    for command in alone:
        (ended,) = start([command], [{}]).end()
        assert (ended.status, ended.out) == (0, "(1, 2) 4\n"), ended


@pytest.mark.parametrize(
    "flags",
    [
        ["--distributed=nonsense"],
        ["--distributed=:1234", "--num_processes=2", "--process_id=0"],
        ["--distributed=127.0.0.1:", "--num_processes=2", "--process_id=0"],
        ["--distributed=127.0.0.1:65536", "--num_processes=2", "--process_id=0"],
        ["--distributed=127.0.0.1:1"],
        ["--distributed=127.0.0.1:1", "--num_processes=2"],
        ["--distributed=127.0.0.1:1", "--process_id=0"],
        ["--distributed=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
        ["--distributed=127.0.0.1:1", "--num_processes=2", "--process_id=-1"],
        ["--distributed=127.0.0.1:1", "--num_processes=0", "--process_id=0"],
        ["--distributed=auto", "--num_processes=2"],
        ["--distributed=auto", "--process_id=0"],
        ["--num_processes=2"],
        ["--process_id=0"],
    ],
    ids=" ".join,
)
def test_flags_that_do_not_fit_together_are_refused_by_one_line(repository, capfd, flags):
    assert run_command(f"--config={repository}/configs/merge.py", *flags) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(r"error: --distributed: .+\n", err) and out == ""


@pytest.mark.parametrize("job", sorted({*JOBS} - {"merge", "sft"}))
def test_jobs_of_one_process_refuse_more(repository, capfd, job):
    flags = ["--distributed=127.0.0.1:1", "--num_processes=2", "--process_id=0"]
    own = repository / "configs" / f"{job}.py"
    # The others are merge.py's.
    variants = {
        "sft_grid": "sft.py:grid", "correlate": "evaluate.py:correlate", "miniature_page": "miniature.py:page",
    }  # fmt: skip
    config = own if own.is_file() else f"{repository}/configs/{variants.get(job, f'merge.py:{job}')}"
    assert run_command(f"--config={config}", *flags) == 2
    assert re.fullmatch(rf"error: --distributed: {job} runs in one process; .+\n", capfd.readouterr().err)


def test_the_session_itself_refuses_numbers_without_an_address():
    with pytest.raises(BadInput, match="--distributed: is missing"):
        with distributed.session("", 2, 0):
            raise AssertionError("the body of a refused session runs")


_CLUSTERS = ("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_COORDINATOR", "CLOUD_TPU_", "JAX_LOCAL_DEVICE_IDS")


def _no_cluster():
    return {name: None for name in os.environ if name.startswith(_CLUSTERS)}


def test_auto_without_a_cluster_is_refused_by_one_line(start):
    command = ["-m", "clinmerge_jax.main", "--config=configs/merge.py", "--distributed=auto"]
    (ended,) = start([command], [_no_cluster()]).end()
    assert ended.status == 2 and ended.out == "", ended
    assert re.fullmatch(r"error: --distributed=auto: no cluster is found .+\n", ended.err)


def test_auto_finds_the_processes_of_a_slurm_job(start):
    slurm = {
        **_no_cluster(),
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(_free_port()),
    }
    environments = [{**slurm, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]
    script = _WORKER + "    f, x = collective()\n    print(f'sum {float(f(x))} {index} {jax.process_count()}')"
    run = start([["-c", script, "auto"]] * 2, environments).end()
    assert [ended.status for ended in run] == [0, 0], run
    assert [ended.out.splitlines()[-1] for ended in run] == ["sum 28.0 0 2", "sum 28.0 1 2"]
