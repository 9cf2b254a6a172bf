"""Fleets of learners in virtual time that mix by push-sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gala_worker.gossip.fleet import Fleet, small_plan

TIMEOUT = 2.0
SHAPES = [
    pytest.param({"type": "Ring"}, 4, id="ring"),
    pytest.param({"type": "Ring", "peers": 2}, 5, id="ring-of-two"),
    pytest.param({"type": "Exponential"}, 8, id="exponential"),
    pytest.param({"type": "OnePeerExponential"}, 8, id="one-peer"),
    pytest.param({"type": "Complete"}, 4, id="complete"),
]


def fleet_of(
    learners: int = 4, *, shape=None, mixing="push-sum", faults=None, num_elements: int = 8, **gossip
) -> Fleet:
    plan = small_plan(
        learners=learners,
        topology=shape or {"type": "Ring"},
        gossip={"peerTimeoutSeconds": TIMEOUT, "mixing": mixing, **gossip},
    )
    fleet = Fleet(plan, faults=faults, num_elements=num_elements)
    fleet.connect()
    scatter(fleet)
    return fleet


def scatter(fleet: Fleet) -> None:
    generator = torch.Generator().manual_seed(0)
    for learner in fleet.learners.values():
        learner.vector.copy_(torch.randn(fleet.num_elements, generator=generator) + learner.rank)


def kept(fleet: Fleet) -> np.ndarray:
    """The weighted mean [N] of everything, on its way or not."""
    total, weight = fleet.owned()
    return (total / weight).numpy()


def radius(fleet: Fleet) -> float:
    vectors = torch.stack([learner.vector for learner in fleet.learners.values()])
    return float((vectors - vectors.mean(dim=0)).norm(dim=1).max())


def settled(fleet: Fleet) -> bool:
    return not any(fleet._on_the_way(learner) for learner in fleet.learners.values())


def start_at_their_own_pace(fleet: Fleet) -> None:
    """Learners whose paces differ by up to a factor of four."""
    for rank in fleet.learners:
        fleet.run(rank, period_seconds=pace(fleet, rank))


def pace(fleet: Fleet, rank: int) -> float:
    return 0.02 * (1 + 3 * rank / len(fleet.plan.ranks))


class Ledger:
    """What a fleet of learners that come and go should own. The rules of docs/protocol.md, written down again."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.total, self.weight = fleet.owned()

    def check(self) -> None:
        total, weight = self.fleet.owned()
        assert weight == pytest.approx(self.weight, rel=1e-9)
        np.testing.assert_allclose((total / weight).numpy(), (self.total / self.weight).numpy(), atol=1e-4)

    def _add(self, vector: torch.Tensor, weight: float) -> None:
        self.total = self.total + weight * vector.double()
        self.weight += weight

    def kill(self, rank: int) -> None:
        """Its own weight leaves with it, and what it had given and nobody took; what it took without saying so is back
        at the sender's."""
        fleet, victim = self.fleet, self.fleet.learners[rank]
        self._add(victim.vector, -victim.peer.weight)
        for snapshot, weight in fleet._on_the_way(victim):
            self._add(snapshot.buffer, -weight)
        taken = {peer: edge.accepted for peer, edge in victim.peer._hood.in_peers.edges.items()}
        for peer, learner in fleet.learners.items():
            edge = learner.peer._hood.out_peers.edges.get(rank)
            for snapshot in edge.outbox.in_transit if edge is not None and peer != rank and not learner.stopped else []:
                if snapshot.version <= taken.get(peer, 0):
                    self._add(snapshot.buffer, snapshot.weight)
        orphans = {
            peer: (edge.outbox.in_transit, fleet.learners[peer].peer._hood.in_peers.edges.get(rank))
            for peer, edge in victim.peer._hood.out_peers.edges.items()
            if not fleet.learners[peer].stopped
        }
        before = {peer: edge.accepted for peer, (_, edge) in orphans.items() if edge is not None}
        fleet.kill(rank)
        fleet.network.advance(0.1)  # until everybody has noticed
        for peer, (given, edge) in orphans.items():
            for snapshot in given:
                if edge is not None and before[peer] < snapshot.version <= edge.accepted:
                    self._add(snapshot.buffer, snapshot.weight)

    def restart(self, rank: int, incarnation: int) -> None:
        """It begins where a neighbour is, with a weight of its own."""
        fleet = self.fleet
        source = next(learner for learner in fleet.learners.values() if not learner.stopped)
        reborn = fleet.restart(rank, incarnation)
        reborn.vector.copy_(source.vector)
        self._add(reborn.vector, 1.0)
        reborn.peer.join()
        fleet.run(rank, period_seconds=pace(fleet, rank))
