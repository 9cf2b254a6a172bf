"""The seam between the protocol's rules and the network.

The rules (`sending`, `receiving`, `peer`) do no input or output, know no time but what they are told, and are pulled:
a transport asks a session for the next frame when it can send one, so nothing piles up. All calls from a transport
come from one thread, one at a time; what a learner does with a session by itself says so (`Sending.offered`,
`Receiving.look`). Two transports ship: `grpc_transport`, and `memory`, its twin with virtual time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from gala_worker.gossip.messages import Reason, StateRequest


class Link(Protocol):
    """One stream to a neighbour, seen from a session."""

    def wake(self) -> None:
        """There is something to say: ask for `next_frame` soon. Thread-safe."""

    def abort(self) -> None:
        """Close the stream at once, whatever it is doing. `ended` follows. Only from the transport's thread."""


class Session(Protocol):
    """One side of a conversation on one stream. What its frames are is between it and the codec of its transport."""

    @property
    def finished(self) -> bool:
        """After this turns True and `next_frame` returns None, the transport closes the stream."""

    def next_frame(self, now: float) -> Any | None:
        """What to say next, or None. The frame's payload is valid until the next call."""

    def receive(self, frame: Any, now: float) -> None:
        """The neighbour said this.

        Raises: MessageError when it may not have; the transport passes the error to `reject`.
        """

    def reject(self, problem: str) -> None:
        """What arrived was no frame, or not acceptable: the session comes to its end."""

    def ended(self, now: float, why: str) -> None:
        """The stream is closed. Called exactly once, last of all."""


class Endpoint(Protocol):
    """A peer, seen from its transport."""

    def accept(self, link: Link, now: float) -> Session | None:
        """A stranger opened a stream; None = too many do, or this peer is leaving: close it."""

    def tick(self, now: float) -> None:
        """Time passes. To be called every `tick_seconds`."""

    def state_requested(self, request: StateRequest, answer: Callable[[bytes | Reason], None]) -> None:
        """A joiner asks for state. `answer` is called on the transport's thread, perhaps never."""


class Transport(Protocol):
    """How a peer reaches others."""

    def now(self) -> float:
        """Seconds, monotonic; the only clock of the protocol."""

    def is_this_machine(self, address: str) -> bool:
        """Whether whoever reaches, or is reached at, this `host:port` runs on this machine."""

    def serve(self, address: str, endpoint: Endpoint, tick_seconds: float, message_bytes: int) -> None:
        """Listen on `host:port` and call `endpoint.tick`. After it returns, neighbours are answered.

        Raises: GossipError when the address cannot be had.
        """

    def connect(self, address: str, make_session: Callable[[Link], Session]) -> Session:
        """Open a new connection, shared with no earlier one. Returns at once; failure is `ended`."""

    def fetch_state(
        self, address: str, request: StateRequest, *, first_seconds: float, seconds: float, max_bytes: int
    ) -> bytes:
        """Ask one neighbour for its state and wait: `first_seconds` for its answer to begin, `seconds` for all of it.

        Raises: RefusedError; SilentError when it does not answer in time; GossipError when nobody listens there, or
            what is answered is not proper.
        """

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function on the transport's thread. Thread-safe."""

    def wait(self, condition: threading.Condition, predicate: Callable[[], bool], seconds: float) -> bool:
        """Block the calling thread until the predicate holds; False when it did not in time.

        `condition` is notified whenever the predicate may have changed, and held while it is evaluated.
        """

    def close(self, grace_seconds: float) -> None:
        """Let finished sessions say what they have to say, then close everything. After it returns, nothing runs."""
