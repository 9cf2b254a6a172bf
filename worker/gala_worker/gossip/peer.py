"""The learner's side of gossip: offer parameters, mix those of the neighbours, see who is there.

    peer = GossipPeer(rank, plan, schema.hash, schema.num_elements, transport=..., incarnation=...)
    peer.start(); state = peer.fetch_state(10.0); peer.join()
    while training:
        ...one update...
        peer.offer(vector, version=updates, steps=steps)     # never blocks
        mixing = peer.mix(vector)                             # in place; None = nothing to mix
        peer.answer_state_requests(make_state)
    peer.close()

The rules live in `neighbourhood`, `in_peers` and `out_peers` (who is there), `sending` and `receiving` (each edge),
`rules` (when and how to mix), and `joining` (what a starting learner asks); the network in the transport.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from gala.plan import RunPlan
from gala_worker.gossip.buffers import Buffers
from gala_worker.gossip.joining import Joiner
from gala_worker.gossip.membership import Identity
from gala_worker.gossip.messages import Leaving, Precision, Progress, Reason, StateRequest
from gala_worker.gossip.mixing import Distance, distance
from gala_worker.gossip.neighbourhood import Neighbourhood
from gala_worker.gossip.rules import Average, PushSum, Rule, Taken
from gala_worker.gossip.stats import GossipStats
from gala_worker.gossip.transport import Transport

MAX_STATE_CANDIDATES: Final = 16
"""Neighbours that a starting learner asks for their state."""
MEASURE_EVERY: Final = 10
"""Mixings between two looks at the disagreement: measuring costs several times as much as mixing."""
LOOK_SECONDS: Final = 0.25
"""How often a learner that waits looks whether it is to stop."""
CLOSE_SECONDS: Final = 1.0
"""How long a farewell may take."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """What one mixing was made of."""

    peers: tuple[int, ...]
    versions: tuple[int, ...]
    """The neighbours' update counts."""
    incarnations: tuple[int, ...]
    """Which process of each neighbour sent it: a version alone may come from several."""
    staleness_updates: int
    """Updates of this learner between the arrival of a message and its mixing; the largest of the neighbours'."""
    staleness_seconds: float
    """From the neighbour's offer to the mixing, network time apart; the largest."""
    disagreement: float
    """||x - m|| of the parameters before mixing; measured at the first, then at every `MEASURE_EVERY`-th mixing."""
    relative_disagreement: float
    """||x - m|| / ||x||."""


