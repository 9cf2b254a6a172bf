"""Gossip over real gRPC on the loopback interface: neighbours, and what becomes of a ring without one of them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gala import topology
from gala.errors import GossipError
from gala_worker import address
from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.peer import GossipPeer
from grpc_ring import PATIENCE, Ring, Runner

# ------------------------------------------------------------------ neighbours


def in_a_thread_each(made: Ring, learner: Callable[[int], None]) -> None:
    """Calls `learner` with every rank, and returns when all have come back."""
    threads = [threading.Thread(target=learner, args=(rank,)) for rank in made.peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mixing", ["average", "push-sum"])
@pytest.mark.parametrize(("shape", "size"), [("Ring", 4), ("OnePeerExponential", 6)])
@pytest.mark.parametrize("one_machine", [True, False])
def test_synchronous_rounds_over_the_network_equal_the_product_of_the_mixing_matrices(
    ring, one_machine, shape, size, mixing
):
    """Each learner at its own pace: nobody is ahead by more than the bound allows."""
    gossip = {"maxStaleness": 0, "peerTimeoutSeconds": 30, "mixing": mixing}
    made = ring(size, num_elements=100_000, gossip=gossip, topology={"type": shape}, one_machine=one_machine)
    made.connect()
    assert made.lends() == {one_machine}
    generator = torch.Generator().manual_seed(0)
    vectors = {rank: torch.randn(100_000, generator=generator) for rank in made.peers}
    expected = torch.stack(list(vectors.values())).double().numpy()
    for version in range(1, 31):
        expected = np.array(topology.mixing_matrix(made.plan.spec.topology, size, version)) @ expected
    mixed: dict[int, list[int]] = {rank: [] for rank in made.peers}

    def learner(rank: int) -> None:
        pace = random.Random(rank)
        for version in range(1, 31):
            threading.Event().wait(0.002 * pace.random())  # its update
            made.peers[rank].offer(vectors[rank], version=version, steps=version)
            mixing = made.peers[rank].mix(vectors[rank])
            mixed[rank].append(0 if mixing is None else len(mixing.peers))

    in_a_thread_each(made, learner)
    assert all(counts == [1] * 30 for counts in mixed.values())
    np.testing.assert_allclose(torch.stack(list(vectors.values())).double().numpy(), expected, atol=1e-5)


def test_a_learner_that_waits_for_its_neighbours_goes_on_when_it_is_told_to_stop(ring):
    made = ring(2, gossip={"maxStaleness": 0, "peerTimeoutSeconds": 300})
    made.connect()
    vector, stopping = torch.zeros(made.num_elements), threading.Event()
    made.peers[0].offer(vector, version=1, steps=1)  # the other one never does
    waits = threading.Thread(target=made.peers[0].mix, args=(vector, stopping.is_set))
    waits.start()
    made.wait(lambda: made.peers[0].is_waiting)
    stopping.set()
    waits.join(PATIENCE)
    assert not waits.is_alive()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mixing", ["average", "push-sum"])
@pytest.mark.parametrize("size", [3, 4, 6])
def test_synchronous_one_peer_rounds_go_on_without_a_lost_learner(ring, size, mixing):
    """In a round whose in-peer is lost nobody is waited for, whatever comes from those that have taken others over."""
    gossip = {"maxStaleness": 0, "peerTimeoutSeconds": 5, "mixing": mixing}
    made = ring(size, gossip=gossip, topology={"type": "OnePeerExponential"})
    made.connect()
    lost, rounds = size - 1, 40
    made.peers.pop(lost).close(farewell=False)
    made.wait(lambda: all(lost not in peer.stats().out_peers for peer in made.peers.values()))
    made.wait(lambda: all(lost not in peer.stats().in_peers for peer in made.peers.values()))

    def learner(rank: int) -> None:
        vector = torch.zeros(made.num_elements)
        for version in range(1, rounds + 1):
            made.peers[rank].offer(vector, version=version, steps=version)
            made.peers[rank].mix(vector)

    in_a_thread_each(made, learner)
    for peer in made.peers.values():
        stats = peer.stats()
        assert stats.mixes >= rounds // 3, stats
        assert stats.waited_seconds < 10, stats


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mixing", ["average", "push-sum"])
@pytest.mark.parametrize("ahead", [-7, -1, 1, 7])
def test_synchronous_one_peer_rounds_go_on_with_a_learner_whose_count_is_another(ring, ahead, mixing):
    """As after a restart from a checkpoint of its own, or with the state of a neighbour."""
    gossip = {"maxStaleness": 0, "peerTimeoutSeconds": 5, "mixing": mixing}
    made = ring(4, gossip=gossip, topology={"type": "OnePeerExponential"})
    made.connect()

    def learner(rank: int) -> None:
        vector = torch.zeros(made.num_elements)
        begin = 10 + (ahead if rank == 2 else 0)
        for version in range(begin, begin + 60):
            made.peers[rank].offer(vector, version=version, steps=version)
            made.peers[rank].mix(vector)

    in_a_thread_each(made, learner)
    for peer in made.peers.values():
        stats = peer.stats()
        assert stats.mixes >= 25, stats  # in every period: two messages may come in one round of it
        # Once, at its end: whoever is ahead, or behind, leaves the others, or is left, some rounds before they end.
        assert stats.waited_seconds < 12, stats


@pytest.mark.timeout(240)
@pytest.mark.parametrize("one_machine", [True, False])
def test_push_sum_over_the_network_keeps_the_weighted_mean(ring, one_machine):
    """Three threads as fast as they can, one of them slower."""
    gossip = {"mixing": "push-sum", "peerTimeoutSeconds": 30}
    made = ring(3, num_elements=300_000, gossip=gossip, one_machine=one_machine)
    made.connect()
    vectors = {rank: torch.full((300_000,), float(rank)) for rank in made.peers}
    done = threading.Barrier(3)

    def learner(rank: int) -> None:
        version, deadline = 0, time.monotonic() + 4 * PATIENCE  # six rounds of three threads
        # Until all have mixed: whoever stopped earlier would leave the next one without messages.
        while min(peer.stats().mixes for peer in made.peers.values()) < 6 and time.monotonic() < deadline:
            version += 1
            made.peers[rank].offer(vectors[rank], version=version, steps=version)
            made.peers[rank].mix(vectors[rank])
            threading.Event().wait(0.004 if rank == 1 else 0.001)
        done.wait()
        deadline = time.monotonic() + 4 * PATIENCE
        while sum(peer.weight for peer in made.peers.values()) < 3 - 1e-9 and time.monotonic() < deadline:
            made.peers[rank].mix(vectors[rank])  # what is still on its way
            threading.Event().wait(0.01)

    in_a_thread_each(made, learner)
    weights = {rank: peer.weight for rank, peer in made.peers.items()}
    assert sum(weights.values()) == pytest.approx(3.0)
    mean = sum(weights[rank] * vectors[rank].double() for rank in weights) / 3
    # Every mixing may round by half a unit in float32's last place, and a busy machine makes for many of them.
    rounding = 2.0**-22 * sum(peer.stats().mixes for peer in made.peers.values())
    assert rounding < 1e-2  # averaging drifts by a tenth and more
    torch.testing.assert_close(mean, torch.ones(300_000, dtype=torch.float64), rtol=0, atol=1e-5 + rounding)
    assert all(peer.stats().mixes > 5 for peer in made.peers.values())


def test_a_learner_that_breaks_off_is_left_out_and_comes_back_with_the_state_of_a_neighbour(ring):
    made = ring(4)
    made.connect()
    made.run()
    made.assert_all_mix(range(4))
    made.runners.pop(2).stop()
    made.peers.pop(2).close(farewell=False)
    made.wait(lambda: made.peers[1].stats().out_peers == (3,) and made.peers[3].stats().in_peers == (1,))
    made.assert_all_mix([0, 1, 3])
    reborn = made.start(2)
    assert reborn.fetch_state(PATIENCE) == b"s" * 3_000_000
    reborn.join()
    made.runners[2] = Runner(reborn, 8)
    made.wait(made.is_whole)
    made.assert_all_mix(range(4))


def test_a_farewell_is_heard_at_once_and_closing_is_quick(ring):
    made = ring(3, gossip={"peerTimeoutSeconds": 60, "maxStaleness": 0})
    made.connect()
    began = time.monotonic()
    made.peers.pop(1).close()
    assert time.monotonic() - began < 5.0
    made.wait(lambda: made.peers[0].stats().out_peers == (2,) and made.peers[2].stats().in_peers == (0,))


def test_nobody_at_home_means_no_state_and_no_waiting(ring):
    made = ring(3)
    peer = made.start(0)
    began = time.monotonic()
    assert peer.fetch_state(60.0) is None
    assert time.monotonic() - began < 10.0


def test_a_port_that_somebody_else_uses_is_a_clear_error(loop_thread):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        plan = small_plan(learners=2, address=lambda rank: f"127.0.0.1:{port}")
        peer = GossipPeer(0, plan, "schema", 8, transport=GrpcTransport(loop_thread), incarnation=1)
        with pytest.raises(GossipError, match=f"cannot listen on 127.0.0.1:{port}"):
            peer.start()


@pytest.mark.parametrize(
    ("planned", "listening"),
    [
        ("127.0.0.1:7", "127.0.0.1:7"),
        ("localhost:7", "localhost:7"),
        ("[::1]:7", "[::1]:7"),
        ("run-0.run.default.svc:7070", "[::]:7070"),
    ],
)
def test_a_name_in_the_plan_is_listened_for_on_all_interfaces(planned, listening):
    assert address.listening_address(planned) == listening


def test_a_node_without_ipv6_is_listened_on_all_the_same(monkeypatch):
    monkeypatch.setattr(address, "has_ipv6", lambda: False)
    assert address.listening_address("run-0.run.default.svc:7070") == "0.0.0.0:7070"


# ------------------------------------------------------------------ other processes


@pytest.fixture
def process(request):
    started: list[subprocess.Popen[bytes]] = []

    def start(made: Ring, rank: int) -> subprocess.Popen[bytes]:
        arguments = json.dumps([rank, made.ports, made.num_elements, made.gossip])
        script = Path(__file__).with_name("gossip_process.py")
        child = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), arguments],
            stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        if child.stdin:
            child.stdin.close()


@pytest.mark.processes
@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_frozen_stops_nobody_and_comes_back(ring, process, fault):
    made = ring(3, num_elements=900_000)
    child = process(made, 2)
    made.connect([0, 1])
    made.wait(made.is_whole, 60.0)
    made.run()
    made.assert_all_mix([0, 1])
    child.send_signal(fault)
    made.wait(lambda: made.peers[1].stats().out_peers == (0,) and made.peers[0].stats().in_peers == (1,))
    made.assert_all_mix([0, 1])
    if fault == signal.SIGSTOP:
        child.send_signal(signal.SIGCONT)
    else:
        child = process(made, 2)
    made.wait(made.is_whole, 60.0)
    made.assert_all_mix([0, 1])
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(PATIENCE) == 0
