"""Offline runs: libraries are set to their offline modes, and any attempt to connect ends the run."""

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
    """Forbids network connections inside the context; AF_UNIX sockets, local to this machine, stay allowed.

    It watches Python's audit events, so C code that opens sockets by itself is not detected.

    Args:
      offline: whether to forbid connections.
    """
    global _forbidden, _hooked
    if not offline:
        yield
        return
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    if not _hooked:  # an audit hook cannot be removed
        sys.addaudithook(_watch)
        _hooked = True
    _forbidden = True
    try:
        yield
    finally:
        _forbidden = False
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
