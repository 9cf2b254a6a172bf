"""The `Transport` over gRPC: one stream per directed edge, on the worker's asyncio thread.

`conversation` says what happens on a stream, `state_transfer` what on a joiner's. Limits on what a stranger can make
this process hold are in `_SERVER_OPTIONS` and `_MAX_CONNECTIONS`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import grpc.aio

from gala.errors import GossipError, SilentError
from gala.names import MAX_LEARNERS
from gala_worker import address as addresses
from gala_worker import open_files
from gala_worker.gossip import framing, state_transfer
from gala_worker.gossip.conversation import FLUSH_SECONDS, Conversation, GrpcLink, Stream, Wire, cause
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.messages import CHUNK_BYTES, MAX_FRAME_BYTES, Reason, StateRequest
from gala_worker.gossip.state_transfer import StateGiver
from gala_worker.gossip.transport import Endpoint, Link, Session

log = logging.getLogger(__name__)

SERVICE: Final = "gala.wire.v1.Gossip"

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
    ("grpc.server_handshake_timeout_ms", 10_000),  # a connection that says nothing, or one byte at a time
    ("grpc.max_connection_idle_ms", 10_000),  # a connection without streams; a neighbour's has one from the start
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_MAX_CONNECTIONS: Final = 2 * MAX_LEARNERS
"""Every other learner may push, and ask for the state."""
_CHANNEL_OPTIONS: Final = (
    *_COMMON_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection and a new name look-up
    ("grpc.enable_http_proxy", 0),
)


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
        self._links: set[GrpcLink] = set()
        self._conversations: set[asyncio.Task[Any]] = set()

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
        link = GrpcLink(self._thread)
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
            late = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            kind = SilentError if late else GossipError
            raise kind(f"{address} gives no state: {cause(error)}") from error
        except TimeoutError as error:
            raise SilentError(f"{address} gives no state in time") from error

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
        # Not all of the open files, else strangers could keep this process from opening a checkpoint.
        most = min(_MAX_CONNECTIONS, open_files.limit() // 2)
        server = grpc.aio.server(options=(*_SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", most)))
        handlers = {self._wire.stream: grpc.stream_stream_rpc_method_handler(self._push)}
        if self._wire.gives_state:
            handlers["FetchState"] = grpc.stream_stream_rpc_method_handler(StateGiver(endpoint).give)
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
        link = GrpcLink(self._thread)
        session = self._endpoint.accept(link, self.now())
        if session is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_BUSY.text)
            return
        task = asyncio.current_task()
        assert task is not None
        self._track(task)
        await self._converse(session, link, Stream(context.read, context.write))

    # ---------------------------------------------------------------- client

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._channel_credentials is None:
            return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, self._channel_credentials, options=_CHANNEL_OPTIONS)

    async def _call(self, address: str, session: Session, link: GrpcLink) -> None:
        channel = self._channel(address)
        call = channel.stream_stream(f"/{self._wire.service}/{self._wire.stream}", None, None)(None)
        try:
            await self._converse(session, link, Stream(call.read, call.write, call.done_writing))
        finally:
            call.cancel()
            await channel.close(None)

    async def _fetch(
        self, address: str, request: StateRequest, first_seconds: float, seconds: float, max_bytes: int
    ) -> bytes:
        return await state_transfer.fetch(
            self._channel(address),
            self._wire.service,
            request,
            first_seconds=first_seconds,
            seconds=seconds,
            max_bytes=max_bytes,
        )

    # ---------------------------------------------------------------- both sides

    async def _converse(self, session: Session, link: GrpcLink, stream: Stream) -> None:
        self._links.add(link)
        try:
            await Conversation(session, link, self._wire, stream, self.now).run()
        finally:
            self._links.discard(link)

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
