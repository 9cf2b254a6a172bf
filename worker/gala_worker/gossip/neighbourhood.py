"""Who is there: the comings and goings on both sides of a rank, as its transport reports them. No I/O of its own.

What a rank knows is its `Standing`; those that push to it are `InPeers`, those that it pushes to `OutPeers`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gala.plan import RunPlan
from gala_worker.gossip.buffers import Buffers
from gala_worker.gossip.in_peers import InPeers
from gala_worker.gossip.membership import Identity
from gala_worker.gossip.messages import Leaving, Reason, StateRequest
from gala_worker.gossip.out_peers import OutPeers
from gala_worker.gossip.patience import Attention
from gala_worker.gossip.receiving import Receiving
from gala_worker.gossip.standing import Standing
from gala_worker.gossip.stats import EdgeStats
from gala_worker.gossip.transport import Link, Transport


class Neighbourhood:
    """The `Endpoint` of a learner's transport. Everything here runs on the transport's thread."""

    def __init__(
        self,
        plan: RunPlan,
        identity: Identity,
        *,
        transport: Transport,
        condition: threading.Condition,
        buffers: Buffers,
    ) -> None:
        self.standing = Standing(plan, identity, condition=condition, buffers=buffers, now=transport.now)
        self.out_peers = OutPeers(self.standing, transport)
        self.in_peers = InPeers(self.standing, self.out_peers.heard_of)
        self.state_requests: dict[int, Callable[[bytes | Reason], None]] = {}
        """Joiners by rank, and how to answer them. Guarded by the lock."""
        self._attention = Attention()

    # ---------------------------------------------------------------- commands

    def join(self) -> None:
        """From now on, push to the out-peers."""
        self.out_peers.join()

    def set_plan(self, plan: RunPlan) -> None:
        """A newer plan: knit the ring anew. An older one is ignored."""
        if self.standing.adopt(plan):
            self.in_peers.forget_others()
            self.out_peers.follow_plan()

    def leave(self, why: Leaving | None) -> None:
        """Open no more edges, and say farewell on every one that is open; None = without a word."""
        self.standing.closing = True
        self.out_peers.leave(why)
        if why is not None:
            self.in_peers.leave(why)

    # ---------------------------------------------------------------- Endpoint

    def accept(self, link: Link, now: float) -> Receiving | None:
        """Anybody may say hello, though not too many at once."""
        return self.in_peers.accept(link, now)

    def tick(self, now: float) -> None:
        """Close what has fallen silent; try again what is due."""
        if self._attention.was_away(now, self.standing.membership.timeout):
            for receiving in self.in_peers.sessions:
                receiving.heard_at = now
            for edge in self.out_peers.edges.values():
                if edge.session is not None:
                    edge.session.heard_at = now
        self.in_peers.tick(now)
        self.out_peers.tick(now)
        self.standing.notify()

    def state_requested(self, request: StateRequest, answer: Callable[[bytes | Reason], None]) -> None:
        """Keep the question for the learner, who alone knows its state."""
        own = self.standing
        reason = own.membership.objection_to_request(request)
        if reason is None and (own.version == 0 or own.closing):
            reason = Reason.RESUMING if own.resumes and not own.closing else Reason.NOTHING_YET
        if reason is not None:
            if reason not in (Reason.NOTHING_YET, Reason.RESUMING):
                own.refuse(reason, own.membership.member(request), f"rank {request.rank} asks for state")
            answer(reason)
            return
        self.out_peers.heard_of(request.rank)
        with own.lock:
            self.state_requests[request.rank] = answer

    # ---------------------------------------------------------------- for the learner

    def edge_stats(self) -> tuple[EdgeStats, ...]:
        """All edges; the caller holds the lock."""
        return tuple(edge.stats() for edges in (self.in_peers.edges, self.out_peers.edges) for edge in edges.values())
