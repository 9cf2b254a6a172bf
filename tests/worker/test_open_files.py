"""Open files of a worker: it takes all that it may have, and leaves strangers only a part of them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys

import pytest

from gala_worker import open_files
from grpc_ring import PATIENCE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""All that a connection needs to stay, for a while, without a stream."""


def is_let_in(stranger: socket.socket) -> bool:
    """Whether gRPC greets it, or hangs up."""
    with contextlib.suppress(ConnectionError):
        stranger.sendall(PREFACE)
        return stranger.recv(1) != b""
    return False


def test_strangers_get_half_of_the_open_files_and_the_ring_goes_on(ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "limit", lambda: 12)
    made = ring(2)
    made.connect()
    made.run()
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", made.ports[0])
        strangers = [stack.enter_context(socket.create_connection(address, timeout=PATIENCE)) for _ in range(12)]
        assert sum(is_let_in(stranger) for stranger in strangers) == 5  # the neighbour is the sixth
        made.assert_all_mix([0, 1])


def test_a_worker_takes_all_the_open_files_that_it_may_have() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
from gala_worker.__main__ import main
main()  # which ends as soon as it misses its rank
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GALA_")}
    command = [sys.executable, "-P", "-c", program]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout.split() == [str(hard)]
