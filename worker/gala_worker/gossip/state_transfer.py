"""`FetchState` over gRPC: a joiner asks one neighbour for its state, and gets it in pieces."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
import grpc.aio

from gala.errors import MessageError, RefusedError
from gala_worker.gossip import framing
from gala_worker.gossip.messages import CHUNK_BYTES, Reason, Refusal, StateRequest
from gala_worker.gossip.transport import Endpoint

MAX_STATE_STREAMS: Final = 4
"""Joiners served at the same time; further ones are told to come back."""
STATE_SECONDS: Final = 300.0
"""The longest that a joiner may take to be served."""


class StateGiver:
    """The side that is asked. Whether and what it gives, the endpoint decides."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._num_streams = 0

    async def give(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Handler of the call: answers an encoded `StateRequest`."""
        if self._num_streams >= MAX_STATE_STREAMS:
            await context.write(framing.encode_state_refusal(Reason.TOO_BUSY))
            return
        self._num_streams += 1
        try:
            async with asyncio.timeout(STATE_SECONDS):
                await _send(await self._ask(data), context)
        except MessageError:
            await context.write(framing.encode_state_refusal(Reason.MALFORMED))
        except TimeoutError:
            await context.write(framing.encode_state_refusal(Reason.TOO_BUSY))
        finally:
            self._num_streams -= 1

    async def _ask(self, data: bytes) -> bytes | Reason:
        future: asyncio.Future[bytes | Reason] = asyncio.get_running_loop().create_future()

        def answer(state: bytes | Reason) -> None:
            if not future.done():
                future.set_result(state)

        self._endpoint.state_requested(framing.decode_request(data), answer)
        return await future


async def _send(state: bytes | Reason, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    if isinstance(state, Reason):
        await context.write(framing.encode_state_refusal(state))
        return
    view = memoryview(state)
    for offset in range(0, max(1, len(view)), CHUNK_BYTES):
        await context.write(framing.encode_state(len(view), offset, view[offset : offset + CHUNK_BYTES]))


async def fetch(
    channel: grpc.aio.Channel,
    service: str,
    request: StateRequest,
    *,
    first_seconds: float,
    seconds: float,
    max_bytes: int,
) -> bytes:
    """The side that asks; closes the channel.

    Raises: grpc.RpcError, TimeoutError, RefusedError; MessageError for more than `max_bytes`, or a wrong piece.
    """
    call = channel.unary_stream(f"/{service}/FetchState", None, None)(framing.encode_request(request), timeout=seconds)
    state = bytearray()
    try:
        async with asyncio.timeout(seconds):
            data = await asyncio.wait_for(call.read(), first_seconds)
            while data is not grpc.aio.EOF:
                piece = framing.decode_state(data)
                if isinstance(piece, Refusal):
                    raise RefusedError(piece.reason.name)
                num_bytes, offset, payload = piece
                if offset != len(state) or num_bytes > max_bytes or offset + len(payload) > num_bytes:
                    raise MessageError(f"state of {num_bytes} bytes: {len(payload)} at {offset}")
                state += payload
                if len(state) == num_bytes:
                    return bytes(state)
                data = await call.read()
    finally:
        call.cancel()
        await channel.close(None)
    raise MessageError("state ended early")
