"""What a learner's records and log say about its neighbours, while these come and go."""

from __future__ import annotations

from gala_worker.gossip.fleet import Fleet, small_plan

GOSSIP = {"peerTimeoutSeconds": 2}


class Guarded(dict):
    """What another thread iterates over with the lock held."""

    def __init__(self, lock) -> None:
        super().__init__()
        self.lock, self.changes = lock, 0

    def _changed(self) -> None:
        assert self.lock._is_owned(), "an edge comes or goes while the learner may be looking at all of them"
        self.changes += 1

    def __setitem__(self, key, value) -> None:
        self._changed()
        super().__setitem__(key, value)

    def __delitem__(self, key) -> None:
        self._changed()
        super().__delitem__(key)


def test_edges_come_and_go_under_the_lock_with_which_the_learner_looks_at_them():
    fleet = Fleet(small_plan(learners=3, gossip=GOSSIP))
    hood = fleet.learners[0].peer._hood
    outgoing, incoming = Guarded(hood.standing.lock), Guarded(hood.standing.lock)
    hood.out_peers.edges, hood.in_peers.edges = outgoing, incoming
    fleet.connect()
    assert (outgoing.changes, incoming.changes) == (1, 1)
    for rank in (1, 2):
        fleet.learners[rank].peer.close()
    hood.set_plan(small_plan(learners=1, gossip=GOSSIP, epoch=1))
    fleet.network.advance(1.0)
    assert (outgoing, incoming) == ({}, {})
