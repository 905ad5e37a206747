"""Several processes as one run: start-up, work of the first process alone, and a common end.

`jax.distributed` connects the processes. Its key-value store carries what is not an array: results of the first
process, and the error of a process that failed. The store is under `jax._src`; Orbax and others use it there too.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import tqdm
from absl import logging
from jax._src import distributed as _jax_distributed

from clinmerge_jax.errors import BadInput, ending, one_line

HEARTBEAT_SECONDS = 20  # a process silent for longer counts as dead
_FOREVER_MS = 7 * 24 * 3600 * 1000  # others may be loading, writing or compiling; dead ones are noticed otherwise
_POLL_MS = 60_000
_FAREWELL_SECONDS = 5  # how long the first process waits for the others to print their last line,
_LAST_SECONDS = 1  # and then for them to exit
_OUTCOME = "clinmerge_jax/outcome"  # key of the error that ends all processes, or of the fact that there was none
_STOP = "clinmerge_jax/stop"
_AHEAD = 3  # steps between a request to stop and the last step
_DONE = "clinmerge_jax/done"  # key of a process that has nothing left to print

_count = itertools.count()
_ending = threading.Lock()  # held by the thread that ends this process
_at_bad_input: list[Callable[[], None]] = []


def is_first() -> bool:
    """Whether this process logs, draws progress and writes the small files."""
    return jax.process_index() == 0


def _client():
    return _jax_distributed.global_state.client


def barrier(name: str) -> None:
    """Waits until every process has reached this point.

    Args:
      name: a name for this point, for the error message of a process that waits in vain.
    """
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"clinmerge_jax/{next(_count)} {name}", _FOREVER_MS)


def on_first(function: Callable[[], Any]) -> Any:
    """Calls a function on the first process; all processes return its result.

    Args:
      function: returns something JSON-serialisable; the other processes wait for it. An exception ends all.
    """
    if jax.process_count() == 1:
        return function()
    key = f"clinmerge_jax/{next(_count)}"
    if is_first():
        _client().key_value_set(key, json.dumps(function()))
    return json.loads(_client().blocking_key_value_get(key, _FOREVER_MS))


def refuse_difference(what: str, value: Mapping[str, Any]) -> None:
    """Checks that every process has the same value.

    Args:
      what: the value's name for the message.
      value: JSON-serialisable, with the same keys in every process.

    Raises:
      BadInput: the value differs from the first process's.
    """
    value = json.loads(json.dumps(value))
    first = on_first(lambda: value)
    if value != first:
        where = next(key for key in value if value[key] != first.get(key))
        raise BadInput(
            f"--distributed: {what} ({where}) of process {jax.process_index()} differs from that of process 0; run the"
            " same command in every process"
        )
    barrier(f"{what} compared")  # no process starts writing while another one is about to refuse


def all_stop(step: int, told: bool) -> bool:
    """Returns whether all processes stop after this step, because one of them was told to stop.

    Every process calls this after each step. Processes are at most one step apart, because a step cannot end before all
    have begun it. So a process that is told to stop names a step that no process has taken yet.

    Args:
      step: the step that this process has begun.
      told: whether this process was told to stop.
    """
    if jax.process_count() == 1:
        return told
    if told:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process has already named a step
            _client().key_value_set(_STOP, str(step + _AHEAD), allow_overwrite=False)
    try:
        return step >= int(_client().key_value_try_get(_STOP))
    except jax.errors.JaxRuntimeError:  # no process was told to stop
        return False


def at_bad_input(function: Callable[[], None]) -> None:
    """Registers a clean-up for when another process's bad input ends this one without unwinding its stack."""
    if jax.process_count() > 1:
        _at_bad_input.append(function)


