"""The `Transport` over gRPC: one stream per directed edge, on the worker's asyncio thread.

Bytes in, bytes out: frames are encoded and decoded by `framing`, so that a malformed one is an answer and not an
exception inside gRPC. Limits on what a stranger can make this process hold are in `_SERVER_OPTIONS`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from gala.errors import GossipError, MessageError, RefusedError
from gala_worker import address as addresses
from gala_worker.gossip import framing
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.messages import CHUNK_BYTES, MAX_FRAME_BYTES, Reason, Refusal, StateRequest
from gala_worker.gossip.transport import Endpoint, Link, Session

log = logging.getLogger(__name__)

SERVICE: Final = "gala.wire.v1.Gossip"
MAX_STATE_STREAMS: Final = 4
"""Joiners served at the same time; further ones are told to come back."""
STATE_SECONDS: Final = 300.0
"""The longest that a joiner may take to be served."""
FLUSH_SECONDS: Final = 1.0
"""How long the other side may take to close after the last word."""

_COMMON_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.http2.max_frame_size", CHUNK_BYTES),  # fewer frames per chunk: less work for the same bytes
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.enable_retries", 0),
)
_SERVER_OPTIONS: Final = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 1),  # the launcher holds the port, so that nobody else gets it between two workers
    ("grpc.max_concurrent_streams", 8),  # per connection; a neighbour needs two
    ("grpc.max_allowed_incoming_connections", 4096),
    ("grpc.server_handshake_timeout_ms", 10_000),  # a connection that says nothing, or one byte at a time
    ("grpc.max_connection_idle_ms", 60_000),  # a connection without streams
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_CHANNEL_OPTIONS: Final = (
    *_COMMON_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection and a new name look-up
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Wire:
    """One protocol of long-lived streams: its name on the network, and its frames as bytes."""

    service: str
    stream: str
    """The bidirectional call."""
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    """Raises: MessageError for what is no frame."""
    gives_state: bool
    """Whether the service has `FetchState`."""


GOSSIP: Final = Wire(SERVICE, "Push", framing.encode, framing.decode, gives_state=True)


class GrpcTransport:
    """Reaches neighbours over gRPC; with credentials over TLS, mutual where they ask for it."""

    def __init__(
        self,
        loop_thread: LoopThread,
        *,
        wire: Wire = GOSSIP,
        server_credentials: grpc.ServerCredentials | None = None,
        channel_credentials: grpc.ChannelCredentials | None = None,
        bind: str | None = None,
    ) -> None:
        """`bind`: `host:port` to listen on where it is not the plan's address."""
        self._thread = loop_thread
        self._wire = wire
        self._server_credentials = server_credentials
        self._channel_credentials = channel_credentials
        self._bind = bind
        self._server: grpc.aio.Server | None = None
        self._endpoint: Endpoint | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._links: set[_GrpcLink] = set()
        self._conversations: set[asyncio.Task[Any]] = set()
        self._num_state_streams = 0

    # ---------------------------------------------------------------- Transport

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def is_this_machine(self, address: str) -> bool:
        """Whether it is an address of the loopback interface."""
        return addresses.is_loopback(addresses.split(address)[0])

    def serve(self, address: str, endpoint: Endpoint, tick_seconds: float, message_bytes: int) -> None:
        """Listens on the port of `address`; on its host if that is an IP address, else on all interfaces."""
        self._thread.run(self._serve(self._bind or addresses.listening_address(address), endpoint, tick_seconds))

    def watch(self, endpoint: Endpoint, tick_seconds: float) -> None:
        """Calls `endpoint.tick` without listening anywhere: for one that only connects."""
        self._thread.run(self._watch(endpoint, tick_seconds))

    def connect(self, address: str, make_session: Callable[[Link], Session]) -> Session:
        """A new channel with one stream."""
        link = _GrpcLink(self._thread)
        session = make_session(link)
        self._track(asyncio.get_running_loop().create_task(self._call(address, session, link), name=f"push {address}"))
        return session

    def fetch_state(
        self, address: str, request: StateRequest, *, first_seconds: float, seconds: float, max_bytes: int
    ) -> bytes:
        """Asks one neighbour for its state."""
        try:
            return self._thread.run(self._fetch(address, request, first_seconds, seconds, max_bytes))
        except grpc.RpcError as error:
            raise GossipError(f"{address} gives no state: {_why(error)}") from error
        except TimeoutError as error:
            raise GossipError(f"{address} gives no state in time") from error

    def call_soon(self, function: Callable[[], object]) -> None:
        """On the loop."""
        self._thread.call_soon(function)

    def wait(self, condition: threading.Condition, predicate: Callable[[], bool], seconds: float) -> bool:
        """Blocks the calling thread."""
        with condition:
            return bool(condition.wait_for(predicate, seconds))

    def close(self, grace_seconds: float) -> None:
        """Ends conversations, server and channels."""
        self._thread.run(self._close(grace_seconds))

    # ---------------------------------------------------------------- server

    async def _serve(self, address: str, endpoint: Endpoint, tick_seconds: float) -> None:
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        handlers = {self._wire.stream: grpc.stream_stream_rpc_method_handler(self._push)}
        if self._wire.gives_state:
            handlers["FetchState"] = grpc.unary_stream_rpc_method_handler(self._give_state)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self._wire.service, handlers),))
        try:
            if self._server_credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._server_credentials)
        except RuntimeError as error:
            raise GossipError(f"cannot listen on {address}: {error}") from error
        if port == 0:
            raise GossipError(f"cannot listen on {address}")
        self._endpoint, self._server = endpoint, server
        await server.start()
        await self._watch(endpoint, tick_seconds)

    async def _watch(self, endpoint: Endpoint, tick_seconds: float) -> None:
        self._ticker = asyncio.get_running_loop().create_task(self._tick(endpoint, tick_seconds), name="gossip tick")

    async def _tick(self, endpoint: Endpoint, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                endpoint.tick(self.now())
            except Exception:  # a bug here must not silently end liveness for the whole run
                log.exception("gossip tick failed")
            for link in self._links:  # heartbeats
                link.event.set()

    async def _push(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        assert self._endpoint is not None
        link = _GrpcLink(self._thread)
        session = self._endpoint.accept(link, self.now())
        if session is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_BUSY.text)
            return
        task = asyncio.current_task()
        assert task is not None
        self._track(task)
        await self._converse(session, link, context.read, context.write)

    async def _give_state(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        assert self._endpoint is not None
        if self._num_state_streams >= MAX_STATE_STREAMS:
            await context.write(framing.encode_state_refusal(Reason.TOO_BUSY))
            return
        self._num_state_streams += 1
        try:
            async with asyncio.timeout(STATE_SECONDS):
                await self._send_state(await self._ask(data), context)
        except MessageError:
            await context.write(framing.encode_state_refusal(Reason.MALFORMED))
        except TimeoutError:
            await context.write(framing.encode_state_refusal(Reason.TOO_BUSY))
        finally:
            self._num_state_streams -= 1

    async def _ask(self, data: bytes) -> bytes | Reason:
        assert self._endpoint is not None
        future: asyncio.Future[bytes | Reason] = asyncio.get_running_loop().create_future()

        def answer(state: bytes | Reason) -> None:
            if not future.done():
                future.set_result(state)

        self._endpoint.state_requested(framing.decode_request(data), answer)
        return await future

    async def _send_state(self, state: bytes | Reason, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        if isinstance(state, Reason):
            await context.write(framing.encode_state_refusal(state))
            return
        view = memoryview(state)
        for offset in range(0, max(1, len(view)), CHUNK_BYTES):
            await context.write(framing.encode_state(len(view), offset, view[offset : offset + CHUNK_BYTES]))

    # ---------------------------------------------------------------- client

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._channel_credentials is None:
            return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, self._channel_credentials, options=_CHANNEL_OPTIONS)

    async def _call(self, address: str, session: Session, link: _GrpcLink) -> None:
        channel = self._channel(address)
        call = channel.stream_stream(f"/{self._wire.service}/{self._wire.stream}", None, None)(None)
        try:
            await self._converse(session, link, call.read, call.write, call.done_writing)
        finally:
            call.cancel()
            await channel.close(None)

    async def _fetch(
        self, address: str, request: StateRequest, first_seconds: float, seconds: float, max_bytes: int
    ) -> bytes:
        channel = self._channel(address)
        call = channel.unary_stream(f"/{self._wire.service}/FetchState", None, None)(
            framing.encode_request(request), timeout=seconds
        )
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

    # ---------------------------------------------------------------- both sides

    async def _converse(
        self,
        session: Session,
        link: _GrpcLink,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[None]],
        done_writing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Speaks and listens until either side is done; then, whatever happened, `session.ended`."""
        self._links.add(link)
        reader = asyncio.create_task(self._listen(session, read), name="gossip listen")
        writer = asyncio.create_task(self._speak(session, link, write), name="gossip speak")
        aborted = asyncio.create_task(link.aborted.wait(), name="gossip abort")
        why = "cancelled"
        try:
            await asyncio.wait({reader, writer, aborted}, return_when=asyncio.FIRST_COMPLETED)
            if aborted.done():
                why = "silent"
            elif writer.done():  # all is said: let it arrive, and the other side close
                why = _outcome(writer)
                if done_writing is not None and not writer.exception():
                    await done_writing()
                    await asyncio.wait({reader, aborted}, timeout=FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            else:
                why = _outcome(reader)
                if why == "malformed":  # the refusal has still to be said
                    link.event.set()
                    await asyncio.wait({writer, aborted}, timeout=FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            why = _why(error)
        finally:
            self._links.discard(link)
            reader.cancel()
            aborted.cancel()
            session.ended(self.now(), why)
            if done_writing is None:  # a server cannot end a stream while a write is under way
                link.closing = True
                link.event.set()
                await asyncio.wait({writer}, timeout=FLUSH_SECONDS)
            writer.cancel()
            await asyncio.gather(reader, writer, aborted, return_exceptions=True)

    async def _speak(self, session: Session, link: _GrpcLink, write: Callable[[bytes], Awaitable[None]]) -> None:
        while not link.closing:
            link.event.clear()
            frame = session.next_frame(self.now())
            if frame is not None:
                await write(self._wire.encode(frame))
            elif session.finished:
                return
            else:
                await link.event.wait()

    async def _listen(self, session: Session, read: Callable[[], Awaitable[Any]]) -> None:
        while True:
            data = await read()
            if data is grpc.aio.EOF:
                return
            try:
                session.receive(self._wire.decode(data), self.now())
            except MessageError as error:
                session.reject(str(error))
                raise

    def _track(self, task: asyncio.Task[Any]) -> None:
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    async def _close(self, grace_seconds: float) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if self._conversations and grace_seconds > 0:
            await asyncio.wait(self._conversations, timeout=grace_seconds)
        for link in list(self._links):
            link.abort()
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=FLUSH_SECONDS)
        if self._server is not None:
            await self._server.stop(0.1)
            self._server = None


class _GrpcLink:
    """A `Link`: the writer's alarm bell and the emergency exit."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self.event = asyncio.Event()
        self.aborted = asyncio.Event()
        self.closing = False
        """Nothing more is to be written."""

    def wake(self) -> None:
        if self._thread.is_current:
            self.event.set()
        else:
            self._thread.call_soon(self.event.set)

    def abort(self) -> None:
        self.aborted.set()


def _outcome(task: asyncio.Task[None]) -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return "closed" if error is None else _why(error)


def _why(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name).lower()
    if isinstance(error, MessageError):
        return "malformed"
    return type(error).__name__
