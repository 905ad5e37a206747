"""A run that is told so opens no connection: libraries are told, and what they try all the same ends the run."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

from clinmerge_jax.errors import RunFailure

_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")
_forbidden = False
_hooked = False


def _watch(event: str, arguments: tuple) -> None:
    if not _forbidden or event not in _EVENTS:
        return
    if event in ("socket.connect", "socket.sendto", "socket.bind") and arguments[0].family == socket.AF_UNIX:
        return
    raise RunFailure(f"config.offline: a connection was tried ({event}) where none is allowed; what it was for must lie"
                     " on this machine, or set config.offline=False")  # fmt: skip


@contextlib.contextmanager
def session(offline: bool) -> Iterator[None]:
    """Forbids connections while it lasts; sockets of this machine alone (AF_UNIX) stay allowed.

    Python's own audit events are watched, so what is written in C and opens sockets by itself is not seen.

    Args:
      offline: whether to.
    """
    global _forbidden, _hooked
    if not offline:
        yield
        return
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    if not _hooked:  # there is no way to take one away again
        sys.addaudithook(_watch)
        _hooked = True
    _forbidden = True
    try:
        yield
    finally:
        _forbidden = False
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
