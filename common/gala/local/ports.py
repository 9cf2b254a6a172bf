"""Free ports that stay ours for the whole run."""

from __future__ import annotations

import socket
from typing import Final

from gala.plan import Address

LOOPBACK: Final = "127.0.0.1"
"""Local workers are reached from this machine only."""


class PortReservation:
    """Addresses of ranks on the loopback interface, each held by a bound socket until `close`.

    The sockets are bound with SO_REUSEPORT and never listen. So the kernel gives the ports to nobody else, while a
    worker that binds with SO_REUSEPORT too (grpc and aiohttp can) gets all of its connections. A restarted worker finds
    its port free, and a rank that leaves and comes back keeps its address.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._addresses: dict[int, Address] = {}

    def address(self, rank: int) -> Address:
        """The rank's address; reserves two ports the first time.

        Raises: OSError when the machine has no free port.
        """
        if rank not in self._addresses:
            self._addresses[rank] = Address(gossip=self._reserve(), http=self._reserve())
        return self._addresses[rank]

    def close(self) -> None:
        """Give all ports back."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()
        self._addresses.clear()

    def _reserve(self) -> str:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((LOOPBACK, 0))
        except OSError:
            held.close()
            raise
        self._sockets.append(held)
        host, port = held.getsockname()
        return f"{host}:{port}"
