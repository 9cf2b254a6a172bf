"""Who is there: in-peers and out-peers, their comings and goings, the healed ring. No input or output of its own.

Everything here runs on the transport's thread; what the learner thread reads is guarded by `lock`, which is held for
bookkeeping only.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Final

from gala.plan import RunPlan
from gala_worker.gossip import ring
from gala_worker.gossip.buffers import Buffers
from gala_worker.gossip.journal import Journal
from gala_worker.gossip.membership import Identity, Membership
from gala_worker.gossip.messages import Hello, Leaving, Precision, Progress, Reason, Refusal, StateRequest, Welcome
from gala_worker.gossip.patience import HELLO_SECONDS, MAX_STRANGERS, Attention
from gala_worker.gossip.push_sum import Account, PushSumOutbox, is_acceptable
from gala_worker.gossip.receiving import InEdge, Receiving
from gala_worker.gossip.sending import OutEdge, SenderState, Sending
from gala_worker.gossip.slots import Outbox
from gala_worker.gossip.stats import EdgeStats
from gala_worker.gossip.transport import Link, Transport

log = logging.getLogger(__name__)

MAX_DIALS: Final = 16
"""Connections being made at the same time."""


class Neighbourhood:
    """The hosts of all sessions, and the `Endpoint` of the transport."""

    def __init__(
        self,
        plan: RunPlan,
        identity: Identity,
        *,
        transport: Transport,
        condition: threading.Condition,
        buffers: Buffers,
    ) -> None:
        self.rank = identity.rank
        self.membership = Membership(plan, identity)
        self.lock = condition
        self.in_edges: dict[int, InEdge] = {}
        self.out_edges: dict[int, OutEdge] = {}
        self.routes: tuple[tuple[OutEdge, ...], ...] = ((),)
        """For each round of the topology's period, the open edges to push on. Replaced as a whole, never changed."""
        self.out_peers: tuple[int, ...] = ()
        self.journal = Journal(log)
        self.known_progress: dict[int, int] = {}
        self.version = 0
        """The learner's update count, as of its last offer."""
        self.state_requests: dict[int, Callable[[bytes | Reason], None]] = {}
        self._identity = identity
        self._transport = transport
        self.push_sum = self.membership.push_sum
        self.account = Account(buffers.pool)
        """The learner's weight; stays 1.0 where messages carry none."""
        self.buffers = buffers
        self._random = random.Random(f"{plan.run_uid}/{identity.rank}/{identity.incarnation}")
        self._receiving: set[Receiving] = set()
        self._joined = False
        self._closing = False
        self._attention = Attention()

    @property
    def plan(self) -> RunPlan:
        """The newest."""
        return self.membership.plan

    # ---------------------------------------------------------------- commands, on the transport's thread

    def join(self) -> None:
        """From now on, push to the out-peers."""
        self._joined = True
        self._knit(self._transport.now())

    def set_plan(self, plan: RunPlan) -> None:
        """A newer plan: knit the ring anew. An older one is ignored."""
        if plan.epoch <= self.plan.epoch or plan.run_uid != self.plan.run_uid:
            return
        self.membership = Membership(plan, self._identity)
        for rank in [rank for rank in self.in_edges if rank not in self.membership.ranks]:
            in_edge = self.in_edges[rank]
            if in_edge.session is not None:
                in_edge.session.leave(Leaving.REKNIT)
            with self.lock:
                in_edge.inbox.clear()
                del self.in_edges[rank]
                self.lock.notify_all()
        for out_edge in self.out_edges.values():  # a rank may have come back at another address
            out_edge.backoff.reset()
        self._knit(self._transport.now())

    def leave(self, why: Leaving | None) -> None:
        """Open no more edges, and say farewell on every one that is open; None = without a word."""
        self._closing = True
        self.routes, self.out_peers = ((),) * self.membership.period, ()
        if why is None:
            return
        for out_edge in self.out_edges.values():
            if out_edge.session is not None:
                out_edge.session.leave(why)
        for receiving in list(self._receiving):
            receiving.leave(why)

    # ---------------------------------------------------------------- Endpoint

    def accept(self, link: Link, now: float) -> Receiving | None:
        """Anybody may say hello, though not too many at once."""
        if self._closing or sum(session.edge is None for session in self._receiving) >= MAX_STRANGERS:
            text = "too many strangers at the door: turning some away"
            self.journal.refusal(Reason.TOO_BUSY.name, None, text, now, direction="in")
            return None
        session = Receiving(self, link, now, heartbeat=self.membership.heartbeat)
        self._receiving.add(session)
        return session

    def tick(self, now: float) -> None:
        """Close what has fallen silent; try again what is due."""
        if self._attention.was_away(now, self.membership.timeout):
            for session in self._sessions():
                session.heard_at = now
        for receiving in list(self._receiving):
            patience = HELLO_SECONDS if receiving.edge is None or receiving.finished else self.membership.timeout
            since = receiving.began_at if receiving.edge is None else receiving.heard_at
            if now - since > patience:
                receiving.link.abort()
        for edge in list(self.out_edges.values()):
            with self.lock:
                edge.outbox.give_up(now - self.membership.timeout)
            if edge.session is None:
                continue
            if edge.session.state is SenderState.OPEN and edge.session.heard_at is not None:
                silent = now - edge.session.heard_at > self.membership.timeout
            else:
                silent = now - edge.dialled_at > min(HELLO_SECONDS, self.membership.timeout)
            if silent:
                edge.session.link.abort()
        self._knit(now)
        with self.lock:
            self.lock.notify_all()

    def state_requested(self, request: StateRequest, answer: Callable[[bytes | Reason], None]) -> None:
        """Keep the question for the learner, who alone knows its state."""
        reason = self.membership.objection_to_request(request)
        if reason is None and (self.version == 0 or self._closing):
            reason = Reason.NOTHING_YET
        if reason is not None:
            if reason is not Reason.NOTHING_YET:
                self._complain(reason, request.rank, "asks for state")
            answer(reason)
            return
        self._knocked(request.rank)
        with self.lock:
            self.state_requests[request.rank] = answer

    # ---------------------------------------------------------------- hosts of both kinds of sessions

    def progress(self) -> Progress:
        """A copy of what this peer knows."""
        with self.lock:
            return dict(self.known_progress)

    def merge_progress(self, progress: Progress) -> None:
        """By maximum, entry by entry."""
        with self.lock:
            known = self.known_progress
            for rank, steps in progress.items():
                if steps > known.get(rank, -1):
                    known[rank] = steps

    # ---------------------------------------------------------------- SenderHost

    def welcomed(self, session: Sending, welcome: Welcome, now: float) -> None:
        """An out-edge is open."""
        edge = self.out_edges[session.rank]
        with self.lock:
            edge.outbox.settle(welcome.accepted, welcome.incarnation)
        if edge.was_open and edge.gone:
            self.journal.note("peer-back", peer=edge.rank, direction="out")
        edge.gone, edge.was_open = False, True
        edge.backoff.reset()
        self._knit(now)

    def refused(self, session: Sending, refusal: Refusal) -> None:
        """An out-peer refuses us, or one of our messages."""
        text = f"rank {session.rank} refuses: {refusal.reason.text} ({refusal.detail!r})"
        self.journal.refusal(refusal.reason.name, session.rank, text, self._transport.now(), direction="out")

    def acknowledged(self) -> None:
        """Somebody may be waiting for an outbox to empty."""
        with self.lock:
            self.lock.notify_all()

    def receiver_left(self, session: Sending, why: Leaving) -> None:
        """An out-peer leaves: push to the next one at once."""
        edge = self.out_edges[session.rank]
        with self.lock:
            edge.outbox.withdraw()
        self._out_gone(edge, why.name.lower())
        self._knit(self._transport.now())

    def sender_ended(self, session: Sending, now: float, why: str) -> None:
        """An out-edge is closed, whoever closed it."""
        edge = self.out_edges.get(session.rank)
        if edge is None or edge.session is not session:
            return
        with self.lock:
            edge.session = None
        if not session.is_leaving:
            self._out_gone(edge, why)
            edge.backoff.failed(now)
        self._knit(now)

    # ---------------------------------------------------------------- ReceiverHost

    def admit(self, session: Receiving, hello: Hello, now: float) -> InEdge | Refusal:
        """The checks of a hello."""
        reason = self.membership.objection_to(hello)
        edge = self.in_edges.get(hello.rank)
        if reason is None and self._closing:
            reason = Reason.NOT_MY_PEER
        if reason is None and edge and edge.knows_younger(hello.incarnation, now, self.membership.timeout):
            reason = Reason.STALE_INCARNATION
        if reason is not None:
            stranger = reason in (Reason.WRONG_RUN, Reason.NOT_MY_PEER)
            self._complain(reason, None if stranger else hello.rank, f"rank {hello.rank} says hello")
            return Refusal(reason, reason.text)
        if edge is None:
            edge = InEdge(hello.rank, self.buffers.inbox(exact=self.push_sum))
        if edge.session is not None:
            edge.session.supersede()
        if edge.gone_at is not None:
            self.journal.note("peer-back", peer=edge.rank, direction="in")
        with self.lock:
            self.in_edges[hello.rank] = edge
            if self.push_sum:
                edge.inbox.clear()  # the welcome says that what is not taken now will not be
                edge.accepted = edge.accepted if hello.incarnation == edge.incarnation else 0
                edge.mixed_version = self.version
            edge.session, edge.incarnation, edge.valid_at = session, hello.incarnation, now
            edge.gone_at = None
        self._knocked(hello.rank)
        return edge

    def welcome(self, edge: InEdge, *, sees_memory: bool) -> Welcome:
        """Our answer to a proper hello."""
        incarnation, epoch = self._identity.incarnation, self.plan.epoch
        return Welcome(self.plan.run_uid, self.rank, incarnation, epoch, self.progress(), edge.accepted, sees_memory)

    def message_bytes(self) -> int:
        """Size of every message of this run."""
        return self.membership.message_bytes

    def precision(self) -> Precision:
        """Number format of every message of this run."""
        return self.membership.precision

    def own_version(self) -> int:
        """This learner's update count."""
        return self.version

    def takes_weight(self, weight: float) -> bool:
        """Whether an honest message may carry it; without push-sum it does not matter."""
        return not self.push_sum or is_acceptable(weight, len(self.membership.ranks))

    def arrived(self, edge: InEdge, now: float) -> None:
        """Tell the learner, if it waits."""
        with self.lock:
            edge.valid_at = now
            self.lock.notify_all()

    def message_refused(self, edge: InEdge | None, reason: Reason, text: str) -> None:
        """Count it; say so once in a while."""
        self._complain(reason, None if edge is None else edge.rank, text)

    def sender_left(self, edge: InEdge, why: Leaving) -> None:
        """An in-peer leaves: nobody waits for it any more."""
        self._in_gone(edge, why.name.lower())

    def receiver_ended(self, session: Receiving, now: float, why: str) -> None:
        """An in-edge is closed, whoever closed it."""
        self._receiving.discard(session)
        edge = session.edge
        if edge is not None and edge.session is session:
            self._in_gone(edge, why)

    # ---------------------------------------------------------------- the ring

    def _knit(self, now: float) -> None:
        if not self._joined or self._closing:
            return
        gone = {rank for rank, edge in self.out_edges.items() if edge.gone}
        chosen = ring.choose(self.membership.out_peers, self.membership.ranks, self.rank, gone)
        wanted = {peer for peer in chosen if peer is not None}
        wanted |= ring.nearer(self.membership.out_peers, chosen, self.membership.ranks, self.rank)
        for edge in list(self.out_edges.values()):
            if edge.rank not in wanted and edge.session is not None:
                edge.session.leave(Leaving.REKNIT)
            if edge.rank not in self.membership.ranks and edge.session is None:
                with self.lock:
                    edge.outbox.withdraw()
                del self.out_edges[edge.rank]
        heirs = dict(zip(self.membership.out_peers, chosen, strict=True))
        routes = tuple(
            tuple(
                self.out_edges[heir]
                for heir in (heirs[peer] for peer in peers)
                if heir is not None and heir in self.out_edges and self.out_edges[heir].is_open
            )
            for peers in self.membership.out_peers_by_round
        )
        current = tuple(sorted({edge.rank for edges in routes for edge in edges}))
        with self.lock:
            self.routes = routes
            if current != self.out_peers:
                self.out_peers = current
                self.journal.note("ring", outPeers=list(current), epoch=self.plan.epoch)
            self.buffers.pool.trim(len(current))
            self.lock.notify_all()
        for peer in sorted(wanted):  # last: a connection may fail at once, and knit again
            self._dial(peer, now)

    def _dial(self, peer: int, now: float) -> None:
        edge = self.out_edges.get(peer)
        if edge is None:
            pool = self.buffers.pool
            outbox = PushSumOutbox(pool, self.account) if self.push_sum else Outbox(pool)
            edge = self.out_edges[peer] = OutEdge(peer, outbox, ring.Backoff(self._random))
        dials = sum(e.session is not None and not e.is_open for e in self.out_edges.values())
        if edge.session is not None or not edge.backoff.due(now) or dials >= MAX_DIALS:
            return
        edge.dialled_at = now
        self._transport.connect(self.plan.learner(peer).address.gossip, lambda link: self._greet(edge, link))

    def _greet(self, edge: OutEdge, link: Link) -> Sending:
        hello = self.membership.hello_to(edge.rank, self.buffers.memory)
        session = Sending(self, link, hello, edge.outbox, edge.counters, heartbeat=self.membership.heartbeat)
        with self.lock:
            edge.session = session
        return session

    def _knocked(self, rank: int) -> None:
        """A rank has been heard of: if it was thought to be gone, try it at once."""
        edge = self.out_edges.get(rank)
        if edge is not None and edge.gone:
            edge.backoff.reset()

    def _out_gone(self, edge: OutEdge, why: str) -> None:
        if edge.gone:
            return
        edge.gone = True
        if edge.was_open and not self._closing:
            self.journal.note("peer-gone", peer=edge.rank, direction="out", reason=why)

    def _in_gone(self, edge: InEdge, why: str) -> None:
        now = self._transport.now()
        with self.lock:
            edge.session, edge.ended_at = None, now
            edge.inbox.clear()
            self.lock.notify_all()
        if edge.gone_at is None and why != Leaving.REKNIT.name.lower() and not self._closing:
            edge.gone_at = now
            self.journal.note("peer-gone", peer=edge.rank, direction="in", reason=why)

    # ---------------------------------------------------------------- bookkeeping

    def edge_stats(self) -> tuple[EdgeStats, ...]:
        """All edges; the caller holds the lock."""
        return (
            *(edge.stats() for edge in self.in_edges.values()),
            *(edge.stats() for edge in self.out_edges.values()),
        )

    def _sessions(self) -> list[Receiving | Sending]:
        return [*self._receiving, *(edge.session for edge in self.out_edges.values() if edge.session is not None)]

    def _complain(self, reason: Reason, peer: int | None, text: str) -> None:
        who = "a stranger" if peer is None else f"rank {peer}"
        line = f"refused {who}: {reason.text} ({text[:200]})"
        self.journal.refusal(reason.name, peer, line, self._transport.now(), direction="in")
