"""Recognises a disk that fills while a job writes, and reports it in one line.

Orbax and tensorstore report it as text in exceptions of other types, and print tracebacks from their own threads.
"""

import contextlib
import errno
import functools
import gc
import logging
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")


def cause_of(error: BaseException | None) -> BaseException | None:
    """The exception in this one's chain that reports a full disk, quota or file size limit; None if there is none."""
    seen: set[int] = set()
    current = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno is not None:
            if current.errno in _ERRNOS:
                return current
        elif any(text in str(current) for text in _TEXTS):
            return current
        current = current.__cause__ or current.__context__
    return None


def message(cause: BaseException) -> str:
    """The one-line message for a result of `cause_of`; it says what to do."""
    reason = getattr(cause, "strerror", None) or next(text for text in _TEXTS if text in str(cause))
    place = getattr(cause, "filename", None) or "config.output"
    return f"{place}: cannot be written ({reason}); free some space and run the same command again to continue"


def require(folder: pathlib.Path, nbytes: int) -> None:
    """Checks before a write that the disk has room for it.

    Args:
      folder: where the data will be written.
      nbytes: size of the data.

    Raises:
      OSError: too little space; has ENOSPC and the folder.
    """
    if shutil.disk_usage(folder).free < nbytes:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def end_writers(error: BaseException) -> None:
    """Collects the writers that a full disk interrupted; at interpreter exit they would print tracebacks."""
    cause = cause_of(error)
    if cause is not None:
        error.__traceback__ = cause.__traceback__ = None
        gc.collect()


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Wraps the whole program: exits the process as soon as a run has failed.

    Orbax threads wait minutes for a folder that could not be made, and the interpreter would wait for them.
    """
    try:
        yield
    except SystemExit as stop:
        left = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
        if left and isinstance(stop.code, int) and stop.code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise


def _of_interest(record: logging.LogRecord) -> bool:
    """False for a full disk that Orbax or its event loop logs with a traceback; the failure is raised as well."""
    raised = record.exc_info[1] if record.exc_info else None
    of_orbax = record.name == "asyncio" or "orbax" in record.pathname
    return not of_orbax or raised is None or cause_of(raised) is None


@functools.cache
def report_once() -> None:
    """Keeps the threads of Orbax and tensorstore from printing failures that are raised and reported anyway.

    Stays in effect until the process ends, because threads may fail late.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # tensorstore's threads report to an event loop that was closed at the first failure.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    for name in ("absl", "orbax", "asyncio"):
        logging.getLogger(name).addFilter(_of_interest)
