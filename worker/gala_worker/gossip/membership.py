"""What a plan means for one rank: its members, its out-peers by round, its times, who may speak to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gala import topology
from gala.plan import RunPlan
from gala_worker.gossip.messages import Hello, Precision, Reason, SharedMemory, StateRequest

HEARTBEATS_PER_TIMEOUT: Final = 5
LONGEST_HEARTBEAT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What neighbours must agree on, and what tells this process from an earlier one."""

    rank: int
    incarnation: int
    schema_hash: str
    num_elements: int


class Membership:
    """One rank's reading of one plan."""

    def __init__(self, plan: RunPlan, identity: Identity) -> None:
        self.plan = plan
        self._identity = identity
        gossip = plan.spec.gossip
        self.timeout: float = gossip.peer_timeout_seconds
        self.heartbeat = min(self.timeout / HEARTBEATS_PER_TIMEOUT, LONGEST_HEARTBEAT_SECONDS)
        self.precision = Precision[gossip.precision.upper()]
        self.push_sum: bool = gossip.mixing == "push-sum"
        self.ranks = tuple(sorted(plan.ranks))
        shape, size = plan.spec.topology, len(self.ranks)
        self.period = topology.period(shape, size)
        self.out_peers_by_round: tuple[tuple[int, ...], ...] = tuple(
            topology.successors(shape, self.ranks, identity.rank, round) if identity.rank in self.ranks else ()
            for round in range(self.period)
        )
        self.out_peers = tuple(dict.fromkeys(peer for peers in self.out_peers_by_round for peer in peers))
        """Of all rounds, without repetition."""

    def in_peer_of_round(self, round: int) -> int | None:
        """The rank that pushes to this one in a round of a topology with one peer a round; None where nobody does."""
        own, shape = self._identity.rank, self.plan.spec.topology
        peers = topology.predecessors(shape, self.ranks, own, round) if own in self.ranks else ()
        return peers[0] if peers else None

    @property
    def message_bytes(self) -> int:
        """Size of every message of this run."""
        return self._identity.num_elements * self.precision.itemsize

    def hello_to(self, peer: int, memory: SharedMemory | None) -> Hello:
        """How this rank introduces itself."""
        return Hello(
            run_uid=self.plan.run_uid,
            rank=self._identity.rank,
            receiver=peer,
            incarnation=self._identity.incarnation,
            epoch=self.plan.epoch,
            schema_hash=self._identity.schema_hash,
            num_elements=self._identity.num_elements,
            precision=int(self.precision),
            memory=memory,
        )

    def member(self, said: Hello | StateRequest) -> int | None:
        """The rank of one who introduces itself like this; None for a stranger, who may claim any."""
        known = said.run_uid == self.plan.run_uid and said.rank in self.ranks and said.rank != self._identity.rank
        return said.rank if known else None

    def objection_to(self, hello: Hello) -> Reason | None:
        """Why one who introduces itself like this may not push to this rank; None if it may."""
        own = self._identity
        if hello.run_uid != self.plan.run_uid:
            return Reason.WRONG_RUN
        if hello.receiver != own.rank:
            return Reason.WRONG_RECEIVER
        if hello.epoch < self.plan.epoch:
            return Reason.STALE_EPOCH
        if hello.rank not in self.ranks or hello.rank == own.rank:
            return Reason.NOT_MY_PEER
        if hello.schema_hash != own.schema_hash or hello.num_elements != own.num_elements:
            return Reason.WRONG_SCHEMA
        if hello.precision != self.precision:
            return Reason.WRONG_PRECISION
        return None

    def objection_to_request(self, request: StateRequest) -> Reason | None:
        """Why one who asks like this gets no state; None if it may have it."""
        if request.run_uid != self.plan.run_uid:
            return Reason.WRONG_RUN
        if request.rank not in self.ranks or request.rank == self._identity.rank:
            return Reason.NOT_MY_PEER
        if request.schema_hash != self._identity.schema_hash:
            return Reason.WRONG_SCHEMA
        return None
