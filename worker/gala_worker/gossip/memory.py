"""The `Transport` without a network: any number of peers in one thread, in virtual time, with faults on demand.

It is deterministic: the same calls give the same events in the same order. Frames travel as the bytes they would be on
the wire. Time passes only in `advance`, `run_until`, and while a peer waits.

    network = MemoryNetwork()
    peers = [GossipPeer(rank, plan, ..., transport=network.transport(rank), incarnation=1) for rank in plan.ranks]
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Any

from gala.errors import GossipError, MessageError, RefusedError, SilentError
from gala_worker.gossip import framing
from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.messages import Reason, StateRequest
from gala_worker.gossip.transport import Endpoint, Link, Session


class MemoryNetwork:
    """Virtual time, and everything that is to happen in it."""

    shares_memory = False
    """Whether peers take each other to be on one machine, as they are; else they send their messages in chunks."""

    def __init__(self, *, latency_seconds: float = 0.001, faults: FaultScript | None = None) -> None:
        self.now = 0.0
        self.faults = faults or FaultScript()
        self.latency_seconds = latency_seconds
        self.slowness: dict[int, float] = {}
        """rank -> by how much longer everything from and to it takes."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._listening: dict[str, MemoryTransport] = {}
        self._transports: dict[int, MemoryTransport] = {}

    def transport(self, rank: int) -> MemoryTransport:
        """The transport of a new process of a rank."""
        transport = MemoryTransport(self, rank)
        self._transports[rank] = transport
        return transport

    def schedule(self, seconds: float, action: Callable[[], None]) -> None:
        """`action` is to happen so many seconds from now."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.run_until(lambda: False, seconds)

    def run_until(self, predicate: Callable[[], bool], seconds: float) -> bool:
        """Lets time pass until the predicate holds; False if it does not within so many seconds."""
        deadline = self.now + seconds
        while not predicate():
            if not self._events or self._events[0][0] > deadline:
                self.now = max(self.now, deadline)
                return predicate()
            due, _, action = heapq.heappop(self._events)
            self.now = max(self.now, due)
            action()
        return True

    # ---------------------------------------------------------------- what happens to processes

    def kill(self, rank: int) -> None:
        """The process of a rank is gone, without farewell; its connections break."""
        self._transports[rank].die()

    def hang(self, rank: int) -> None:
        """The process of a rank stands still, with all its connections open."""
        self._transports[rank].hung = True

    def resume(self, rank: int) -> None:
        """A hanging process goes on where it was."""
        self._transports[rank].resume()

    def sever(self, source: int, target: int) -> int:
        """Breaks the streams between two ranks; what is on its way is lost. Returns: how many streams."""
        links = [link for link in self._transports[source].links if link.other and link.other.owner.rank == target]
        for link in links:
            if link.other is not None:
                link.other.close("unavailable")
            link.close("unavailable")
        return len(links)

    def delay(self, source: int, target: int) -> float:
        """Seconds that anything takes from one rank to another."""
        return self.latency_seconds * max(self.slowness.get(source, 1.0), self.slowness.get(target, 1.0))

    def listen(self, address: str, transport: MemoryTransport) -> None:
        """An address is taken."""
        self._listening[address] = transport

    def stop_listening(self, transport: MemoryTransport) -> None:
        """Its addresses are free again."""
        self._listening = {address: other for address, other in self._listening.items() if other is not transport}

    def at(self, address: str) -> MemoryTransport | None:
        """Who listens there."""
        return self._listening.get(address)


class MemoryTransport:
    """One process's side of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, rank: int) -> None:
        self.network = network
        self.rank = rank
        self.endpoint: Endpoint | None = None
        self.links: set[MemoryLink] = set()
        self.hung = False
        self.dead = False
        self._backlog: list[Callable[[], None]] = []

    # ---------------------------------------------------------------- Transport

    def now(self) -> float:
        """Virtual seconds."""
        return self.network.now

    def is_this_machine(self, address: str) -> bool:
        """As the network says."""
        return self.network.shares_memory

    def serve(self, address: str, endpoint: Endpoint, tick_seconds: float, message_bytes: int) -> None:
        """Listens until `close` or death."""
        if self.network.at(address) is not None:
            raise GossipError(f"cannot listen on {address}: taken")
        self.endpoint = endpoint
        self.network.listen(address, self)

        def tick() -> None:
            if self.dead:
                return
            self.network.schedule(tick_seconds, tick)
            if not self.hung:
                endpoint.tick(self.network.now)
                for link in list(self.links):
                    link.wake()

        self.network.schedule(tick_seconds, tick)

    def connect(self, address: str, make_session: Callable[[Link], Session]) -> Session:
        """A pair of links, if somebody listens."""
        near = MemoryLink(self)
        session = near.session = make_session(near)

        def arrive() -> None:
            target = self.network.at(address)
            if target is None or target.endpoint is None:
                self.do(lambda: near.close("unavailable"))
                return
            far = MemoryLink(target)
            near.other, far.other = far, near
            target.do(lambda: self._accepted(far))
            near.wake()

        self.network.schedule(self.network.latency_seconds, arrive)
        return session

    @staticmethod
    def _accepted(link: MemoryLink) -> None:
        assert link.owner.endpoint is not None
        session = link.owner.endpoint.accept(link, link.owner.now())
        if session is None:
            link.close("turned away")
            return
        link.session = session

    def fetch_state(
        self, address: str, request: StateRequest, *, first_seconds: float, seconds: float, max_bytes: int
    ) -> bytes:
        """Lets time pass until the neighbour has answered."""
        answers: list[bytes | Reason] = []
        target = self.network.at(address)
        if target is None or target.endpoint is None:
            raise GossipError(f"nobody listens at {address}")
        endpoint = target.endpoint
        target.do(lambda: endpoint.state_requested(request, answers.append))
        if not self.network.run_until(lambda: bool(answers), min(first_seconds, seconds)):
            raise SilentError(f"{address} gives no state in time")
        if isinstance(answers[0], Reason):
            raise RefusedError(answers[0].name)
        if len(answers[0]) > max_bytes:
            raise MessageError(f"a state of {len(answers[0])} bytes")
        return answers[0]

    def call_soon(self, function: Callable[[], object]) -> None:
        """At once: there is one thread."""
        function()

    def wait(self, condition: threading.Condition, predicate: Callable[[], bool], seconds: float) -> bool:
        """Lets time pass, for everybody."""

        def holds() -> bool:
            with condition:
                return predicate()

        return self.network.run_until(holds, seconds)

    def close(self, grace_seconds: float) -> None:
        """Lets farewells arrive, then ends."""
        for link in self.links:
            link.wake()
        self.network.run_until(lambda: not self.links, grace_seconds)
        for link in list(self.links):
            link.close("cancelled")
        self.network.stop_listening(self)
        self.dead = True

    # ---------------------------------------------------------------- what happens to it

    def do(self, action: Callable[[], None]) -> None:
        """Something reaches this process: now, when it wakes up, or never."""
        if self.hung and not self.dead:
            self._backlog.append(action)
        elif not self.dead:
            action()

    def resume(self) -> None:
        """Everything that has reached it meanwhile is dealt with."""
        self.hung = False
        backlog, self._backlog = self._backlog, []
        for action in backlog:
            action()
        for link in list(self.links):
            link.wake()

    def die(self) -> None:
        """Breaks all connections."""
        self.dead = True
        self.network.stop_listening(self)
        for link in self.links:
            link.hang_up()
        self.links.clear()