class GossipPeer:
    """One learner among its neighbours. Thread-safe; `offer` and `mix` belong to one thread, the learner's."""

    def __init__(
        self,
        rank: int,
        plan: RunPlan,
        schema_hash: str,
        num_elements: int,
        *,
        transport: Transport,
        incarnation: int,
        num_parameters: int | None = None,
        pinned: bool = False,
    ) -> None:
        """Talks to nobody yet.

        Args:
            num_elements: N of the flat vector.
            num_parameters: P, how many of them, from the first, the disagreement is measured over; default all. What
                else is gossiped (observation statistics) is on another scale and would drown it.
            pinned: the vector lives on a GPU, use page-locked buffers.
        """
        self._transport = transport
        self._identity = Identity(rank, incarnation, schema_hash, num_elements)
        self._condition = threading.Condition()
        precision = Precision[plan.spec.gossip.precision.upper()]

        shared = transport.is_this_machine(plan.learner(rank).address.gossip)
        buffers = Buffers(num_elements, precision, pinned=pinned, shared=shared)
        self._pool = buffers.pool
        self._hood = Neighbourhood(
            plan,
            self._identity,
            transport=transport,
            condition=self._condition,
            buffers=buffers,
        )
        self._own = self._hood.standing
        self._rule: Rule = (PushSum if self._own.push_sum else Average)(self._hood)
        self._num_parameters = num_elements if num_parameters is None else num_parameters
        self._distance = Distance(0.0, 0.0)
        self._mixes = self._skips = 0
        self._seconds = self._waited_seconds = 0.0
        self._last: Mixing | None = None
        self._started = False
        self.is_waiting = False
        """Whether the learner is waiting in `mix`, as its staleness bound tells it to. To be read by any thread."""

    # ---------------------------------------------------------------- start and end

    def start(self, *, resumes: bool = False) -> None:
        """Listens: neighbours may push to this learner from now on.

        Args:
            resumes: this learner has a checkpoint to go on from: who asks it for its state is to ask again.

        Raises: GossipError when the address cannot be had.
        """
        own, members = self._own, self._own.membership
        own.resumes = resumes
        address = own.plan.learner(own.rank).address.gossip
        self._transport.serve(address, self._hood, members.heartbeat / 2, members.message_bytes)
        self._started = True

    def fetch_state(self, timeout_seconds: float, give_up: Callable[[], bool] = lambda: False) -> bytes | None:
        """The state of a live neighbour, in-peers first; None if nobody has one to give, or not in time.

        Args:
            timeout_seconds: how long those are asked again that are busy, or slow to answer. A learner that does not
                resume asks those again that do; and where the plan is not the run's first, those that do not know
                it yet, or do not answer yet: what it would begin with otherwise is worth less than what they have.
            give_up: asked before each question.
        """
        plan, rank = self._own.plan, self._own.rank
        own = plan.learner(rank)
        order = dict.fromkeys((*own.in_peers, *own.out_peers, *sorted(plan.ranks, key=lambda peer: abs(peer - rank))))
        candidates = [peer for peer in order if peer != rank][:MAX_STATE_CANDIDATES]
        request = StateRequest(plan.run_uid, rank, self._identity.schema_hash, self._identity.incarnation)
        # Parameters, optimiser state and whatever a recurrent or normalising policy adds to them.
        max_bytes = 16 * 4 * self._identity.num_elements + (64 << 20)
        addresses = [plan.learner(peer).address.gossip for peer in candidates]
        again = {Reason.TOO_BUSY}
        if not self._own.resumes:
            again |= {Reason.RESUMING, Reason.NOT_MY_PEER} if plan.epoch > 0 else {Reason.RESUMING}
        joiner = Joiner(self._transport, request, max_bytes, again=again)
        return joiner.fetch(addresses, timeout_seconds, give_up)

    def join(self, *, version: int = 0) -> None:
        """Opens the edges to the out-peers.

        Args:
            version: updates that this learner has made, in earlier lives or in that of the one whose state it has: if
                any, it has a state to give.
        """
        with self._condition:
            self._own.version = version
        self._transport.call_soon(self._hood.join)

    def set_plan(self, plan: RunPlan) -> None:
        """Knits the ring of a newer epoch; an older plan, or one of another run, is ignored. Thread-safe."""
        self._transport.call_soon(lambda: self._hood.set_plan(plan))

    def close(self, farewell: bool = True) -> None:
        """Says farewell, closes everything. Quick, and without effect when called again."""
        if not self._started:
            return
        self._started = False
        finished = self.global_steps() >= self._own.plan.spec.total_steps
        why = (Leaving.FINISHED if finished else Leaving.STOPPED) if farewell else None
        self._transport.call_soon(lambda: self._hood.leave(why))
        self._transport.close(CLOSE_SECONDS if farewell else 0.0)

    # ---------------------------------------------------------------- every update

    def offer(self, vector: Tensor | np.ndarray[Any, Any], *, version: int, steps: int) -> None:
        """Hands the newest parameters to the out-peers of this round: one copy, no waiting.

        Args:
            vector: [N] float32, may be changed as soon as this returns.
            version: this learner's update count; the round of a time-varying topology follows from it.
            steps: agent decisions that this learner has done.
        """
        began = time.perf_counter()
        own = self._own
        with self._condition:
            self._rule.begin(version)
            own.version = version
            own.known_progress[own.rank] = max(steps, own.known_progress.get(own.rank, 0))
            round = version // own.plan.spec.gossip.every_updates
            routes = self._hood.out_peers.routes
            edges = routes[round % len(routes)]
            snapshot = self._pool.acquire() if self._rule.has_receiver(edges, version) else None
        if snapshot is not None:
            snapshot.buffer.copy_(_tensor(vector))
            snapshot.version, snapshot.round, snapshot.taken_at = version, round, self._transport.now()
            with self._condition:
                sessions = [edge.session for edge in self._rule.hand_out(snapshot, edges)]
                self._pool.release(snapshot)
            now = self._transport.now()
            for session in sessions:
                if session is not None:
                    session.offered(now)
        self._seconds += time.perf_counter() - began

    def mix(self, vector: Tensor | np.ndarray[Any, Any], give_up: Callable[[], bool] = lambda: False) -> Mixing | None:
        """x <- (x + sum of m_j) / (1 + number of messages), in place, if every live in-peer has sent a fresh message.

        With push-sum, z <- (w z + sum of w_j z_j) / (w + sum of w_j) over whatever is fresh, and what was not taken
        by others is added to the vector, even where the answer is None.

        Where the staleness bound asks for it, waits for them, at most `peerTimeoutSeconds`; an in-peer that is not
        there by then is not waited for again until its next message.

        Args:
            vector: [N] float32; where the run averages, unchanged when the answer is None.
            give_up: asked several times a second while it waits; then it mixes what is there.
        """
        began = time.perf_counter()
        try:
            self._look()
            with self._condition:
                is_to_wait = not self._rule.is_ready() and self._rule.is_overdue()
            if is_to_wait:
                self._wait(give_up)
            self._rule.settle_(_tensor(vector))
            with self._condition:
                taken = self._rule.take()
            if not taken:
                self._skips += 1
                return None
            return self._mix(_tensor(vector), taken)
        finally:
            self._seconds += time.perf_counter() - began

    def _wait(self, give_up: Callable[[], bool]) -> None:
        began = time.perf_counter()
        self.is_waiting = True
        until = self._transport.now() + self._own.membership.timeout
        with self._listening():
            while not give_up():
                remaining = until - self._transport.now()
                if remaining <= 0:
                    with self._condition:
                        self._rule.excuse()
                    break
                if self._transport.wait(self._condition, self._rule.has_all, min(remaining, LOOK_SECONDS)):
                    break
        self.is_waiting = False
        self._waited_seconds += time.perf_counter() - began

    def answer_state_requests(self, make_state: Callable[[], bytes]) -> None:
        """Gives `make_state()` to the joiners that have asked; next to nothing when nobody has."""
        hood = self._hood
        if not hood.state_requests:
            return
        began = time.perf_counter()
        with self._condition:
            answers = list(hood.state_requests.values())
            hood.state_requests.clear()
        state = make_state()
        for answer in answers:
            self._transport.call_soon(lambda answer=answer: answer(state))  # type: ignore[misc]
        self._seconds += time.perf_counter() - began

    # ---------------------------------------------------------------- what is known

    def progress(self) -> dict[int, int]:
        """Agent decisions done by each rank, as far as this learner has heard."""
        return self._own.progress()

    def global_steps(self) -> int:
        """Agent decisions done by all learners together, as far as this one has heard."""
        with self._condition:
            return sum(self._own.known_progress.values())

    def merge_progress(self, progress: Progress) -> None:
        """Adds what a checkpoint or a neighbour's state knows."""
        self._own.merge_progress(progress)

    @property
    def weight(self) -> float:
        """Push-sum weight that this learner owns, without what is on its way; 1.0 where the run averages."""
        return self._own.account.weight

    def stats(self) -> GossipStats:
        """A consistent picture of this moment."""
        with self._condition:
            last = self._last
            return GossipStats(
                mixes=self._mixes,
                skips=self._skips,
                seconds=self._seconds,
                waited_seconds=self._waited_seconds,
                staleness_updates=last.staleness_updates if last else 0,
                staleness_seconds=last.staleness_seconds if last else 0.0,
                disagreement=last.disagreement if last else 0.0,
                relative_disagreement=last.relative_disagreement if last else 0.0,
                in_peers=tuple(sorted(rank for rank, edge in self._hood.in_peers.edges.items() if edge.session)),
                out_peers=self._hood.out_peers.ranks,
                edges=self._hood.edge_stats(),
                strangers=self._own.journal.counts,
                weight=self._own.account.weight,
            )

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call: peer-gone, peer-back, ring, refused; oldest first."""
        return self._own.journal.collect()

    def wait(self, predicate: Callable[[GossipStats], bool], seconds: float) -> bool:
        """Blocks until the gossip looks like this; False when it did not in time. For tests and launch scripts."""
        with self._listening():
            return self._transport.wait(self._condition, lambda: predicate(self.stats()), seconds)

    # ---------------------------------------------------------------- what lies in mailboxes

    def _look(self) -> None:
        now = self._transport.now()
        for session in self._hood.in_peers.live():
            session.look(now)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """While this lasts, in-peers say on their streams what they send; what they have posted is taken at once."""
        in_peers = self._hood.in_peers
        in_peers.listen(+1)
        try:
            self._look()  # after that: or something might be posted in between
            yield
        finally:
            in_peers.listen(-1)

    # ---------------------------------------------------------------- mixing; the lock is not held

    def _mix(self, vector: Tensor, taken: Taken) -> Mixing:
        edges, messages = zip(*taken, strict=True)
        buffers = [message.buffer for message in messages]
        if self._mixes % MEASURE_EVERY == 0:
            measured = slice(self._num_parameters)
            self._distance = distance(vector[measured], [buffer[measured] for buffer in buffers])
        self._rule.blend_(vector, messages)
        now, version = self._transport.now(), self._own.version
        mixing = Mixing(
            peers=tuple(edge.rank for edge in edges),
            versions=tuple(message.version for message in messages),
            incarnations=tuple(message.incarnation for message in messages),
            staleness_updates=max(0, *(version - message.updates_then for message in messages)),
            staleness_seconds=max(message.age_seconds + now - message.began_at for message in messages),
            disagreement=self._distance.disagreement,
            relative_disagreement=self._distance.relative,
        )
        with self._condition:
            for edge, message in taken:
                edge.inbox.give_back(message)
            self._rule.mixed(taken)
            self._mixes += 1
            self._last = mixing
        return mixing


def _tensor(vector: Tensor | np.ndarray[Any, Any]) -> Tensor:
    return vector.detach() if isinstance(vector, Tensor) else torch.from_numpy(vector)
