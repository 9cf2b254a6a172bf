"""Those that push to this rank, and strangers at the door: who is admitted, who has gone. The host of `Receiving`.

Runs on the transport's thread, but for what follows from a message that the learner has found in a mailbox; what the
learner's thread reads is guarded by the lock of `Standing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gala_worker.gossip.messages import Hello, Leaving, Reason, Refusal, Welcome
from gala_worker.gossip.patience import HELLO_SECONDS, MAX_STRANGERS
from gala_worker.gossip.receiving import InEdge, Receiving
from gala_worker.gossip.standing import Standing
from gala_worker.gossip.transport import Link


class InPeers:
    """All in-edges, and all streams that others have opened."""

    def __init__(self, standing: Standing, heard_of: Callable[[int], None]) -> None:
        """`heard_of` is called with the rank of each that is admitted."""
        self.standing = standing
        self.edges: dict[int, InEdge] = {}
        """By rank; also of ranks that have gone, while the plan has them. Changed with the lock held."""
        self.sessions: set[Receiving] = set()
        self._heard_of = heard_of

    def accept(self, link: Link, now: float) -> Receiving | None:
        """Anybody may say hello, though not too many at once, and not to one who is leaving."""
        if self.standing.closing:
            return None
        if sum(session.edge is None for session in self.sessions) >= MAX_STRANGERS:
            text = "too many strangers at the door: turning some away"
            self.standing.journal.refusal(Reason.TOO_BUSY.name, None, text, now, direction="in")
            return None
        session = Receiving(self, link, now)
        self.sessions.add(session)
        return session

    def live(self) -> list[Receiving]:
        """The streams that messages come on. From any thread."""
        with self.standing.lock:
            return [edge.session for edge in self.edges.values() if edge.session is not None]

    def listen(self, difference: Literal[1, -1]) -> None:
        """One thread more, or less, waits for messages. From any thread."""
        with self.standing.lock:
            self.standing.listeners += difference
            for session in self.live():
                session.tell_whether_awaited()

    def tick(self, now: float) -> None:
        """Close what has fallen silent."""
        for session in list(self.sessions):
            known = session.edge is not None
            patience = self.standing.membership.timeout if known and not session.finished else HELLO_SECONDS
            if now - (session.heard_at if known else session.began_at) > patience:
                session.link.abort()

    def forget_others(self) -> None:
        """Whoever is no longer in the plan must go."""
        own = self.standing
        for rank in [rank for rank in self.edges if rank not in own.membership.ranks]:
            edge = self.edges[rank]
            if edge.session is not None:
                edge.session.leave(Leaving.REKNIT)
            with own.lock:
                edge.inbox.clear()
                del self.edges[rank]
                own.lock.notify_all()

    def leave(self, why: Leaving) -> None:
        """Say farewell to all."""
        for session in list(self.sessions):
            session.leave(why)

    # ---------------------------------------------------------------- ReceiverHost

    def admit(self, session: Receiving, hello: Hello, now: float) -> InEdge | Refusal:
        """The checks of a hello."""
        own = self.standing
        reason = own.membership.objection_to(hello)
        edge = self.edges.get(hello.rank)
        if reason is None and own.closing:
            reason = Reason.NOT_MY_PEER
        if reason is None and edge and edge.knows_younger(hello.incarnation, now, own.membership.timeout):
            reason = Reason.STALE_INCARNATION
        if reason is not None:
            own.refuse(reason, own.membership.member(hello), f"rank {hello.rank} says hello")
            return Refusal(reason, reason.text)
        if edge is None:
            edge = InEdge(hello.rank, own.buffers.inbox(exact=own.push_sum))
        if edge.session is not None:
            edge.session.supersede()
        if edge.gone_at is not None:
            own.journal.note("peer-back", peer=edge.rank, direction="in")
        with own.lock:
            self.edges[hello.rank] = edge
            if own.push_sum:
                edge.inbox.clear()  # the welcome says that what is not taken now will not be
                edge.accepted = edge.accepted if hello.incarnation == edge.incarnation else 0
                edge.mixed_version = own.version
            edge.session, edge.incarnation, edge.valid_at = session, hello.incarnation, now
            edge.gone_at = None
        self._heard_of(hello.rank)
        return edge

    def welcome(self, edge: InEdge, *, sees_memory: bool) -> Welcome:
        """Our answer to a proper hello."""
        own = self.standing
        incarnation, epoch = own.identity.incarnation, own.plan.epoch
        return Welcome(own.plan.run_uid, own.rank, incarnation, epoch, own.progress(), edge.accepted, sees_memory)

    def arrived(self, edge: InEdge, now: float) -> None:
        """Tell the learner, if it waits."""
        with self.standing.lock:
            edge.valid_at = now
            self.standing.lock.notify_all()

    def message_refused(self, edge: InEdge | None, reason: Reason, text: str) -> None:
        """Count it; say so once in a while."""
        self.standing.refuse(reason, None if edge is None else edge.rank, text)

    def sender_left(self, edge: InEdge, why: Leaving) -> None:
        """An in-peer leaves: nobody waits for it any more."""
        self._gone(edge, why.name.lower())

    def receiver_ended(self, session: Receiving, now: float, why: str) -> None:
        """An in-edge is closed, whoever closed it."""
        self.sessions.discard(session)
        edge = session.edge
        if edge is not None and edge.session is session:
            self._gone(edge, why)

    def _gone(self, edge: InEdge, why: str) -> None:
        own, now = self.standing, self.standing.now()
        with own.lock:
            edge.session, edge.ended_at = None, now
            edge.inbox.clear()
            own.lock.notify_all()
        if edge.gone_at is None and why != Leaving.REKNIT.name.lower() and not own.closing:
            edge.gone_at = now
            own.journal.note("peer-gone", peer=edge.rank, direction="in", reason=why)
