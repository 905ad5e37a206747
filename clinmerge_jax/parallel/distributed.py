"""Several processes as one run: start-up, what only the first of them does, and one end for all.

`jax.distributed` connects them. Its key-value store, which lies under `jax._src` as Orbax and others use it too,
carries the few things that are not arrays: what the first process found, and the error of one that failed.
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

HEARTBEAT_SECONDS = 20  # a process that has been silent for so long counts as dead
_FOREVER_MS = 7 * 24 * 3600 * 1000  # others may be loading, writing or compiling; a dead one is noticed all the same
_POLL_MS = 60_000
_FAREWELL_SECONDS = 5  # so long the first process waits for the others to print their last line,
_LAST_SECONDS = 1  # and for them to be gone after that
_OUTCOME = "clinmerge_jax/outcome"  # the error that ends all, or that there was none
_STOP = "clinmerge_jax/stop"
_AHEAD = 3  # steps
_DONE = "clinmerge_jax/done"  # of a process that has nothing left to print

_count = itertools.count()
_ending = threading.Lock()  # held by whichever thread ends this process
_at_bad_input: list[Callable[[], None]] = []


def is_first() -> bool:
    """Whether this process logs, draws progress and writes the small files."""
    return jax.process_index() == 0


def _client():
    return _jax_distributed.global_state.client


def barrier(name: str) -> None:
    """Waits until every process has come here.

    Args:
      name: of the place, for the message of one that waits in vain.
    """
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"clinmerge_jax/{next(_count)} {name}", _FOREVER_MS)


def on_first(function: Callable[[], Any]) -> Any:
    """Calls a function on the first process; all return its result.

    Args:
      function: gives something JSON-serialisable; the others wait for it. What it raises ends all.
    """
    if jax.process_count() == 1:
        return function()
    key = f"clinmerge_jax/{next(_count)}"
    if is_first():
        _client().key_value_set(key, json.dumps(function()))
    return json.loads(_client().blocking_key_value_get(key, _FOREVER_MS))


def refuse_difference(what: str, value: Mapping[str, Any]) -> None:
    """Makes sure that every process is about to do the same.

    Args:
      what: the value's name for the message.
      value: JSON-serialisable, with the same keys everywhere.

    Raises:
      BadInput: it is not that of the first process.
    """
    value = json.loads(json.dumps(value))
    first = on_first(lambda: value)
    if value != first:
        where = next(key for key in value if value[key] != first.get(key))
        raise BadInput(
            f"--distributed: {what} ({where}) of process {jax.process_index()} is not that of process 0; run the same"
            " command in every process"
        )
    barrier(f"{what} compared")  # nobody begins to write where another one is about to refuse


def all_stop(step: int, told: bool) -> bool:
    """Whether every process is to stop after this step, because one of them was told to.

    They come here after each step, one step apart at most, as a step cannot end before all have begun it. So whoever is
    told names a step that none has taken yet.

    Args:
      step: that this process has begun.
      told: whether it was told to stop.
    """
    if jax.process_count() == 1:
        return told
    if told:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one has named a step already
            _client().key_value_set(_STOP, str(step + _AHEAD), allow_overwrite=False)
    try:
        return step >= int(_client().key_value_try_get(_STOP))
    except jax.errors.JaxRuntimeError:  # nobody was told
        return False


def at_bad_input(function: Callable[[], None]) -> None:
    """Has something undone where another process's bad input ends this one, which then unwinds nothing."""
    if jax.process_count() > 1:
        _at_bad_input.append(function)


@contextlib.contextmanager
def session(where: str, processes: int | None = None, index: int | None = None) -> Iterator[None]:
    """Runs its body in this process as one of several.

    An error in one ends all: the one prints its line or traceback, the others print the line with its process, and
    all exit with its status, 2 for `BadInput` and 1 otherwise. A process that is killed ends the others within
    a minute, with status 1 or, where JAX's own runtime notices first, an abort (134) that says so.

    Args:
      where: "" for one process alone; "auto" to have JAX find a TPU pod, SLURM, MPI or Kubernetes job; or HOST:PORT
        of the first process.
      processes: how many there are, with HOST:PORT.
      index: which one this is, from 0, with HOST:PORT.

    Raises:
      BadInput: the flags do not fit together, or no cluster is found.
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
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
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
    """Ends this process when another one fails or the first one is gone."""
    while True:
        try:
            record = json.loads(_client().blocking_key_value_get(_OUTCOME, _POLL_MS))
        except Exception as error:  # jaxlib raises its own RuntimeErrors, told apart by their text
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
    """Prints the error, tells the others and ends."""
    line = f"error: {one_line(message)}"
    if not _ending.acquire(blocking=False):  # the listener is about to end this process with another one's error
        time.sleep(_POLL_MS / 1000)
    print(line, file=sys.stderr)
    with contextlib.suppress(Exception):  # the first error counts, and nobody may be left to tell
        record = {"process": jax.process_index(), "line": line, "status": status}
        _client().key_value_set(_OUTCOME, json.dumps(record))
    _leave(status)


def _leave(status: int) -> NoReturn:
    """Ends this process at once, as JAX's orderly shutdown would wait for the others; the first process goes last.

    It hosts the store, and XLA aborts whoever is still connected when that is gone.
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