@contextlib.contextmanager
def session(where: str, processes: int | None = None, index: int | None = None) -> Iterator[None]:
    """Runs its body in this process as one of several.

    An error in one process ends all. That process prints its line or traceback, the others print the line with its
    process number, and all exit with its status: 2 for `BadInput` and 1 otherwise. If a process is killed, the others
    end within a minute with status 1 or, if JAX's own runtime notices first, with an abort (134) that says so.

    Args:
      where: "" for a single process; "auto" to have JAX find a TPU pod, SLURM, MPI or Kubernetes job; or HOST:PORT
        of the first process.
      processes: the number of processes, with HOST:PORT.
      index: the index of this process, from 0, with HOST:PORT.

    Raises:
      BadInput: the flags are inconsistent, or no cluster is found.
    """
    if not where:
        if processes is not None or index is not None:
            raise BadInput("--distributed: is missing beside --num_processes and --process_id; give HOST:PORT")
        yield
        return
    _initialize(where, processes, index)
    if jax.process_count() == 1:
        yield
        return
    listener = threading.Thread(target=_listen, daemon=True, name="listen for failures")
    listener.start()
    try:
        yield
        barrier("the end")
        if is_first():
            _client().key_value_set(_OUTCOME, json.dumps({"process": None}))
        listener.join()
    except BaseException as error:
        end = ending(error)
        if end is not None:
            _end(*end)
        traceback.print_exc()
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        hint = " (where no other process shows an error of its own, one was killed)" * lost
        _end(f"{type(error).__name__}: {error}{hint}", 1)


def _initialize(where: str, processes: int | None, index: int | None) -> None:
    if where == "auto":
        if processes is not None or index is not None:
            raise BadInput("--distributed: auto finds --num_processes and --process_id itself; leave them out")
        arguments: dict[str, Any] = {}
    else:
        host, colon, port = where.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 1 << 16):
            raise BadInput(f"--distributed: {where!r} is neither auto nor HOST:PORT of the first process")
        if processes is None or index is None or not 0 <= index < processes:
            raise BadInput(
                f"--distributed: {where} needs --num_processes=N and --process_id=I with 0 <= I < N, the same N"
                " everywhere"
            )
        if index == 0:
            _refuse_taken_port(where, int(port))
        arguments = {"coordinator_address": where, "num_processes": processes, "process_id": index}
        logging.info("process %d of %d: waiting for the others at %s, up to 5 minutes", index, processes, where)
    jax.config.update("jax_enable_preemption_service", False)  # the service would swallow SIGTERM
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments)
    except ValueError as error:
        raise BadInput(
            f"--distributed={where}: no cluster is found ({error}); start on every worker of a TPU pod or with srun, or"
            " give HOST:PORT with --num_processes and --process_id"
        ) from error


def _refuse_taken_port(where: str, port: int) -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            raise BadInput(
                f"--distributed: {where}: the port cannot be used ({error.strerror}); give another"
            ) from error


def _listen() -> None:
    """Ends this process when another one fails or the first one has exited."""
    while True:
        try:
            record = json.loads(_client().blocking_key_value_get(_OUTCOME, _POLL_MS))
        except Exception as error:  # jaxlib raises its own RuntimeErrors, distinguished by their text
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            record = {"process": -1, "line": f"error: another process is gone: {_first_line(error)}", "status": 1}
        if record["process"] in (None, jax.process_index()):
            return
        if _ending.acquire(blocking=False):
            source = f"process {record['process']}: " if record["process"] >= 0 else ""
            tqdm.tqdm.write(source + record["line"], file=sys.stderr)  # not into the middle of a progress bar
            if record["status"] == 2:
                for function in _at_bad_input:
                    function()
            _leave(record["status"])
        return


def _end(message: str, status: int) -> NoReturn:
    """Prints the error, posts it to the other processes and ends this process."""
    line = f"error: {one_line(message)}"
    if not _ending.acquire(blocking=False):  # the listener is ending this process with another one's error
        time.sleep(_POLL_MS / 1000)
    print(line, file=sys.stderr)
    with contextlib.suppress(Exception):  # the first error counts, and the store may be gone
        record = {"process": jax.process_index(), "line": line, "status": status}
        _client().key_value_set(_OUTCOME, json.dumps(record))
    _leave(status)


def _leave(status: int) -> NoReturn:
    """Ends this process at once, because JAX's orderly shutdown would wait for the others; the first process ends last.

    The first process hosts the store, and XLA aborts every process still connected when the store is gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    client = _client()
    with contextlib.suppress(Exception):
        client.key_value_set(f"{_DONE}/{jax.process_index()}", "")
        if is_first():
            deadline = time.monotonic() + _FAREWELL_SECONDS
            for other in range(1, jax.process_count()):
                left = max(0.0, deadline - time.monotonic())
                client.blocking_key_value_get(f"{_DONE}/{other}", int(1000 * left))
    if is_first():
        time.sleep(_LAST_SECONDS)
    os._exit(status)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
