"""An actor's end of the star: push contributions, look at the newest parameters.

client = HubClient(plan, identity, loop=loop, contribution_bytes=size)
client.start()
while training:
    parameters = client.latest()            # None: nothing new
    ...act, with the newest parameters that have come...
    client.request()                        # optional, some time before the next `latest`
    client.push([payload], version=parameters.version, steps=160, timeout=1.0, give_up=stopping)
client.close()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from torch import Tensor

from gala.plan import RunPlan
from gala_worker.algorithms.hub.attendance import Attendance
from gala_worker.algorithms.hub.attending import State
from gala_worker.algorithms.hub.framing import WIRE
from gala_worker.algorithms.hub.parameters import Parameters
from gala_worker.algorithms.hub.stats import ClientStats
from gala_worker.algorithms.hub.terms import Terms
from gala_worker.gossip.codec import new_buffer
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.membership import Identity
from gala_worker.gossip.messages import Leaving

CLOSE_SECONDS: Final = 1.0
"""How long a farewell may take."""
Octets = bytes | bytearray | memoryview

_GIVE_UP_SECONDS: Final = 0.1
"""How often a waiting call asks whether to give up."""


class HubClient:
    """One actor. Thread-safe; `push` and `latest` belong to one thread, the learner's."""

    def __init__(
        self,
        plan: RunPlan,
        identity: Identity,
        *,
        loop: LoopThread,
        contribution_bytes: int,
        transport: GrpcTransport | None = None,
        pinned: bool = False,
    ) -> None:
        """Talks to nobody yet.

        Args:
            identity: rank, incarnation, and the schema of the parameters, [N].
            contribution_bytes: size of every contribution.
            transport: other than over plain gRPC on `loop`.
            pinned: the parameters go to a GPU, use page-locked buffers.
        """
        self._transport = transport or GrpcTransport(loop, wire=WIRE)
        terms = Terms(plan, identity, contribution_bytes)

        def make_buffer() -> Tensor:
            return new_buffer(identity.num_elements, terms.precision, pinned=pinned)

        self._attendance = Attendance(terms, transport=self._transport, make_buffer=make_buffer)
        self._taken: Parameters | None = None
        self._lineage: int | None = None
        """Of the parameters taken last."""
        self._seconds = self._waited_seconds = 0.0
        self._started = False
        self.is_waiting = False
        """Whether the learner waits in `push` or `latest`. To be read by any thread."""

    def start(self) -> None:
        """Connects, and connects again whenever the stream breaks. Returns at once."""
        attendance = self._attendance
        self._transport.watch(attendance, attendance.terms.heartbeat / 2)
        self._transport.call_soon(attendance.dial)
        self._started = True

    def set_plan(self, plan: RunPlan) -> None:
        """Adopts a newer epoch: the hub may have moved. Thread-safe."""
        self._transport.call_soon(lambda: self._attendance.set_plan(plan))

    def close(self) -> None:
        """Says farewell, closes everything. Without effect when called again."""
        if not self._started:
            return
        self._started = False
        attendance = self._attendance
        why = Leaving.FINISHED if attendance.finished else Leaving.STOPPED
        self._transport.call_soon(lambda: attendance.leave(why))
        self._transport.close(CLOSE_SECONDS)

    # ---------------------------------------------------------------- every update

    def push(
        self,
        payload: Sequence[Octets],
        *,
        version: int,
        steps: int,
        timeout: float,
        give_up: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Hands a contribution over: one copy, which then travels while this thread goes on.

        Waits for credit: at most `MAX_UNPROCESSED` contributions of an actor are on their way or wait at the hub, also
        while the hub is away. Asks for newer parameters if none are here. Each contribution reaches the hub's learner
        once, in order; none of them if the hub's process dies.

        Args:
            payload: pieces, contiguous, together `contribution_bytes` long; may be changed as soon as this returns.
            version: of the parameters it was made with.
            steps: agent decisions in it.
            timeout: seconds to wait for credit.
            give_up: asked while waiting.

        Returns: False when there was no credit in time: the same may be pushed again. True also when there is nothing
        to be done about it any more: it was made with parameters of a hub's process that is gone (`ClientStats.lost`).

        Raises: ValueError when it has another length.
        """
        began = time.perf_counter()
        attendance = self._attendance
        pieces = [memoryview(piece).cast("B") for piece in payload]
        if sum(map(len, pieces)) != attendance.terms.contribution_bytes:
            raise ValueError(f"{sum(map(len, pieces))} bytes, not {attendance.terms.contribution_bytes}")
        try:
            with attendance.lock:
                if attendance.ready is None and attendance.session is not None:
                    attendance.session.ask()
                if not self._wait(lambda: attendance.has_credit or self._is_outdated, timeout, give_up):
                    return False
                if self._is_outdated:
                    attendance.lost += 1
                    return True
                parcel = attendance.begin_parcel()
            offset = 0
            for piece in pieces:
                parcel.buffer[offset : offset + len(piece)] = piece
                offset += len(piece)
            parcel.version, parcel.steps = version, steps
            with attendance.lock:
                if self._is_outdated:  # meanwhile
                    attendance.lost += 1
                    attendance.give_up(parcel)
                else:
                    attendance.post(parcel)
            return True
        finally:
            self._seconds += time.perf_counter() - began

    def request(self) -> None:
        """Asks the hub for its newest parameters, unless an answer is under way; does not wait.

        They travel while this thread goes on. Whoever asks shortly before `latest` gets the freshest.
        """
        with self._attendance.lock:
            if self._attendance.session is not None:
                self._attendance.session.ask()

    def latest(self, timeout: float = 0.0, give_up: Callable[[], bool] = lambda: False) -> Parameters | None:
        """The newest complete parameters, if they have not been taken yet; else None, and the hub is asked for newer.

        Args:
            timeout: seconds to wait for some.
            give_up: asked while waiting.
        """
        began = time.perf_counter()
        attendance = self._attendance
        with attendance.lock:
            if attendance.ready is None:
                if attendance.session is not None:
                    attendance.session.ask()
                if timeout > 0:
                    self._wait(lambda: attendance.ready is not None or attendance.finished, timeout, give_up)
            parameters, attendance.ready = attendance.ready, None
        if parameters is not None:
            if self._taken is not None:
                attendance.give_back_buffer(self._taken.vector)
            self._taken = parameters
            self._lineage = parameters.lineage
        self._seconds += time.perf_counter() - began
        return parameters

    # ---------------------------------------------------------------- what is known

    @property
    def connected(self) -> bool:
        """Whether the hub answers."""
        return self._attendance.is_open

    @property
    def has_news(self) -> bool:
        """Complete parameters wait for `latest`."""
        return self._attendance.ready is not None

    @property
    def finished(self) -> bool:
        """The hub has said that the run has its steps. The last parameters may have been lost on the way."""
        return self._attendance.finished

    def progress(self) -> dict[int, int]:
        """rank -> agent decisions that the hub has learned from, as far as it has said."""
        with self._attendance.lock:
            return dict(self._attendance.progress)

    def stats(self) -> ClientStats:
        """A consistent picture of this moment."""
        attendance = self._attendance
        with attendance.lock:
            state = attendance.session.state if attendance.session is not None else State.CLOSED
            return ClientStats(
                connected=state is State.OPEN,
                state=state.value,
                contributions=attendance.contributions,
                bytes_out=attendance.bytes_out,
                parameters=attendance.parameters,
                bytes_in=attendance.bytes_in,
                replaced=attendance.replaced,
                refused=attendance.refusals,
                lost=attendance.lost,
                seconds=self._seconds,
                waited_seconds=self._waited_seconds,
                strangers=attendance.journal.counts,
            )

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call: peer-gone, peer-back, refused; oldest first."""
        return self._attendance.journal.collect()

    # ---------------------------------------------------------------- the lock is held

    @property
    def _is_outdated(self) -> bool:
        """Whether the parameters taken last are of a hub's process that is gone."""
        return self._lineage is not None and self._lineage != self._attendance.lineage

    def _wait(self, predicate: Callable[[], bool], timeout: float, give_up: Callable[[], bool]) -> bool:
        if predicate():
            return True
        began = time.perf_counter()
        self.is_waiting = True
        deadline = time.monotonic() + timeout
        try:
            while (remaining := deadline - time.monotonic()) > 0 and not give_up():
                if self._attendance.lock.wait_for(predicate, min(remaining, _GIVE_UP_SECONDS)):
                    return True
            return False
        finally:
            self.is_waiting = False
            self._waited_seconds += time.perf_counter() - began
