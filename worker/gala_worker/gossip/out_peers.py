"""Those that this rank pushes to, the ring that heals itself among them. The host of `Sending`.

Whenever somebody comes, goes, or answers again, the ring is knit anew: `ring.choose` names for each out-peer of the
topology the rank to push to, streams are opened to those, and farewell said to all others. Runs on the transport's
thread; what the learner thread reads is guarded by the lock of `Standing`.
"""

from __future__ import annotations

import random
from typing import Final

from gala_worker.gossip import ring
from gala_worker.gossip.messages import Leaving, Reason, Refusal, Welcome
from gala_worker.gossip.patience import HELLO_SECONDS
from gala_worker.gossip.push_sum import PushSumOutbox
from gala_worker.gossip.sending import OutEdge, Sending
from gala_worker.gossip.slots import Outbox
from gala_worker.gossip.standing import Standing
from gala_worker.gossip.transport import Link, Transport

MAX_DIALS: Final = 16
"""Connections being made at the same time."""


class OutPeers:
    """All out-edges, and the routes that messages take in each round."""

    def __init__(self, standing: Standing, transport: Transport) -> None:
        self.standing = standing
        self.edges: dict[int, OutEdge] = {}
        """By rank: those that are pushed to, and those that are gone and tried again. Changed with the lock held."""
        self.routes: tuple[tuple[OutEdge, ...], ...] = ((),)
        """For each round of the topology's period, the open edges to push on. Replaced as a whole, never changed."""
        self.ranks: tuple[int, ...] = ()
        """Of all routes, ascending."""
        self._transport = transport
        identity = standing.identity
        self._random = random.Random(f"{standing.plan.run_uid}/{identity.rank}/{identity.incarnation}")
        self._joined = False

    def join(self) -> None:
        """From now on, push."""
        self._joined = True
        self.knit(self._transport.now())

    def follow_plan(self) -> None:
        """The plan is a newer one."""
        for edge in self.edges.values():  # a rank may have come back at another address
            edge.backoff.reset()
        self.knit(self._transport.now())

    def leave(self, why: Leaving | None) -> None:
        """Open no more edges, and say farewell on every one that is open; None = without a word."""
        self.routes, self.ranks = ((),) * self.standing.membership.period, ()
        if why is None:
            return
        for edge in self.edges.values():
            if edge.session is not None:
                edge.session.leave(why)

    def tick(self, now: float) -> None:
        """Close what has fallen silent; try again what is due."""
        timeout = self.standing.membership.timeout
        for edge in list(self.edges.values()):
            with self.standing.lock:
                edge.outbox.give_up(now - timeout)
            if edge.session is None:
                continue
            if edge.is_open and edge.session.heard_at is not None:
                silent = now - edge.session.heard_at > timeout
            else:
                silent = now - edge.dialled_at > min(HELLO_SECONDS, timeout)
            if silent:
                edge.session.link.abort()
        self.knit(now)

    def heard_of(self, rank: int) -> None:
        """If it was thought to be gone, try it at once."""
        edge = self.edges.get(rank)
        if edge is not None and edge.gone:
            edge.backoff.reset()

    # ---------------------------------------------------------------- SenderHost

    def welcomed(self, session: Sending, welcome: Welcome, now: float) -> None:
        """An out-edge is open."""
        edge = self.edges[session.rank]
        with self.standing.lock:
            edge.outbox.settle(welcome.accepted, welcome.incarnation)
        if edge.was_open and edge.gone:
            self.standing.journal.note("peer-back", peer=edge.rank, direction="out")
        edge.gone, edge.was_open = False, True
        edge.backoff.reset()
        self.knit(now)

    def refused(self, session: Sending, refusal: Refusal) -> None:
        """An out-peer refuses us, or one of our messages."""
        text = f"rank {session.rank} refuses: {refusal.reason.text} ({refusal.detail!r})"
        now = self._transport.now()
        self.standing.journal.refusal(refusal.reason.name, session.rank, text, now, direction="out")

    def makes_no_sense(self, session: Sending, problem: str) -> None:
        """What an out-peer answers is refused: this rank has not been refused anything."""
        self.standing.refuse(Reason.MALFORMED, session.rank, f"it answers us: {problem}")

    def receiver_left(self, session: Sending, why: Leaving) -> None:
        """An out-peer leaves: push to the next one at once."""
        edge = self.edges[session.rank]
        with self.standing.lock:
            edge.outbox.withdraw()
        self._gone(edge, why.name.lower())
        self.knit(self._transport.now())

    def sender_ended(self, session: Sending, now: float, why: str) -> None:
        """An out-edge is closed, whoever closed it."""
        edge = self.edges.get(session.rank)
        if edge is None or edge.session is not session:
            return
        with self.standing.lock:
            edge.session = None
        if not session.is_leaving:
            self._gone(edge, why)
            edge.backoff.failed(now)
        self.knit(now)

    # ---------------------------------------------------------------- the ring

    def knit(self, now: float) -> None:
        """Who is pushed to, as of what is known now."""
        own, members = self.standing, self.standing.membership
        if not self._joined or own.closing:
            return
        gone = {rank for rank, edge in self.edges.items() if edge.gone}
        chosen = ring.choose(members.out_peers, members.ranks, own.rank, gone)
        wanted = {peer for peer in chosen if peer is not None}
        wanted |= ring.nearer(members.out_peers, chosen, members.ranks, own.rank)
        self._part_from_others(wanted)
        heirs = dict(zip(members.out_peers, chosen, strict=True))
        routes = tuple(
            tuple(
                self.edges[heir]
                for heir in (heirs[peer] for peer in peers)
                if heir is not None and heir in self.edges and self.edges[heir].is_open
            )
            for peers in members.out_peers_by_round
        )
        ranks = tuple(sorted({edge.rank for edges in routes for edge in edges}))
        with own.lock:
            self.routes = routes
            if ranks != self.ranks:
                self.ranks = ranks
                own.journal.note("ring", outPeers=list(ranks), epoch=own.plan.epoch)
            own.buffers.pool.trim(len(ranks))
            own.lock.notify_all()
        for peer in sorted(wanted):  # last: a connection may fail at once, and knit again
            self._dial(peer, now)

    def _part_from_others(self, wanted: set[int]) -> None:
        for edge in list(self.edges.values()):
            if edge.rank not in wanted and edge.session is not None:
                edge.session.leave(Leaving.REKNIT)
            if edge.rank not in self.standing.membership.ranks and edge.session is None:
                with self.standing.lock:
                    edge.outbox.withdraw()
                    del self.edges[edge.rank]

    def _dial(self, peer: int, now: float) -> None:
        own, edge = self.standing, self.edges.get(peer)
        if edge is None:
            pool = own.buffers.pool
            outbox = PushSumOutbox(pool, own.account) if own.push_sum else Outbox(pool)
            edge = OutEdge(peer, outbox, ring.Backoff(self._random))
            with own.lock:
                self.edges[peer] = edge
        dials = sum(e.session is not None and not e.is_open for e in self.edges.values())
        if edge.session is not None or not edge.backoff.due(now) or dials >= MAX_DIALS:
            return
        edge.dialled_at = now
        self._transport.connect(own.plan.learner(peer).address.gossip, lambda link: self._greet(edge, link))

    def _greet(self, edge: OutEdge, link: Link) -> Sending:
        mailbox = self.standing.buffers.mailbox()
        hello = self.standing.membership.hello_to(edge.rank, None if mailbox is None else mailbox.address)
        session = Sending(self, link, hello, edge.outbox, edge.counters, mailbox)
        with self.standing.lock:
            edge.session = session
        return session

    def _gone(self, edge: OutEdge, why: str) -> None:
        if edge.gone:
            return
        edge.gone = True
        if edge.was_open and not self.standing.closing:
            self.standing.journal.note("peer-gone", peer=edge.rank, direction="out", reason=why)
