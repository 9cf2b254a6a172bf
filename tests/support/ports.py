"""Ports of the loopback interface for tests."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def hold_port(stack: ExitStack) -> int:
    """A port that is the test's own until `stack` ends; who listens on it has to set SO_REUSEPORT, as gRPC does."""
    holder = stack.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return int(holder.getsockname()[1])


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
