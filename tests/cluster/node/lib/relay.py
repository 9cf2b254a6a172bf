#!/usr/bin/env python3
"""Lets this machine reach ports inside the node's network namespace.

    relay.py INIT_PID PORT=ADDRESS:PORT...

Listens on 127.0.0.1:PORT here, then moves into the network namespace of
INIT_PID: a socket stays in the namespace it was made in, so what is accepted
out here is connected in there. Ends when the node ends.
"""

import asyncio
import ctypes
import os
import socket
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


def handler(address, port):
    async def handle(reader, writer):
        try:
            inner_reader, inner_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        inner_writer.close()
        writer.close()

    return handle


async def main():
    init = int(sys.argv[1])
    pairs = []
    for pair in sys.argv[2:]:
        port, target = pair.split("=")
        address, target_port = target.split(":")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port)))
        pairs.append((listener, handler(address, int(target_port))))
    node = os.pidfd_open(init)
    with Path(f"/proc/{init}/ns/net").open() as net:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(net.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    for listener, handle in pairs:
        await asyncio.start_server(handle, sock=listener, backlog=128)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(node, ended.set)  # readable once it has ended
    await ended.wait()


asyncio.run(main())
