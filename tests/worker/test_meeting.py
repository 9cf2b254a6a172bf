"""Where synchronous ranks meet: who is waited for, who is refused, and what strangers can do."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker.algorithms import meeting
from gala_worker.algorithms.meeting import Hello, Host, Visit
from gala_worker.gossip.loop_thread import LoopThread

SCHEMA = "a-schema"


def make_plan(port: int, learners: int, epoch: int = 0) -> RunPlan:
    document: dict[str, Any] = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "meeting"},
        "spec": {"algorithm": "A2C", "environment": {"id": "CartPole-v1"}, "learners": learners},
    }
    return plan(
        parse(document),
        epoch=epoch,
        uid="a-run",
        address=lambda rank: Address(gossip=f"127.0.0.1:{port}", http="127.0.0.1:1"),
    )


def hello(rank: int, **changes: Any) -> Hello:
    content: dict[str, Any] = {
        "run_uid": "a-run",
        "schema": SCHEMA,
        "rank": rank,
        "epoch": 0,
        "incarnation": 1,
        "updates": 0,
        "global_steps": 10 * rank,
        "device": "cpu",
    }
    return Hello(**content | changes)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def loop(stack: ExitStack) -> LoopThread:
    thread = LoopThread()
    stack.callback(thread.stop)
    return thread


@pytest.fixture
def host(stack: ExitStack, loop: LoopThread, free_port: int) -> Callable[[int], Host]:
    def start(learners: int) -> Host:
        made = Host(loop, make_plan(free_port, learners), 0)
        made.start(SCHEMA)
        stack.callback(made.close)
        return made

    return start


@pytest.fixture
def visit(stack: ExitStack, loop: LoopThread, free_port: int) -> Callable[[Hello], Visit]:
    def start(greeting: Hello) -> Visit:
        made = Visit(loop, f"127.0.0.1:{free_port}", greeting)
        stack.callback(made.cancel)
        return made

    return start


def test_everybody_hears_of_everybody_once_all_have_come(
    host: Callable[[int], Host], visit: Callable[[Hello], Visit]
) -> None:
    at_home = host(3)
    first = visit(hello(2))
    assert at_home.gather(hello(0), 0.3) is None
    assert first.result(0.0) is None
    second = visit(hello(1))
    gathering = at_home.gather(hello(0), 20)
    assert gathering is not None
    own = gathering.welcome(1234)
    for guest in (first, second):
        welcome = guest.result(20)
        assert welcome is not None
        assert welcome.members == own.members == (hello(0), hello(1), hello(2))
        assert (welcome.generation, welcome.store_port) == (1, 1234)
        assert (welcome.store_host, welcome.own_host) == ("127.0.0.1", "127.0.0.1")
    assert own.own_host == gathering.host == "127.0.0.1"


def test_guests_may_come_before_the_host(host: Callable[[int], Host], visit: Callable[[Hello], Visit]) -> None:
    early = visit(hello(1))
    assert early.result(0.5) is None
    gathering = host(2).gather(hello(0), 20)
    assert gathering is not None
    gathering.welcome(1)
    assert early.result(20) is not None


def test_who_has_hung_up_is_not_counted(host: Callable[[int], Host], visit: Callable[[Hello], Visit]) -> None:
    at_home = host(3)
    gone = visit(hello(1))
    visit(hello(2))
    wait_for(lambda: set(at_home._guests) == {1, 2})
    gone.cancel()
    wait_for(lambda: set(at_home._guests) == {2})
    assert at_home.gather(hello(0), 0.2) is None


def test_only_those_of_the_plan_s_epoch_count(
    host: Callable[[int], Host], visit: Callable[[Hello], Visit], free_port: int
) -> None:
    at_home = host(2)
    visit(hello(1, epoch=1))
    wait_for(lambda: 1 in at_home._guests)
    assert at_home.gather(hello(0), 0.2) is None
    at_home.set_plan(make_plan(free_port, 2, epoch=1))
    assert at_home.gather(hello(0, epoch=1), 20) is not None


def test_a_newer_process_takes_the_place_of_an_older_one(
    host: Callable[[int], Host], visit: Callable[[Hello], Visit]
) -> None:
    at_home = host(2)
    visit(hello(1, incarnation=5))
    wait_for(lambda: 1 in at_home._guests)
    visit(hello(1, incarnation=6))
    wait_for(lambda: 1 in at_home._guests and at_home._guests[1].hello.incarnation == 6)
    visit(hello(1, incarnation=4))
    gathering = at_home.gather(hello(0), 20)
    assert gathering is not None
    assert gathering.welcome(1).members[1].incarnation == 6


@pytest.mark.parametrize("change", [{"run_uid": "another"}, {"schema": "another"}])
def test_other_runs_and_other_networks_are_refused(
    host: Callable[[int], Host],
    visit: Callable[[Hello], Visit],
    change: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    at_home = host(2)
    visit(hello(1, **change))
    wait_for(lambda: "refuses this rank: " in caplog.text)
    assert at_home.gather(hello(0), 0.2) is None


def test_noise_does_not_disturb_a_meeting(
    host: Callable[[int], Host], visit: Callable[[Hello], Visit], free_port: int, stack: ExitStack
) -> None:
    at_home = host(2)
    noise = random.Random(1)
    half = json.dumps({"rank": 1, "epoch": "x"}).encode()
    for content in (noise.randbytes(1 << 16), b"\n", half + b"\n", half, b"[" * 100_000 + b"\n", b"", b"x" * (3 << 20)):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", free_port), timeout=5))
        connection.setblocking(False)
        try:
            connection.send(content)
        except OSError:
            continue
    guest = visit(hello(1))
    gathering = at_home.gather(hello(0), 20)
    assert gathering is not None
    gathering.welcome(1)
    assert guest.result(20) is not None


WELCOME = {"generation": 1, "members": [], "store_port": 1, "store_host": "127.0.0.1", "own_host": "127.0.0.1"}
UNREADABLE = ({"generation": float("inf")}, {"store_port": float("inf")}, {"store_port": 70_000}, {"store_port": -1})


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b"\xff",
        b"{}",
        b'{"welcome": {}}',
        *(json.dumps({"welcome": WELCOME | changed}).encode() for changed in UNREADABLE),
    ],
)
def test_a_guest_calls_again_when_what_answers_is_no_host(
    visit: Callable[[Hello], Visit], free_port: int, stack: ExitStack, answer: bytes
) -> None:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", free_port)))
    listener.settimeout(20)
    guest = visit(hello(1))
    for _ in range(2):
        connection = stack.enter_context(listener.accept()[0])
        connection.sendall(answer + b"\n")
    assert guest.result(0.0) is None


def test_a_silent_connection_is_hung_up_on(
    host: Callable[[int], Host], free_port: int, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "SILENCE_SECONDS", 0.3)
    host(2)
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", free_port), timeout=20))
    assert connection.recv(1) == b"", "closed by the host"


@pytest.mark.parametrize("steps", range(-3, 6))
def test_who_knocks_while_the_host_closes_is_hung_up_on(
    host: Callable[[int], Host], loop: LoopThread, free_port: int, stack: ExitStack, steps: int
) -> None:
    # Between the kernel's accept and the first step of what receives a guest lie several steps of the loop; below 0,
    # the guest knocks when so many steps of closing are done.
    at_home = host(2)

    async def some(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    async def knock() -> socket.socket:
        server, at_home._server = at_home._server, None
        assert server is not None
        closing = asyncio.create_task(at_home._close(server)) if steps < 0 else None
        await some(-steps)
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", free_port), timeout=20))
        await some(steps)
        await (closing or at_home._close(server))
        return connection

    connection = loop.run(knock())
    loop.stop()
    with suppress(ConnectionResetError):
        assert connection.recv(1) == b"", "neither waits for what nobody will send, nor gets it"


def test_a_guest_that_stops_giving_signs_of_life_is_not_counted(
    host: Callable[[int], Host], free_port: int, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "SILENCE_SECONDS", 1.0)
    at_home = host(2)
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", free_port), timeout=20))
    connection.send(json.dumps({**_fields(hello(1))}).encode() + b"\n")
    wait_for(lambda: 1 in at_home._guests)
    wait_for(lambda: 1 not in at_home._guests)


def _fields(greeting: Hello) -> dict[str, Any]:
    return {name: getattr(greeting, name) for name in Hello.__slots__}


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