class MemoryLink:
    """One end of a stream."""

    def __init__(self, owner: MemoryTransport) -> None:
        self.owner = owner
        self.session: Any = None
        self.other: MemoryLink | None = None
        self._closed = False
        self._awake = False
        self._last_arrival = 0.0
        owner.links.add(self)

    def wake(self) -> None:
        """Asks the session what it has to say, as the next thing that happens."""
        if not self._awake and not self._closed:
            self._awake = True
            self.owner.network.schedule(0.0, lambda: self.owner.do(self._speak))

    def abort(self) -> None:
        """Closes the stream."""
        self.owner.network.schedule(0.0, lambda: self.owner.do(lambda: self.close("silent")))

    def _speak(self) -> None:
        self._awake = False
        network = self.owner.network
        while not self._closed and self.session is not None and self.other is not None:
            frame = self.session.next_frame(network.now)
            if frame is None:
                if self.session.finished:
                    self.close("closed")
                return
            source, target = self.owner.rank, self.other.owner.rank
            for late, data in network.faults.deliver(source, target, frame):
                self._send(self.other, data, network.delay(source, target) + late)

    def _send(self, other: MemoryLink, data: bytes, seconds: float) -> None:
        network = self.owner.network
        self._last_arrival = max(self._last_arrival, network.now + seconds)  # a stream keeps its order
        network.schedule(self._last_arrival - network.now, lambda: other.owner.do(lambda: other.hear(data)))

    def hear(self, data: bytes) -> None:
        """Bytes of one frame arrive."""
        if self._closed or self.session is None:
            return
        try:
            self.session.receive(framing.decode(data), self.owner.now())
        except MessageError as error:
            self.session.reject(str(error))

    def close(self, why: str) -> None:
        """This end is closed, soon the other one."""
        if self._closed:
            return
        self._closed = True
        self.owner.links.discard(self)
        self.hang_up()
        if self.session is not None:
            self.session.ended(self.owner.now(), why)

    def hang_up(self) -> None:
        """The other end notices, after all that has been sent."""
        other, network = self.other, self.owner.network
        if other is not None:
            after = max(self._last_arrival - network.now, network.delay(self.owner.rank, other.owner.rank))
            network.schedule(after, lambda: other.owner.do(lambda: other.close("unavailable")))
