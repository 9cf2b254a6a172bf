"""What a learner's records and log say about its neighbours, while these come and go."""

from __future__ import annotations

from gala_worker.gossip import framing
from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.memory import MemoryLink
from gala_worker.gossip.messages import Ack, Leaving

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


def test_an_out_peer_that_makes_no_sense_has_been_refused_and_has_not_refused(caplog):
    fleet = Fleet(small_plan(learners=2, gossip=GOSSIP))
    fleet.connect()
    peer = fleet.learners[0].peer
    peer.events()
    session = peer._hood.out_peers.edges[1].session
    assert session is not None
    session.link.hear(framing.encode(Ack(7)))  # of a message that was never sent
    assert peer.events() == [{"event": "refused", "peer": 1, "reason": "MALFORMED", "direction": "in"}]
    assert [line.split(":")[0] for line in caplog.messages] == ["refused rank 1"]
    assert "an acknowledgement of message 7, which was not sent" in caplog.text
    assert peer.stats().strangers == {"MALFORMED": 1}
    assert fleet.network.run_until(lambda: not fleet.is_connected(), 1.0)
    assert fleet.network.run_until(fleet.is_connected, 6.0)


def test_an_out_peer_that_refuses_is_named_as_the_one_that_does(caplog):
    fleet = Fleet(small_plan(learners=2, gossip=GOSSIP))
    fleet.learners[1].peer.set_plan(small_plan(learners=2, gossip=GOSSIP, epoch=1))
    fleet.learners[0].peer.join()
    fleet.network.advance(0.5)
    refused = {"event": "refused", "peer": 1, "reason": "STALE_EPOCH", "direction": "out"}
    assert refused in fleet.learners[0].peer.events()
    assert any(line.startswith("rank 1 refuses: I know a newer plan") for line in caplog.messages)


def test_a_learner_that_leaves_does_not_complain_of_those_that_still_come(caplog):
    fleet = Fleet(small_plan(learners=2, gossip=GOSSIP))
    fleet.connect()
    hood = fleet.learners[0].peer._hood
    hood.leave(Leaving.STOPPED)
    fleet.learners[0].peer.events()
    stranger = MemoryLink(fleet.network.transport(99))
    assert hood.accept(stranger, fleet.network.now) is None
    assert fleet.learners[0].peer.stats().strangers == {}
    assert fleet.learners[0].peer.events() == []
    assert caplog.messages == []
