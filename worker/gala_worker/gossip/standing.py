"""What one rank knows of its run and of itself.

Shared by those that push to it (`in_peers`), those that it pushes to (`out_peers`), every stream between them, and the
learner's rules of mixing (`rules`). What the learner thread reads or writes too is guarded by `lock`, which is held for
bookkeeping only; the rest belongs to the transport's thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gala.plan import RunPlan
from gala_worker.gossip.buffers import Buffers
from gala_worker.gossip.journal import Journal
from gala_worker.gossip.mailbox import KEEPS_ORDER
from gala_worker.gossip.membership import Identity, Membership
from gala_worker.gossip.messages import Progress, Reason
from gala_worker.gossip.push_sum import Account, is_acceptable

log = logging.getLogger(__name__)


class Standing:
    """Its plan, its place in it, how far it and the others are."""

    def __init__(
        self,
        plan: RunPlan,
        identity: Identity,
        *,
        condition: threading.Condition,
        buffers: Buffers,
        now: Callable[[], float],
    ) -> None:
        """`now`: the transport's clock, seconds."""
        self.identity = identity
        self.rank = identity.rank
        self.membership = Membership(plan, identity)
        self.push_sum = self.membership.push_sum
        """Whether messages carry weights, and what is not taken is not acknowledged."""
        self.uses_mailboxes = KEEPS_ORDER and not self.push_sum
        """Whether what is lent is not talked about. Who owns a weight is settled on the stream alone."""
        self.lock = condition
        self.buffers = buffers
        self.now = now
        self.account = Account(buffers.pool)
        """The learner's weight; stays 1.0 where messages carry none."""
        self.version = 0
        """The learner's update count, as of its last offer, or of its start."""
        self.resumes = False
        """It starts with a checkpoint."""
        self.known_progress: dict[int, int] = {}
        self.listeners = 0
        """How many threads of this process wait for messages: while there are any, senders say theirs aloud."""
        self.journal = Journal(log)
        self.closing = False
        """Nobody is admitted, and no stream opened, any more."""

    @property
    def plan(self) -> RunPlan:
        """The newest."""
        return self.membership.plan

    def adopt(self, plan: RunPlan) -> bool:
        """Takes a newer plan for its own; False for an older one, or one of another run."""
        if plan.epoch <= self.plan.epoch or plan.run_uid != self.plan.run_uid:
            return False
        self.membership = Membership(plan, self.identity)
        return True

    def notify(self) -> None:
        """Something has changed that the learner may wait for."""
        with self.lock:
            self.lock.notify_all()

    def progress(self) -> dict[int, int]:
        """Agent decisions done by each rank, as far as this one has heard; a copy."""
        with self.lock:
            return dict(self.known_progress)

    def merge_progress(self, progress: Progress) -> None:
        """By maximum, entry by entry."""
        with self.lock:
            known = self.known_progress
            for rank, steps in progress.items():
                if steps > known.get(rank, -1):
                    known[rank] = steps

    def takes_weight(self, weight: float) -> bool:
        """Whether an honest message may carry it; without push-sum it does not matter."""
        return not self.push_sum or is_acceptable(weight, len(self.membership.ranks))

    def refuse(self, reason: Reason, peer: int | None, text: str) -> None:
        """Counts what was refused to a rank, None for a stranger; says so once in a while."""
        who = "a stranger" if peer is None else f"rank {peer}"
        line = f"refused {who}: {reason.text} ({text[:200]})"
        self.journal.refusal(reason.name, peer, line, self.now(), direction="in")
