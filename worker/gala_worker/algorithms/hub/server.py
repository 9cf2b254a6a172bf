"""Rank 0's end of the star: take what the actors send, publish parameters.

server = HubServer(plan, identity, loop=loop, contribution_bytes=size)
server.start()
server.publish(vector, version=updates, progress=progress)
while training:
    contribution = server.take(1.0)              # None: nothing came within a second
    ...one update...
    contribution.release()
    server.publish(vector, version=updates, progress=progress)
server.publish(vector, version=updates, progress=progress, finished=True)
server.close()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor

from gala.plan import RunPlan
from gala_worker.algorithms.hub.contributions import Contribution
from gala_worker.algorithms.hub.framing import WIRE
from gala_worker.algorithms.hub.reception import Reception
from gala_worker.algorithms.hub.stats import ServerStats
from gala_worker.algorithms.hub.terms import Terms
from gala_worker.gossip.codec import new_buffer
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.membership import Identity
from gala_worker.gossip.messages import Leaving, Refusal

CLOSE_SECONDS: Final = 1.0
"""How long a farewell may take."""
FINISH_SECONDS: Final = 10.0
"""How long the last parameters may take to reach everybody."""


class HubServer:
    """The hub. Thread-safe; `take` and `publish` belong to one thread, the learner's."""

    def __init__(
        self,
        plan: RunPlan,
        identity: Identity,
        *,
        loop: LoopThread,
        contribution_bytes: int,
        inspect: Callable[[memoryview], Refusal | None] = lambda payload: None,
        transport: GrpcTransport | None = None,
        pinned: bool = False,
    ) -> None:
        """Talks to nobody yet.

        Args:
            identity: rank, incarnation, and the schema of the parameters, [N].
            contribution_bytes: size of every contribution; actors with another size are refused.
            inspect: looks at a complete contribution on the loop's thread, before `take` can see it; what it refuses is
                counted, reported to its actor, and gone. To be quick.
            transport: other than over plain gRPC on `loop`.
            pinned: the vector lives on a GPU, use page-locked buffers.
        """
        self._transport = transport or GrpcTransport(loop, wire=WIRE)
        terms = Terms(plan, identity, contribution_bytes)

        def make_buffer() -> Tensor:
            return new_buffer(identity.num_elements, terms.precision, pinned=pinned)

        self._reception = Reception(terms, transport=self._transport, make_buffer=make_buffer, inspect=inspect)
        self._finished = False
        self._started = False

    def start(self) -> None:
        """Listens: actors may attend from now on. They get parameters as soon as some are published.

        Raises: GossipError when the address cannot be had.
        """
        terms = self._reception.terms
        self._transport.serve(terms.address, self._reception, terms.heartbeat / 2, terms.contribution_bytes)
        self._started = True

    def set_plan(self, plan: RunPlan) -> None:
        """Adopts a newer epoch: actors that are no longer in it are sent away, new ones may come. Thread-safe."""
        self._transport.call_soon(lambda: self._reception.set_plan(plan))

    def close(self) -> None:
        """Says farewell, closes everything. Without effect when called again.

        After `publish(finished=True)` it waits until every actor of the plan has the last parameters and has said
        farewell, at most `FINISH_SECONDS`: one that comes later finds nobody who could tell it that the run is over.
        """
        if not self._started:
            return
        self._started = False
        reception = self._reception
        if self._finished:
            with reception.lock:
                reception.lock.wait_for(lambda: not reception.missing(), FINISH_SECONDS)
        why = Leaving.FINISHED if self._finished else Leaving.STOPPED
        self._transport.call_soon(lambda: reception.leave(why))
        self._transport.close(CLOSE_SECONDS)

    def take(self, timeout: float) -> Contribution | None:
        """The next contribution: in an actor's own order, and in turn between actors, so that a fast one does not
        crowd out the others. Its actor may send another one in its place.

        Args:
            timeout: seconds to wait for one.
        """
        reception = self._reception
        with reception.lock:
            if not len(reception.queue):
                reception.lock.wait_for(lambda: len(reception.queue), timeout)
            return reception.take()

    def publish(self, vector: Tensor, *, version: int, progress: Mapping[int, int], finished: bool = False) -> None:
        """Hands the newest parameters to every actor that asks for some: one copy, no waiting; the latest wins.

        Args:
            vector: [N] float32, may be changed as soon as this returns.
            version: the update count; may go backwards only from process to process.
            progress: rank -> agent decisions that have been learned from.
            finished: the run has its steps: sent to every actor, asked for or not.
        """
        reception = self._reception
        with reception.lock:
            edition = reception.press.begin()
        edition.buffer.copy_(vector)
        edition.version, edition.progress, edition.finished = version, dict(progress), finished
        with reception.lock:
            reception.press.publish(edition)
        self._finished = finished
        reception.wake_who_wants()

    def stats(self) -> ServerStats:
        """A consistent picture of this moment."""
        return self._reception.stats()

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call: peer-gone, peer-back, refused; oldest first."""
        return self._reception.journal.collect()

    def wait(self, predicate: Callable[[ServerStats], bool], seconds: float) -> bool:
        """Blocks until the hub looks like this; False when it did not in time. For tests and launch scripts."""
        deadline = time.monotonic() + seconds
        while not predicate(self.stats()):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            with self._reception.lock:
                self._reception.lock.wait(min(remaining, 0.05))
        return True
