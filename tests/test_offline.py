"""A run that is to be offline opens no connection."""

import os
import socket

import pytest

from clinmerge_jax import offline
from clinmerge_jax.errors import RunFailure


def test_a_connection_ends_an_offline_run_before_it_is_opened():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with offline.session(True):
        with (
            socket.socket() as one,
            pytest.raises(RunFailure, match=r"offline: a connection was tried \(socket.connect\)"),
        ):
            one.connect(("127.0.0.1", port))
        with pytest.raises(RunFailure, match="socket.getaddrinfo"):
            socket.getaddrinfo("example.org", 443)
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    socket.create_connection(("127.0.0.1", port)).close()  # afterwards all is as it was
    listener.close()


def test_sockets_of_this_machine_alone_stay_allowed():
    with offline.session(True):
        one, other = socket.socketpair()
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.close()
        other.close()


def test_a_run_that_is_not_offline_is_left_alone():
    listener = socket.create_server(("127.0.0.1", 0))
    with offline.session(False):
        socket.create_connection(listener.getsockname()).close()
    listener.close()
