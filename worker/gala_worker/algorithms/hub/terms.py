"""What a plan means for the star: who may attend, how long silence may last, what both sides must agree on. Pure."""

from __future__ import annotations

from typing import Final

from gala.plan import RunPlan
from gala_worker.algorithms.hub.messages import HubHello
from gala_worker.gossip.membership import HEARTBEATS_PER_TIMEOUT, LONGEST_HEARTBEAT_SECONDS, Identity
from gala_worker.gossip.messages import Precision, Reason

HUB_RANK: Final = 0
"""Who holds the parameters."""


class Terms:
    """One rank's reading of one plan."""

    def __init__(self, plan: RunPlan, identity: Identity, contribution_bytes: int) -> None:
        self.plan = plan
        self.identity = identity
        self.contribution_bytes = contribution_bytes
        self.timeout: float = plan.spec.gossip.peer_timeout_seconds
        self.heartbeat = min(self.timeout / HEARTBEATS_PER_TIMEOUT, LONGEST_HEARTBEAT_SECONDS)
        self.precision = Precision[plan.spec.gossip.precision.upper()]
        self.actors = tuple(sorted(rank for rank in plan.ranks if rank != HUB_RANK))

    @property
    def parameters_bytes(self) -> int:
        """Size of every parameters message of this run."""
        return self.identity.num_elements * self.precision.itemsize

    @property
    def address(self) -> str:
        """Where the hub listens."""
        return self.plan.learner(HUB_RANK).address.gossip

    def hello(self) -> HubHello:
        """How this actor introduces itself."""
        return HubHello(
            run_uid=self.plan.run_uid,
            rank=self.identity.rank,
            incarnation=self.identity.incarnation,
            epoch=self.plan.epoch,
            schema_hash=self.identity.schema_hash,
            num_elements=self.identity.num_elements,
            precision=int(self.precision),
            contribution_bytes=self.contribution_bytes,
        )

    def member(self, hello: HubHello) -> int | None:
        """The rank of one who introduces itself like this; None for a stranger, who may claim any."""
        return hello.rank if hello.run_uid == self.plan.run_uid and hello.rank in self.actors else None

    def objection_to(self, hello: HubHello) -> Reason | None:
        """Why one who introduces itself like this may not attend; None if it may."""
        if hello.run_uid != self.plan.run_uid:
            return Reason.WRONG_RUN
        if hello.epoch < self.plan.epoch:
            return Reason.STALE_EPOCH
        if hello.rank not in self.actors:
            return Reason.NOT_MY_PEER
        own = self.hello()
        if (hello.schema_hash, hello.num_elements, hello.contribution_bytes) != (
            own.schema_hash,
            own.num_elements,
            own.contribution_bytes,
        ):
            return Reason.WRONG_SCHEMA
        if hello.precision != self.precision:
            return Reason.WRONG_PRECISION
        return None
