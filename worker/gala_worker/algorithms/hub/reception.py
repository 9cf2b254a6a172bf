"""Who attends: actors, their comings and goings, what they have sent and what they are to get. No I/O of its own.

Everything here runs on the transport's thread; what the learner thread shares is guarded by `lock`, which is held for
bookkeeping only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from torch import Tensor

from gala.plan import RunPlan
from gala_worker.algorithms.hub.contributions import BufferPool, Contribution, ContributionQueue
from gala_worker.algorithms.hub.messages import MAX_UNPROCESSED, HubHello, HubWelcome
from gala_worker.algorithms.hub.parameters import Edition, Press
from gala_worker.algorithms.hub.serving import Actor, Serving
from gala_worker.algorithms.hub.stats import ActorStats, ServerStats
from gala_worker.algorithms.hub.terms import Terms
from gala_worker.gossip.journal import Journal
from gala_worker.gossip.messages import Leaving, Progress, Reason, Refusal, StateRequest
from gala_worker.gossip.patience import HELLO_SECONDS, MAX_STRANGERS, Attention
from gala_worker.gossip.transport import Link, Transport

log = logging.getLogger(__name__)


class Reception:
    """The host of all sessions, and the `Endpoint` of the hub's transport."""

    def __init__(
        self,
        terms: Terms,
        *,
        transport: Transport,
        make_buffer: Callable[[], Tensor],
        inspect: Callable[[memoryview], Refusal | None],
    ) -> None:
        self.terms = terms
        self.lock = threading.Condition()
        self.queue = ContributionQueue()
        self.press = Press(make_buffer)
        self.inspect = inspect
        self.journal = Journal(log)
        self.actors: dict[int, Actor] = {}
        self._buffers = BufferPool(terms.contribution_bytes)
        self._buffers.keep = MAX_UNPROCESSED * len(terms.actors)
        self._transport = transport
        self._sessions: set[Serving] = set()
        self._farewells: set[int] = set()
        self._closing = False
        self._attention = Attention()

    # ---------------------------------------------------------------- commands, on the transport's thread

    def set_plan(self, plan: RunPlan) -> None:
        """A newer plan; an older one, or one of another run, is ignored. Whoever is no longer in it must leave."""
        if plan.epoch <= self.terms.plan.epoch or plan.run_uid != self.terms.plan.run_uid:
            return
        self.terms = Terms(plan, self.terms.identity, self.terms.contribution_bytes)
        self._buffers.keep = MAX_UNPROCESSED * len(self.terms.actors)
        # What is known of them is kept: one that is called back goes on where it was, and sends nothing twice.
        for rank, actor in self.actors.items():
            if rank not in self.terms.actors and actor.session is not None:
                actor.session.leave(Leaving.REKNIT)
        with self.lock:
            self.lock.notify_all()

    def leave(self, why: Leaving | None) -> None:
        """Admit nobody any more, and say farewell to everybody; None = without a word."""
        self._closing = True
        if why is not None:
            for session in list(self._sessions):
                session.leave(why)

    # ---------------------------------------------------------------- Endpoint

    def accept(self, link: Link, now: float) -> Serving | None:
        """Anybody may say hello, though not too many at once, and not to one who is leaving."""
        if self._closing:
            return None
        if sum(session.actor is None for session in self._sessions) >= MAX_STRANGERS:
            text = "too many strangers at the door: turning some away"
            self.journal.refusal(Reason.TOO_BUSY.name, None, text, now)
            return None
        session = Serving(self, link, now)
        self._sessions.add(session)
        return session

    def tick(self, now: float) -> None:
        """Close what has fallen silent."""
        was_away = self._attention.was_away(now, self.terms.timeout)
        for session in list(self._sessions):
            if was_away:
                session.heard_at = now
            patience = HELLO_SECONDS if session.actor is None or session.finished else self.terms.timeout
            since = session.began_at if session.actor is None else session.heard_at
            if now - since > patience:
                session.link.abort()

    def state_requested(self, request: StateRequest, answer: Callable[[bytes | Reason], None]) -> None:
        """The hub has no such call: an actor needs no more than the parameters."""
        answer(Reason.NOTHING_YET)

    # ---------------------------------------------------------------- for the sessions

    def admit(self, session: Serving, hello: HubHello, now: float) -> HubWelcome | Refusal:
        """The checks of a hello."""
        reason = self.terms.objection_to(hello)
        actor = self.actors.get(hello.rank)
        if reason is None and self._closing:
            reason = Reason.NOT_MY_PEER
        if reason is None and actor and actor.knows_younger(hello.incarnation, now, self.terms.timeout):
            reason = Reason.STALE_INCARNATION
        if reason is not None:
            self.complain(reason, self.terms.member(hello), f"rank {hello.rank} says hello")
            return Refusal(reason, reason.text)
        if actor is None:
            actor = Actor(hello.rank)
        if actor.session is not None:
            actor.session.supersede()
        if actor.gone:
            self.journal.note("peer-back", peer=actor.rank)
        plan = self.terms.plan
        with self.lock:
            self.actors[hello.rank] = session.actor = actor
            if hello.incarnation != actor.incarnation:
                actor.incarnation, actor.received = hello.incarnation, 0
            actor.session, actor.gone = session, False
            self._farewells.discard(actor.rank)
            held = self.queue.held(actor.rank, actor.incarnation)
            self.lock.notify_all()
        return HubWelcome(plan.run_uid, self.terms.identity.incarnation, plan.epoch, actor.received, held)

    def num_held(self, actor: Actor) -> int:
        """Contributions of the actor's present process that are still to be taken."""
        with self.lock:
            return len(self.queue.held(actor.rank, actor.incarnation))

    def acquire_buffer(self) -> bytearray:
        """For an arriving contribution."""
        with self.lock:
            return self._buffers.acquire()

    def give_back_buffer(self, buffer: bytearray) -> None:
        """From either thread."""
        with self.lock:
            self._buffers.give_back(buffer)

    def arrived(self, actor: Actor, contribution: Contribution) -> None:
        """A contribution is complete."""
        with self.lock:
            actor.received = contribution.serial
            actor.counters.contributions += 1
            displaced = self.queue.put(contribution)
            self.lock.notify_all()
        if displaced is not None:
            displaced.release()

    def edition_after(self, serial: int, *, asked: bool) -> Edition | None:
        """The newest parameters if they are newer, to be `release_edition`d. The last ones come without being asked."""
        with self.lock:
            newest = self.press.newest
            if newest is None or newest.serial <= serial or not (asked or newest.finished):
                return None
            return self.press.hold(newest)

    def release_edition(self, edition: Edition) -> None:
        """It has been sent, or will not be."""
        with self.lock:
            self.press.release(edition)

    def progress(self) -> Progress:
        """As last published."""
        with self.lock:
            return {} if self.press.newest is None else dict(self.press.newest.progress)

    def actor_left(self, actor: Actor, why: Leaving) -> None:
        """An actor has said farewell."""
        self.journal.note("peer-gone", peer=actor.rank, reason=why.name.lower())
        with self.lock:
            self._farewells.add(actor.rank)
            self.lock.notify_all()

    def ended(self, session: Serving, now: float, why: str) -> None:
        """A stream is closed, whoever closed it."""
        self._sessions.discard(session)
        actor = session.actor
        if actor is None or actor.session is not session:
            return
        if not session.said_farewell:
            actor.gone = True
            self.journal.note("peer-gone", peer=actor.rank, reason=why)
        with self.lock:
            actor.session, actor.ended_at = None, now
            self.lock.notify_all()

    def complain(self, reason: Reason, rank: int | None, text: str) -> None:
        """Count it; say so once in a while."""
        whom = "a stranger" if rank is None else f"rank {rank}"
        line = f"refusing {whom}: {reason.text} ({text})"
        self.journal.refusal(reason.name, rank, line, self._transport.now())

    # ---------------------------------------------------------------- for the learner thread

    def take(self) -> Contribution | None:
        """The next contribution; its actor may send another one. The caller holds the lock."""
        contribution = self.queue.take()
        if contribution is not None:
            actor = self.actors.get(contribution.rank)
            if actor is not None and actor.session is not None and actor.incarnation == contribution.incarnation:
                actor.session.taken(contribution.serial)
        return contribution

    def wake_who_wants(self) -> None:
        """There are newer parameters."""
        with self.lock:
            sessions = [actor.session for actor in self.actors.values() if actor.session is not None]
        for session in sessions:
            session.link.wake()

    def missing(self) -> set[int]:
        """Actors of the plan that have not said farewell. The caller holds the lock."""
        return set(self.terms.actors) - self._farewells

    def stats(self) -> ServerStats:
        """A consistent picture of this moment."""
        with self.lock:
            present = sorted((rank, actor) for rank, actor in self.actors.items() if rank in self.terms.actors)
            return ServerStats(
                connected=tuple(rank for rank, actor in present if actor.session is not None),
                actors=tuple(
                    ActorStats(
                        rank=rank,
                        live=actor.session is not None,
                        contributions=actor.counters.contributions,
                        refused=actor.counters.refused,
                        bytes_in=actor.counters.bytes_in,
                        parameters=actor.counters.parameters,
                        bytes_out=actor.counters.bytes_out,
                        waiting=len(self.queue.held(rank, actor.incarnation)),
                    )
                    for rank, actor in present
                ),
                dropped=self.queue.dropped,
                strangers=self.journal.counts,
            )
