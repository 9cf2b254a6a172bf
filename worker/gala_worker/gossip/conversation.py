"""One gRPC stream with a session at its end: say what the session says, tell it what arrives, until either is done.

Bytes in, bytes out: frames are encoded and decoded by a `Wire`, so that a malformed one is an answer and not an
exception inside gRPC. `grpc_transport` opens and accepts the streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from gala.errors import MessageError
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.transport import Session

FLUSH_SECONDS: Final = 1.0
"""How long the other side may take to close after the last word."""


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


@dataclass(frozen=True, slots=True)
class Stream:
    """One end of a call, a client's or a server's."""

    read: Callable[[], Awaitable[Any]]
    write: Callable[[bytes], Awaitable[None]]
    done_writing: Callable[[], Awaitable[None]] | None = None
    """A client's; None at a server."""


class GrpcLink:
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


class Conversation:
    """A session on a stream."""

    def __init__(self, session: Session, link: GrpcLink, wire: Wire, stream: Stream, now: Callable[[], float]) -> None:
        self._session = session
        self._link = link
        self._wire = wire
        self._stream = stream
        self._now = now

    async def run(self) -> None:
        """Speaks and listens until either side is done; then, whatever happened, `session.ended`."""
        link, done_writing = self._link, self._stream.done_writing
        reader = asyncio.create_task(self._listen(), name="gossip listen")
        writer = asyncio.create_task(self._speak(), name="gossip speak")
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
            why = cause(error)
        finally:
            reader.cancel()
            aborted.cancel()
            self._session.ended(self._now(), why)
            if done_writing is None:  # a server cannot end a stream while a write is under way
                link.closing = True
                link.event.set()
                await asyncio.wait({writer}, timeout=FLUSH_SECONDS)
            writer.cancel()
            await asyncio.gather(reader, writer, aborted, return_exceptions=True)

    async def _speak(self) -> None:
        link = self._link
        while not link.closing:
            link.event.clear()
            frame = self._session.next_frame(self._now())
            if frame is not None:
                await self._stream.write(self._wire.encode(frame))
            elif self._session.finished:
                return
            else:
                await link.event.wait()

    async def _listen(self) -> None:
        while True:
            data = await self._stream.read()
            if data is grpc.aio.EOF:
                return
            try:
                self._session.receive(self._wire.decode(data), self._now())
            except MessageError as error:
                self._session.reject(str(error))
                raise


def cause(error: BaseException) -> str:
    """Why a call ended, in a word: gRPC's status, `malformed`, or the name of the exception."""
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.code().name).lower()
    if isinstance(error, MessageError):
        return "malformed"
    return type(error).__name__


def _outcome(task: asyncio.Task[None]) -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return "closed" if error is None else cause(error)
