"""Several processes as one run: start-up, what only the first of them does, and one end for all.

`jax.distributed` connects them. Its key-value store, which lies under `jax._src` as Orbax and others use it too,
carries the few things that are not arrays: what the first process found, and the error of one that failed.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed as _jax_distributed

from clinmerge_jax.errors import BadInput

HEARTBEAT_SECONDS = 20  # a process that has been silent for so long counts as dead
_FOREVER_MS = 7 * 24 * 3600 * 1000  # others may be loading, writing or compiling; a dead one is noticed all the same
_POLL_MS = 60_000
_FAREWELL_SECONDS = 5  # the first process waits so long for the others to hear of an error
_OUTCOME = "clinmerge_jax/outcome"  # the error that ends all, or that there was none
_HEARD = "clinmerge_jax/heard"

_count = itertools.count()
_ending = threading.Lock()  # held by whichever thread ends this process


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


@contextlib.contextmanager
def session(where: str, processes: int | None = None, index: int | None = None) -> Iterator[None]:
    """Runs its body in this process as one of several.

    An error in one ends all: the one prints its line or traceback, the others print the line with its process, and
    all exit with its status, 2 for `BadInput` and 1 otherwise. A process that is killed ends the others within
    a minute.

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
    except BadInput as error:
        _end(f"error: {error}", 2)
    except BaseException as error:
        traceback.print_exc()
        hint = " (where no other process shows an error of its own, one was killed)" * isinstance(error, RuntimeError)
        _end(f"error: {type(error).__name__}: {error}{hint}", 1)


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
        arguments = {"coordinator_address": where, "num_processes": processes, "process_id": index}
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments)
    except ValueError as error:
        raise BadInput(
            f"--distributed={where}: no cluster is found ({error}); start on every worker of a TPU pod or with srun, or"
            " give HOST:PORT with --num_processes and --process_id"
        ) from error


def _listen() -> None:
    """Ends this process when another one fails or the first one is gone."""
    while True:
        try:
            record = json.loads(_client().blocking_key_value_get(_OUTCOME, _POLL_MS))
        except Exception as error:  # jaxlib raises its own RuntimeErrors, told apart by their text
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            _exit(f"error: another process is gone: {_first_line(error)}", 1)
            return
        if record["process"] in (None, jax.process_index()):
            return
        if _ending.acquire(blocking=False):
            with contextlib.suppress(Exception):
                _client().key_value_set(f"{_HEARD}/{jax.process_index()}", "")
            print(f"process {record['process']}: {record['line']}", file=sys.stderr)
            _leave(record["status"])
        return


def _exit(line: str, status: int) -> None:
    if _ending.acquire(blocking=False):
        print(line, file=sys.stderr)
        _leave(status)


def _leave(status: int) -> None:
    """Ends the process at once: JAX's orderly shutdown would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end(line: str, status: int) -> None:
    """Tells the others and ends."""
    line = " ".join(line.splitlines())
    if not _ending.acquire(blocking=False):  # the listener is about to end this process with another one's error
        time.sleep(_FAREWELL_SECONDS)
    print(line, file=sys.stderr)
    client = _client()
    with contextlib.suppress(Exception):  # nobody may be left to tell; the first error counts
        client.key_value_set(_OUTCOME, json.dumps({"process": jax.process_index(), "line": line, "status": status}))
        if is_first():  # it hosts the store, so it goes last
            deadline = time.monotonic() + _FAREWELL_SECONDS
            for other in range(1, jax.process_count()):
                left = max(0.0, deadline - time.monotonic())
                client.blocking_key_value_get(f"{_HEARD}/{other}", int(1000 * left))
    _leave(status)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
