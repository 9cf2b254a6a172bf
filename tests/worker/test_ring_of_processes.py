"""Four real learners in a ring, over gRPC, under a launcher: what one of them suffers does not stop the others."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from run_documents import PEER_TIMEOUT_SECONDS, lasting

if TYPE_CHECKING:
    from conftest import LiveRun

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

EXAMPLE = Path(__file__).parents[2] / "examples/cartpole.yaml"
# One poll of /status, and what a busy machine adds: a pause that the ring causes would last the peer timeout or more.
SLACK_SECONDS = 2.0
# How long the frozen learner stays so at least: 0 is until the others have gone on without it. See docs/development.md.
FREEZE_SECONDS = float(os.environ.get("GALA_FREEZE_SECONDS", "0"))
RANKS = range(4)


def document() -> dict[str, Any]:
    # With the default ones a ring falls back now and then, without any accident.
    hyperparameters = yaml.safe_load(EXAMPLE.read_text())["spec"]["hyperparameters"]
    environment = {"id": "CartPole-v1", "simulators": 4}
    return lasting("ring", environment=environment, learners=4, hyperparameters=hyperparameters)


@pytest.fixture(scope="module")
def ring(live_run: Callable[..., LiveRun]) -> LiveRun:
    """Four learners that have learnt something and do not end by themselves."""
    run = live_run(document())
    run.until(lambda: all((run.status(r).get("meanReturn") or 0) > 150 for r in RANKS), "all four learn", 150)
    return run


def knitted(run: LiveRun, edges: dict[int, int]) -> bool:
    """Whether every one of these learners pushes to just that one, and hears from just its predecessor."""
    statuses = {rank: run.status(rank) for rank in edges}
    return all(
        statuses[rank].get("outPeers") == [peer] and statuses[peer].get("inPeers") == [rank]
        for rank, peer in edges.items()
    )


WHOLE = {0: 1, 1: 2, 2: 3, 3: 0}


class Watch:
    """Looks at learners again and again, and knows the longest time in which one made no update."""

    def __init__(self, run: LiveRun, ranks: list[int]) -> None:
        self._run = run
        self._last = {rank: (time.monotonic(), run.status(rank)["updates"]) for rank in ranks}
        self.longest_pause = 0.0
        self.incarnations = {rank: run.status(rank)["incarnation"] for rank in ranks}

    def look(self) -> None:
        for rank, (since, updates) in self._last.items():
            asked = time.monotonic()
            status = self._run.status(rank)
            if status.get("updates", updates) != updates:
                self._last[rank] = (time.monotonic(), status["updates"])
            else:  # nothing is known of the time after the question: an answer may take long on a busy machine
                self.longest_pause = max(self.longest_pause, asked - since)
            assert status.get("incarnation", self.incarnations[rank]) == self.incarnations[rank], "it was restarted"

    def until(self, condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
        self._run.until(lambda: (self.look(), condition())[1], what, seconds)


def test_a_killed_learner_comes_back_with_the_ring_s_state_and_nobody_waited(ring: LiveRun) -> None:
    ring.until(lambda: knitted(ring, WHOLE), "the ring is whole")
    before = ring.status(2)
    steps_then = before["globalSteps"]
    watch = Watch(ring, [0, 1, 3])
    os.kill(ring.pid(2), signal.SIGKILL)
    watch.until(lambda: knitted(ring, {0: 1, 1: 3, 3: 0}), "the ring closes without it")
    watch.until(lambda: ring.status(2).get("incarnation", 0) > before["incarnation"], "it is back")
    watch.until(lambda: knitted(ring, WHOLE), "the ring is whole again")
    assert watch.longest_pause < PEER_TIMEOUT_SECONDS + SLACK_SECONDS
    start = ring.events(2, "joined", "resumed", "seeded")[-1]
    assert start["event"] == "joined"
    assert start["globalSteps"] >= steps_then
    assert start["steps"] > 0, "it counts on where its first life ended"
    watch.until(lambda: ring.status(2).get("episodes", 0) >= 8, "it has finished some episodes")
    # A policy at the start balances for about 22 steps.
    assert ring.status(2)["meanReturn"] > 60
    assert ring.status(2)["steps"] >= before["steps"]


def test_a_frozen_learner_is_left_out_and_taken_back_when_it_thaws(ring: LiveRun) -> None:
    ring.until(lambda: knitted(ring, WHOLE), "the ring is whole")
    watch = Watch(ring, [0, 2, 3])
    frozen = ring.pid(1)
    os.kill(frozen, signal.SIGSTOP)
    thaw = time.monotonic() + FREEZE_SECONDS
    try:
        watch.until(lambda: knitted(ring, {0: 2, 2: 3, 3: 0}), "the ring closes without it")
        steps = ring.status(0)["globalSteps"]
        watch.until(lambda: ring.status(0).get("globalSteps", 0) > steps + 5000, "the others go on")
        watch.until(lambda: time.monotonic() >= thaw, "it was frozen for as long as wanted", FREEZE_SECONDS + 90)
    finally:
        os.kill(frozen, signal.SIGCONT)
    watch.until(lambda: knitted(ring, WHOLE), "the ring is whole again")
    assert watch.longest_pause < PEER_TIMEOUT_SECONDS + SLACK_SECONDS
    assert ring.pid(1) == frozen
    gone = [event["peer"] for event in ring.events(2, "peer-gone") if event["direction"] == "in"]
    assert 1 in gone


@contextmanager
def strangers(address: tuple[str, int]) -> Iterator[None]:
    """Open connections that send noise, a header a byte at a time, or nothing."""
    noise = random.Random(1)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(40)]
        for number, connection in enumerate(sockets):
            content = (noise.randbytes(1 << 16), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise.randbytes(4096), b"P", b"")
            connection.setblocking(False)
            try:
                connection.send(content[number % 4])
            except OSError:
                continue  # the learner has hung up already, which is its right
        yield


def test_noise_on_the_gossip_port_does_not_disturb_the_ring(ring: LiveRun) -> None:
    ring.until(lambda: knitted(ring, WHOLE), "the ring is whole")
    watch = Watch(ring, list(RANKS))
    gone_before = len(ring.events(0, "peer-gone"))
    with strangers(ring.address(0, "gossip")), strangers(ring.address(0, "http")):
        mixes = ring.records(0, "train")[-1]["gossip"]["mixes"]
        watch.until(lambda: ring.records(0, "train")[-1]["gossip"]["mixes"] > mixes + 20, "it goes on mixing")
    watch.until(lambda: knitted(ring, WHOLE), "the ring is whole")
    assert len(ring.events(0, "peer-gone")) == gone_before
    assert watch.longest_pause < PEER_TIMEOUT_SECONDS + SLACK_SECONDS


def test_a_stopped_run_goes_on_where_it_was(ring: LiveRun) -> None:
    """Last in this file: it ends the ring."""
    steps = {rank: ring.status(rank)["steps"] for rank in RANKS}
    starts = {rank: len(ring.events(rank, "started")) for rank in RANKS}
    assert ring.stop() == 130
    again = type(ring)(ring.file.parent, document(), "--set", f"spec.totalSteps={sum(steps.values()) + 4_000}")
    try:
        assert again.process.wait(180) == 0, again.log.read_text()
        for rank in RANKS:
            assert len(again.events(rank, "started")) > starts[rank]
            assert again.events(rank, "joined", "resumed", "seeded")[-1]["event"] in ("resumed", "joined")
            assert again.records(rank, "train")[-1]["steps"] >= steps[rank]
    finally:
        again.kill()
