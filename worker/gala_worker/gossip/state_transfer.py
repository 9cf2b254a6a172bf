"""`FetchState` over gRPC: a joiner asks one neighbour for its state, and gets it in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

import grpc
import grpc.aio

from gala.errors import MessageError, RefusedError
from gala_worker.gossip import framing
from gala_worker.gossip.messages import CHUNK_BYTES, Reason, Refusal, StateRequest
from gala_worker.gossip.patience import HELLO_SECONDS, MAX_STRANGERS
from gala_worker.gossip.transport import Endpoint

MAX_STATE_STREAMS: Final = 4
"""Joiners served at the same time; further ones are told to come back."""
STATE_SECONDS: Final = 300.0
"""The longest that a joiner may take to be served."""

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class StateGiver:
    """The side that is asked. Whether and what it gives, the endpoint decides."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._num_askers = 0
        self._num_streams = 0

    async def give(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Handler of the call: hears an encoded `StateRequest` and answers it.

        To gRPC it is a stream of requests, which is the same on the wire: the handler of a single request is not called
        before that is there, and who never sent one could not be turned away.
        """
        try:
            heard = await self._hear(context)
            refusal = heard if isinstance(heard, Reason) else await self._serve(heard, context)
            if refusal is not None:
                async with asyncio.timeout(HELLO_SECONDS):
                    await context.write(framing.encode_state_refusal(refusal))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "this takes too long")

    async def _hear(self, context: Context) -> StateRequest | Reason:
        """The request, or why there is none to be answered."""
        if self._num_askers >= MAX_STRANGERS:
            return Reason.TOO_BUSY
        self._num_askers += 1
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                data = await context.read()
            return Reason.MALFORMED if data is grpc.aio.EOF else framing.decode_request(data)
        except (MessageError, TimeoutError):
            return Reason.MALFORMED
        finally:
            self._num_askers -= 1

    async def _serve(self, request: StateRequest, context: Context) -> Reason | None:
        """Gives what is asked for, or says why not. Raises: TimeoutError."""
        if self._num_streams >= MAX_STATE_STREAMS:
            return Reason.TOO_BUSY
        self._num_streams += 1
        try:
            async with asyncio.timeout(STATE_SECONDS):
                state = await self._ask(request)
                if isinstance(state, Reason):
                    return state
                view = memoryview(state)
                for offset in range(0, max(1, len(view)), CHUNK_BYTES):
                    await context.write(framing.encode_state(len(view), offset, view[offset : offset + CHUNK_BYTES]))
                return None
        finally:
            self._num_streams -= 1

    async def _ask(self, request: StateRequest) -> bytes | Reason:
        future: asyncio.Future[bytes | Reason] = asyncio.get_running_loop().create_future()

        def answer(state: bytes | Reason) -> None:
            if not future.done():
                future.set_result(state)

        self._endpoint.state_requested(request, answer)
        return await future


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
