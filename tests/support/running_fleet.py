"""A fleet in virtual time whose learners are at work."""

from __future__ import annotations

from gala_worker.gossip.fleet import Fleet, small_plan

GOSSIP = {"peerTimeoutSeconds": 2}


def running_fleet(learners: int, **kwargs) -> Fleet:
    fleet = Fleet(small_plan(learners=learners, gossip=GOSSIP, **kwargs))
    fleet.connect()
    for rank in fleet.plan.ranks:
        fleet.run(rank, period_seconds=0.02)
    fleet.network.advance(0.5)
    return fleet
