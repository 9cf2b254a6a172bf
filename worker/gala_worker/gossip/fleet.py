"""A whole run's gossip in one thread and virtual time: for tests, and to study how a topology mixes.

fleet = Fleet(small_plan(learners=8, topology={"type": "Ring"}), num_elements=100)
fleet.connect()
fleet.learners[3].vector.fill_(1.0)
fleet.lockstep(50)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.memory import MemoryNetwork
from gala_worker.gossip.peer import GossipPeer, Mixing
from gala_worker.gossip.push_sum import PushSumOutbox
from gala_worker.gossip.slots import Snapshot

Update = Callable[["FleetLearner"], None]
"""What a learner does to its vector in one update."""


def small_plan(
    *,
    learners: int = 4,
    topology: Mapping[str, Any] | None = None,
    gossip: Mapping[str, Any] | None = None,
    epoch: int = 0,
    uid: str = "a run",
    address: Callable[[int], str] = "rank-{}:1".format,
) -> RunPlan:
    """A plan with everything but gossip at its defaults; `topology` and `gossip` as in a galarun.yaml."""
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "fleet"},
        "spec": {
            "environment": {"id": "CartPole-v1"},
            "learners": learners,
            "topology": dict(topology or {}),
            "gossip": dict(gossip or {}),
        },
    }
    return plan(
        parse(document), epoch=epoch, uid=uid, address=lambda rank: Address(gossip=address(rank), http="unused:1")
    )


class FleetLearner:
    """One learner: a vector and a peer."""

    def __init__(self, fleet: Fleet, rank: int, incarnation: int) -> None:
        self.rank = rank
        self.incarnation = incarnation
        self.vector = torch.zeros(fleet.num_elements)
        self.updates = 0
        self.mixings: list[Mixing] = []
        self.stopped = False
        self.peer = GossipPeer(
            rank,
            fleet.plan,
            "schema",
            fleet.num_elements,
            transport=fleet.network.transport(rank),
            incarnation=incarnation,
            num_parameters=fleet.num_parameters,
        )
        self.peer.start()

    def offer(self) -> None:
        """One more update is done."""
        self.updates += 1
        self.peer.offer(self.vector, version=self.updates, steps=self.updates)

    def mix(self) -> Mixing | None:
        """Mixes, and remembers it."""
        mixing = self.peer.mix(self.vector)
        if mixing is not None:
            self.mixings.append(mixing)
        return mixing


class Fleet:
    """The learners of a plan on a `MemoryNetwork`."""

    def __init__(
        self,
        plan: RunPlan,
        *,
        num_elements: int = 8,
        num_parameters: int | None = None,
        faults: FaultScript | None = None,
        latency_seconds: float = 0.001,
    ) -> None:
        self.plan = plan
        self.num_elements = num_elements
        self.num_parameters = num_parameters
        self.network = MemoryNetwork(faults=faults, latency_seconds=latency_seconds)
        self.learners = {rank: FleetLearner(self, rank, 1) for rank in plan.ranks}

    def connect(self, seconds: float = 5.0) -> None:
        """Opens all edges. Raises: RuntimeError if some are still closed after so long."""
        for learner in self.learners.values():
            learner.peer.join()
        if not self.network.run_until(self.is_connected, seconds):
            raise RuntimeError("not all edges of the fleet are open")

    def is_connected(self) -> bool:
        """Whether everybody pushes to, and hears from, exactly those that the topology names."""
        return all(
            stats.out_peers == planned.out_peers and stats.in_peers == planned.in_peers
            for planned in self.plan.learners
            for stats in [self.learners[planned.rank].peer.stats()]
        )

    def mean(self) -> Tensor:
        """The plain mean [N] of the learners' vectors, in float64."""
        return torch.stack([learner.vector.double() for learner in self.learners.values()]).mean(dim=0)

    def owned(self) -> tuple[Tensor, float]:
        """Push-sum: (sum of w z [N], sum of w) over all learners and everything on its way, in float64.

        Exact between events. What a dead learner had given away and nobody has taken yet is not counted.
        """
        total, weight = torch.zeros(self.num_elements, dtype=torch.float64), 0.0
        for learner in self.learners.values():
            if not learner.stopped:
                total += learner.peer.weight * learner.vector.double()
                weight += learner.peer.weight
                for snapshot, share in self._on_the_way(learner):
                    total += share * snapshot.buffer.double()
                    weight += share
        return total, weight

    def _on_the_way(self, learner: FleetLearner) -> list[tuple[Snapshot, float]]:
        hood = learner.peer._hood
        found = list(hood.standing.account.unsettled)
        for rank, edge in hood.out_peers.edges.items():
            taken = 0
            if rank in self.learners and not self.learners[rank].stopped:
                at_receiver = self.learners[rank].peer._hood.in_peers.edges.get(learner.rank)
                if at_receiver is not None and at_receiver.incarnation == learner.incarnation:
                    taken = at_receiver.accepted
            if isinstance(edge.outbox, PushSumOutbox):
                found += [(given, given.weight) for given in edge.outbox.in_transit if given.version > taken]
        return found

    def lockstep(self, rounds: int, update: Update | None = None) -> None:
        """All update and offer, then all mix; `rounds` times."""
        for _ in range(rounds):
            for learner in self.learners.values():
                if update is not None:
                    update(learner)
                learner.offer()
            for learner in self.learners.values():
                learner.mix()

    def run(self, rank: int, *, period_seconds: float, update: Update | None = None) -> None:
        """From now on, the learner makes an update every so often, at its own pace, until it is stopped."""
        learner = self.learners[rank]

        def once() -> None:
            if learner.stopped or self.learners[rank] is not learner:
                return
            self.network.schedule(period_seconds, once)
            if update is not None:
                update(learner)
            learner.offer()
            learner.mix()
            learner.peer.answer_state_requests(lambda: b"state of %d" % rank)

        self.network.schedule(period_seconds, once)

    def kill(self, rank: int) -> None:
        """The process dies."""
        self.learners[rank].stopped = True
        self.network.kill(rank)

    def hang(self, rank: int) -> None:
        """The process stands still; `resume` it, and `run` it again."""
        self.learners[rank].stopped = True
        self.network.hang(rank)

    def resume(self, rank: int) -> None:
        """The process goes on."""
        self.learners[rank].stopped = False
        self.network.resume(rank)

    def restart(self, rank: int, incarnation: int = 2) -> FleetLearner:
        """A new process for a rank that died; it has still to `join`."""
        self.learners[rank] = FleetLearner(self, rank, incarnation)
        return self.learners[rank]
