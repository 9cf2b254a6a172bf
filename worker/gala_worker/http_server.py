"""An HTTP server where a worker's plan says that others find it."""

from __future__ import annotations

from gala.http_server import HttpServer
from gala_worker import address as addresses


class WorkerServer(HttpServer):
    """On the worker's asyncio thread."""

    def __init__(self, address: str) -> None:
        """`address` is `host:port`; where the host is a name, the server listens on all interfaces."""
        host, port = addresses.split(address)
        # The launcher holds the port with the same option: nobody can take it between two lives of a worker.
        super().__init__(addresses.listening_hosts(host), port, reuse_port=True)
