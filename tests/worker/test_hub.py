"""The star over real gRPC on the loopback interface: order, credit, latest wins, comings and goings."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from gala.errors import GossipError
from gala_worker.algorithms.hub import Contribution, HubClient, HubServer, Identity
from gala_worker.algorithms.hub.framing import WIRE
from gala_worker.algorithms.hub.messages import (
    MAX_UNPROCESSED,
    HubChunk,
    HubHeader,
    HubHello,
    HubWelcome,
    Kind,
    Taken,
    Want,
)
from gala_worker.algorithms.hub.pieces import split
from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.messages import CHUNK_BYTES, Reason, Refusal

TIMEOUT = 1.0
PATIENCE = 20.0
"""The longest that a test waits for a condition on a busy machine."""
SIZE = 24


@pytest.fixture(scope="module")
def loop_thread():
    thread = LoopThread()
    yield thread
    thread.stop()


class Star:
    """A hub and its actors in this process, on a port that is theirs for as long as the test takes."""

    def __init__(self, thread: LoopThread, learners: int, *, num_elements: int, size: int, **gossip):
        self.thread, self.num_elements, self.size = thread, num_elements, size
        self.holder = socket.socket()
        self.holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.holder.bind(("127.0.0.1", 0))
        self.port = self.holder.getsockname()[1]
        self.gossip = {"peerTimeoutSeconds": TIMEOUT, **gossip}
        self.plan = self.make_plan(learners)
        self.servers: list[HubServer] = []
        self.clients: list[HubClient] = []
        self.incarnation = 0

    def make_plan(self, learners: int, epoch: int = 0, port: int | None = None):
        address = f"127.0.0.1:{self.port if port is None else port}"
        return small_plan(learners=learners, gossip=self.gossip, epoch=epoch, address=lambda rank: address)

    def identity(self, rank: int, incarnation: int | None) -> Identity:
        self.incarnation += 1
        return Identity(rank, incarnation or self.incarnation, "schema", self.num_elements)

    def hub(self, *, version: int | None = 1, **changes) -> HubServer:
        server = HubServer(self.plan, self.identity(0, None), loop=self.thread, contribution_bytes=self.size, **changes)
        self.servers.append(server)
        server.start()
        if version is not None:
            self.publish(server, version)
        return server

    def publish(self, server: HubServer, version: int, **changes) -> None:
        vector = torch.full((self.num_elements,), float(version))
        server.publish(vector, version=version, progress={1: 10 * version}, **changes)

    def actor(self, rank: int, incarnation: int | None = None, **changes) -> HubClient:
        client = HubClient(
            self.plan, self.identity(rank, incarnation), loop=self.thread, contribution_bytes=self.size, **changes
        )
        self.clients.append(client)
        client.start()
        return client

    def payload(self, number: int) -> bytes:
        return number.to_bytes(8, "little") * (self.size // 8)

    def push(self, client: HubClient, number: int, *, version: int = 1, timeout: float = PATIENCE) -> bool:
        return client.push([self.payload(number)], version=version, steps=number, timeout=timeout)

    def close(self) -> None:
        for end in (*self.clients, *self.servers):
            end.close()
        self.holder.close()


@pytest.fixture
def star(loop_thread):
    with contextlib.ExitStack() as stack:

        def make(learners: int = 2, *, num_elements: int = 6, size: int = SIZE, **gossip) -> Star:
            made = Star(loop_thread, learners, num_elements=num_elements, size=size, **gossip)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_loop(loop_thread, caplog):
    yield
    # gRPC reports what it could not do, such as ending a stream properly, in its log only.
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

    async def others() -> int:
        return len(asyncio.all_tasks()) - 1

    eventually(lambda: loop_thread.run(others()) == 0)


def eventually(condition, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        threading.Event().wait(0.01)


def take(server: HubServer) -> Contribution:
    contribution = server.take(PATIENCE)
    assert contribution is not None
    return contribution


# ------------------------------------------------------------------ up


def test_contributions_arrive_whole_in_order_and_with_what_was_said_of_them(star):
    made = star(size=3 * CHUNK_BYTES + 8)
    server, client = made.hub(), made.actor(1)
    for number in range(1, 6):
        assert made.push(client, number, version=number + 40)
        contribution = take(server)
        assert bytes(contribution.payload) == made.payload(number)
        assert (contribution.rank, contribution.steps, contribution.version) == (1, number, number + 40)
        contribution.release()
    assert server.take(0.0) is None


def test_pieces_of_a_payload_are_joined_and_another_length_is_a_mistake(star):
    made = star()
    server, client = made.hub(), made.actor(1)
    assert client.push([b"a" * 8, bytearray(b"b" * 8), memoryview(b"c" * 8)], version=1, steps=1, timeout=PATIENCE)
    assert bytes(take(server).payload) == b"a" * 8 + b"b" * 8 + b"c" * 8
    with pytest.raises(ValueError, match="23 bytes, not 24"):
        client.push([b"a" * 23], version=1, steps=1, timeout=PATIENCE)


def test_a_hub_that_takes_nothing_stops_its_actors_and_memory_stays_bounded(star):
    made = star(learners=4)
    server = made.hub()
    clients = [made.actor(rank) for rank in (1, 2, 3)]
    for client in clients:
        for number in range(1, MAX_UNPROCESSED + 1):
            assert made.push(client, number)
        assert not made.push(client, 3, timeout=0.05)
    eventually(lambda: all(actor.waiting == MAX_UNPROCESSED for actor in server.stats().actors))
    assert len(server.stats().actors) == 3
    stats = [client.stats() for client in clients]
    assert [one.bytes_out for one in stats] == [MAX_UNPROCESSED * SIZE] * 3
    assert all(one.waited_seconds >= 0.05 for one in stats)
    # One credit comes back with every one that is taken, to its own actor.
    first = take(server)
    lucky = clients[first.rank - 1]
    assert made.push(lucky, 3)
    for client in clients:
        assert not made.push(client, 4, timeout=0.0)


def test_a_pusher_gives_up_when_it_is_told_to(star):
    made = star()
    client = made.actor(1)  # nobody answers
    assert made.push(client, 1)
    assert made.push(client, 2)
    asked = []
    assert not client.push(
        [made.payload(3)], version=1, steps=3, timeout=PATIENCE, give_up=lambda: asked.append(1) or True
    )
    assert asked
    assert not client.connected


def test_a_slow_actor_is_neither_starved_by_a_fast_one_nor_waited_for(star):
    """One actor that is ten times as slow as the other."""
    made = star(learners=3)
    server, fast, slow = made.hub(), made.actor(1), made.actor(2)
    stop = threading.Event()

    def act() -> None:
        number = 1
        while not stop.is_set():
            number += made.push(fast, number, timeout=0.1)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        for late in range(1, 6):
            for _ in range(10):
                contribution = take(server)
                assert contribution.rank == 1
                contribution.release()
            assert made.push(slow, late)
            eventually(lambda: [actor.waiting for actor in server.stats().actors if actor.rank == 2] == [1])
            assert take(server).rank == 2  # at once, whatever the fast one has here
    finally:
        stop.set()
        thread.join()


# ------------------------------------------------------------------ down


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_parameters_come_unasked_with_version_and_progress(star, precision):
    made = star(num_elements=CHUNK_BYTES // 2 + 3, precision=precision)
    made.hub(version=7)
    parameters = made.actor(1).latest(PATIENCE)
    assert parameters is not None
    assert parameters.vector.dtype == getattr(torch, precision)
    assert torch.equal(parameters.vector.float(), torch.full((made.num_elements,), 7.0))
    assert (parameters.version, parameters.progress, parameters.finished) == (7, {1: 70}, False)


def test_the_latest_parameters_win_and_each_is_taken_once(star):
    made = star()
    server, client = made.hub(), made.actor(1)
    assert client.latest(PATIENCE).version == 1
    for version in range(2, 50):
        made.publish(server, version)
    client.request()
    eventually(lambda: client.stats().parameters == 2)
    assert client.latest().version == 49
    assert client.latest() is None
    assert server.stats().actors[0].parameters == 2


def test_an_actor_that_asks_for_nothing_gets_nothing_but_the_end(star):
    made = star()
    server, client = made.hub(), made.actor(1)
    eventually(lambda: client.stats().parameters == 1)
    for version in range(2, 10):
        made.publish(server, version)
    assert made.push(client, 1)  # has parameters that it has not looked at, so asks for none
    take(server)
    assert server.stats().actors[0].parameters == 1
    made.publish(server, 10, finished=True)
    eventually(lambda: client.finished)
    assert client.latest().version == 10


def test_who_waits_for_parameters_gets_the_next_that_are_published(star):
    made = star()
    server, client = made.hub(version=None), made.actor(1)
    assert client.latest(0.05) is None
    eventually(lambda: client.connected)
    threading.Timer(0.05, made.publish, (server, 3)).start()
    assert client.latest(PATIENCE).version == 3


def test_parameters_in_hand_do_not_change_while_newer_ones_arrive(star):
    made = star()
    server, client = made.hub(), made.actor(1)
    held = client.latest(PATIENCE)
    for version in range(2, 8):
        made.publish(server, version)
        before = client.stats().parameters
        client.request()
        eventually(lambda before=before: client.stats().parameters > before)
        assert torch.equal(held.vector, torch.ones(made.num_elements))
    assert client.stats().replaced == 5


def test_memory_for_parameters_is_bounded_however_often_they_are_published(star):
    made = star(learners=3)
    server = made.hub()
    clients = [made.actor(1), made.actor(2)]
    for version in range(2, 200):
        made.publish(server, version)
        clients[version % 2].latest()
    assert server._reception.press.allocated <= len(clients) + 2
    assert all(len(client._attendance._free_buffers) <= 2 for client in clients)


# ------------------------------------------------------------------ comings and goings


def test_the_last_parameters_reach_everybody_before_the_hub_is_gone(star):
    made = star(learners=4, num_elements=3 * CHUNK_BYTES // 4)
    server = made.hub()
    clients = [made.actor(rank) for rank in (1, 2, 3)]
    eventually(lambda: server.stats().connected == (1, 2, 3))
    for client in clients:  # gradients on their way do not hold up the end
        made.push(client, 1)
    made.publish(server, 9, finished=True)
    server.close()
    for client in clients:
        assert client.latest().version == 9
        assert client.finished
        assert client.progress() == {1: 90}


def test_an_actor_that_has_been_away_hears_the_end_from_a_hub_that_waits_for_it(star):
    made = star(peerTimeoutSeconds=30)
    server, client = made.hub(), made.actor(1, incarnation=50)
    eventually(lambda: server.stats().connected == (1,))
    client._transport.close(0.0)  # without a farewell
    eventually(lambda: server.stats().connected == ())
    made.publish(server, 2, finished=True)
    closing = threading.Thread(target=server.close)
    closing.start()
    again = made.actor(1, incarnation=51)
    assert again.latest(PATIENCE).finished
    closing.join()


def test_a_hub_that_comes_back_is_adopted_also_backwards_and_old_contributions_are_given_up(star):
    made = star()
    server, client = made.hub(version=100), made.actor(1)
    first = client.latest(PATIENCE)
    assert made.push(client, 1, version=100)
    server.close()
    eventually(lambda: not client.connected)
    assert made.push(client, 2, version=100)
    assert not made.push(client, 3, version=100, timeout=0.05)  # no credit while nobody takes
    assert client.is_waiting is False
    back = made.hub(version=60)
    eventually(lambda: client.connected)
    assert made.push(client, 3, version=100)  # gone with the hub that it was made for
    assert client.stats().lost == 3
    second = client.latest(PATIENCE)
    assert (second.version, second.lineage != first.lineage) == (60, True)
    assert client.progress() == {1: 600}
    assert made.push(client, 4, version=60)
    assert take(back).steps == 4
    assert back.take(0.05) is None
    assert [event["event"] for event in client.events()] == ["peer-gone", "peer-back"]


def test_after_a_broken_stream_every_contribution_arrives_once_and_in_order(star):
    made = star()
    server, client = made.hub(), made.actor(1)
    client.latest(PATIENCE)
    number = taken = 0
    for _ in range(5):
        for _ in range(MAX_UNPROCESSED):
            number += 1
            assert made.push(client, number)
        session = client._attendance.session
        if session is not None:
            client._transport.call_soon(session.link.abort)
        for _ in range(MAX_UNPROCESSED):
            taken += 1
            assert take(server).steps == taken
    assert client.stats().lost == 0
    assert server.take(0.05) is None


def test_an_actor_that_dies_and_returns_goes_on_and_what_it_left_is_used(star):
    made = star(peerTimeoutSeconds=30)
    server, client = made.hub(), made.actor(1, incarnation=7)
    assert made.push(client, 1)
    assert made.push(client, 2)
    eventually(lambda: server.stats().actors and server.stats().actors[0].waiting == 2)
    client._transport.close(0.0)
    eventually(lambda: server.stats().connected == ())
    again = made.actor(1, incarnation=8)
    assert again.latest(PATIENCE) is not None
    assert take(server).incarnation == 7
    assert made.push(again, 3)
    eventually(lambda: server.stats().actors[0].waiting == 1)
    assert [(take(server).incarnation) for _ in range(2)] == [7, 8]
    kinds = [(event["event"], event["peer"]) for event in server.events()]
    assert kinds == [("peer-gone", 1), ("peer-back", 1)]


def test_the_newest_process_of_a_rank_wins_and_an_older_one_is_told(star):
    made = star()
    server, young = made.hub(), made.actor(1, incarnation=20)
    eventually(lambda: young.connected)
    old = made.actor(1, incarnation=10)
    eventually(lambda: old.stats().strangers.get("STALE_INCARNATION", 0) > 0)
    assert young.connected
    younger = made.actor(1, incarnation=30)
    eventually(lambda: younger.connected)
    assert made.push(younger, 5)
    assert take(server).incarnation == 30


def test_a_newer_plan_brings_actors_and_takes_them_away(star):
    made = star(learners=3)
    server, first, second = made.hub(), made.actor(1), made.actor(2)
    eventually(lambda: server.stats().connected == (1, 2))
    smaller = made.make_plan(2, epoch=1)
    server.set_plan(smaller)
    first.set_plan(smaller)
    eventually(lambda: server.stats().connected == (1,))
    eventually(lambda: "STALE_EPOCH" in second.stats().strangers)
    made.plan = made.make_plan(4, epoch=2)
    server.set_plan(made.plan)
    for client in (first, second):
        client.set_plan(made.plan)
    third = made.actor(3)
    eventually(lambda: server.stats().connected == (1, 2, 3))
    assert made.push(third, 1)
    assert take(server).rank == 3


def test_actors_follow_a_hub_that_has_moved(star, free_port):
    made = star()
    server, client = made.hub(), made.actor(1)
    eventually(lambda: client.connected)
    made.plan = made.make_plan(2, epoch=1, port=free_port)
    moved = made.hub(version=5)
    client.set_plan(made.plan)
    eventually(lambda: moved.stats().connected == (1,))
    eventually(lambda: server.stats().connected == ())
    assert client.latest(PATIENCE).version in (1, 5)


def test_a_port_of_the_hub_that_somebody_else_uses_is_a_clear_error(star, loop_thread):
    made = star()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        plan = made.make_plan(2, port=taken.getsockname()[1])
        server = HubServer(plan, made.identity(0, None), loop=loop_thread, contribution_bytes=SIZE)
        with pytest.raises(GossipError, match="cannot listen on"):
            server.start()
        server.close()


# ------------------------------------------------------------------ strangers


def hello(made: Star, **changes) -> bytes:
    proper = HubHello(made.plan.run_uid, 1, 2**40, made.plan.epoch, "schema", made.num_elements, 1, made.size)
    return WIRE.encode(dataclasses.replace(proper, **changes))


def contribution(made: Star, serial: int = 1, payload: bytes | None = None) -> list[bytes]:
    content = made.payload(serial) if payload is None else payload
    return [
        WIRE.encode(chunk)
        for chunk in split(Kind.CONTRIBUTION, serial, memoryview(content), HubHeader(len(content), 1, 1))
    ]


def say(made: Star, *messages: bytes) -> list[object]:
    """What the hub answers to a stranger's bytes, without parameters; and how it ends the stream."""
    with grpc.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        call = channel.stream_stream(f"/{WIRE.service}/{WIRE.stream}", None, None)(iter(messages), timeout=PATIENCE)
        heard: list[object] = []
        try:
            heard.extend(WIRE.decode(answer) for answer in call)
        except grpc.RpcError as error:
            heard.append(error.code())
        return [one for one in heard if not isinstance(one, HubChunk)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_uid": "another run"}, Reason.WRONG_RUN),
        ({"schema_hash": "another"}, Reason.WRONG_SCHEMA),
        ({"num_elements": 7}, Reason.WRONG_SCHEMA),
        ({"contribution_bytes": 2**50}, Reason.WRONG_SCHEMA),
        ({"precision": 2}, Reason.WRONG_PRECISION),
        ({"rank": 0}, Reason.NOT_MY_PEER),
        ({"rank": 9}, Reason.NOT_MY_PEER),
        ({"epoch": 0}, Reason.STALE_EPOCH),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value.name,
)
def test_a_hello_that_is_not_acceptable_is_refused_with_its_reason(star, changes, reason):
    made = star()
    made.plan = made.make_plan(2, epoch=3)
    server = made.hub()
    assert say(made, hello(made, **changes)) == [Refusal(reason, reason.text)]
    assert server.stats().strangers == {reason.name: 1}
    assert server.stats().connected == ()


def test_what_a_hello_must_not_be_followed_by_ends_the_stream_and_nothing_else(star):
    made = star(size=2 * CHUNK_BYTES)
    server, client = made.hub(), made.actor(1, incarnation=2**39)
    eventually(lambda: client.connected)
    first, second = contribution(made)
    cases = [
        [b"\xff" * 40],
        [hello(made), b"\x0a\x03abc"],
        [hello(made), hello(made)],
        [hello(made), second],
        [hello(made), first, first],
        [hello(made), first[:-1], second],
        [hello(made), *contribution(made, payload=b"x" * CHUNK_BYTES)],
        [hello(made), *contribution(made, 1), *contribution(made, 2), *contribution(made, 3)],
        [hello(made), *contribution(made, 2), *contribution(made, 1)],
        [hello(made), WIRE.encode(HubChunk(Kind.PARAMETERS, 1, 0, 1, b"", HubHeader(0, 1)))],
        [hello(made), WIRE.encode(Want(77))],
        [hello(made), WIRE.encode(Taken(1))],
        [hello(made), WIRE.encode(HubWelcome("a run", 1, 1))],
        [first],
    ]
    for number, case in enumerate(cases):
        answers = say(made, *[message for message in case if message])
        refusal = next(answer for answer in answers if isinstance(answer, Refusal))
        assert refusal.reason is Reason.MALFORMED, (number, answers)
        while server.take(0.0) is not None:
            pass
    assert server.stats().strangers["MALFORMED"] == len(cases)
    honest = made.actor(1, incarnation=2**41)  # the strangers said that they are the younger process
    assert made.push(honest, 5)
    assert take(server).steps == 5


def test_a_frame_larger_than_any_that_is_proper_is_not_read(star):
    made = star(size=CHUNK_BYTES)
    server = made.hub()
    huge = WIRE.encode(HubChunk(Kind.CONTRIBUTION, 1, 0, 1, bytes(2 * CHUNK_BYTES), HubHeader(CHUNK_BYTES, 1)))
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in say(made, hello(made), huge)
    assert server.take(0.0) is None


# ------------------------------------------------------------------ faults, as a script


class Fault:
    """Spoils the first frames of a kind that one end says, and counts that it did."""

    def __init__(self, kind: type, act, times: int = 1):
        self.kind, self.act, self.left, self.fired = kind, act, times, 0

    def encode(self, frame) -> bytes:
        if not isinstance(frame, self.kind) or not self.left:
            return WIRE.encode(frame)
        self.left -= 1
        self.fired += 1
        return self.act(frame)

    def transport(self, thread: LoopThread) -> GrpcTransport:
        return GrpcTransport(thread, wire=dataclasses.replace(WIRE, encode=self.encode))


def truncated(frame) -> bytes:
    return WIRE.encode(frame)[:-3]


def wrong_size(frame) -> bytes:
    header = dataclasses.replace(frame.header, num_bytes=frame.header.num_bytes + 8)
    return WIRE.encode(dataclasses.replace(frame, header=header))


def short(frame) -> bytes:
    return WIRE.encode(dataclasses.replace(frame, payload=frame.payload[:-8]))


def not_a_number(frame) -> bytes:
    return WIRE.encode(dataclasses.replace(frame, payload=b"\x00\x00\xc0\x7f" * (len(frame.payload) // 4)))


def of_another_run(frame) -> bytes:
    return WIRE.encode(dataclasses.replace(frame, run_uid="another run"))


@pytest.mark.parametrize(
    ("kind", "act", "reason"),
    [
        (HubChunk, truncated, "MALFORMED"),
        (HubChunk, wrong_size, "MALFORMED"),
        (HubChunk, short, "MALFORMED"),
        (HubHello, truncated, "MALFORMED"),
        (HubHello, of_another_run, "WRONG_RUN"),
    ],
)
def test_after_an_actor_s_fault_its_contribution_is_sent_again_and_arrives_once(star, loop_thread, kind, act, reason):
    made, fault = star(), Fault(kind, act)
    server = made.hub()
    client = made.actor(1, transport=fault.transport(loop_thread))
    assert made.push(client, 1)
    assert made.push(client, 2)
    assert [take(server).steps, take(server).steps] == [1, 2]
    assert server.take(0.05) is None
    assert fault.fired == 1
    assert server.stats().strangers == {reason: 1}
    assert client.stats().strangers == {reason: 1}


def test_a_contribution_that_is_not_finite_is_refused_alone_and_counted_at_both_ends(star, loop_thread):
    made, fault = star(), Fault(HubChunk, not_a_number)
    server = made.hub(is_acceptable=lambda payload: b"\xc0\x7f" not in bytes(payload))
    client = made.actor(1, transport=fault.transport(loop_thread))
    for number in range(1, 5):
        assert made.push(client, number)
        if number > 1:
            assert take(server).steps == number
    assert fault.fired == 1
    assert server.stats().actors[0].refused == 1
    assert server.stats().strangers == {"NOT_FINITE": 1}
    assert client.stats().refused == 1
    assert client.connected
    assert [event["event"] for event in server.events()] == ["refused"]


@pytest.mark.parametrize(
    ("kind", "act", "reason"),
    [
        (HubChunk, truncated, "MALFORMED"),
        (HubChunk, wrong_size, "MALFORMED"),
        (HubChunk, not_a_number, "NOT_FINITE"),
        (HubWelcome, of_another_run, "MALFORMED"),
        (HubWelcome, truncated, "MALFORMED"),
    ],
)
def test_after_a_fault_of_the_hub_the_actor_still_gets_its_parameters(star, loop_thread, kind, act, reason):
    made, fault = star(), Fault(kind, act)
    server = made.hub(transport=fault.transport(loop_thread))
    client = made.actor(1)
    eventually(lambda: client.stats().strangers == {reason: 1})
    assert fault.fired == 1
    deadline = time.monotonic() + PATIENCE
    parameters, version = None, 1
    while parameters is None and time.monotonic() < deadline:
        version += 1
        made.publish(server, version)
        parameters = client.latest(0.2)
    assert parameters is not None
    assert torch.isfinite(parameters.vector.float()).all()


def test_a_credit_for_what_was_never_sent_ends_the_stream(star, loop_thread):
    made = star()
    fault = Fault(Taken, lambda frame: WIRE.encode(Taken(99)))
    server = made.hub(transport=fault.transport(loop_thread))
    client = made.actor(1)
    for number in (1, 2, 3, 4):
        assert made.push(client, number)
        assert take(server).steps == number
    assert fault.fired == 1
    assert client.stats().strangers == {"MALFORMED": 1}


def test_an_actor_that_hangs_without_closing_is_left_and_the_others_go_on(star):
    made = star(learners=3)
    server = made.hub()
    release = threading.Event()

    def silent():
        yield hello(made, rank=2)
        yield contribution(made, 1)[0]
        release.wait(PATIENCE)

    with grpc.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        call = channel.stream_stream(f"/{WIRE.service}/{WIRE.stream}", None, None)(silent(), timeout=PATIENCE)
        eventually(lambda: server.stats().connected == (2,))
        client = made.actor(1)
        eventually(lambda: server.stats().connected == (1,))  # it is closed after the timeout
        release.set()
        call.cancel()
    assert made.push(client, 7)
    assert {take(server).rank, take(server).rank} == {1, 2}  # what it had sent is used
    assert ("peer-gone", "silent") in [(event["event"], event.get("why")) for event in server.events()]


def test_a_hub_that_hangs_without_closing_is_left_and_dialled_again(star):
    made = star()
    release = threading.Event()

    def silent(requests, context):
        next(requests)
        yield WIRE.encode(HubWelcome(made.plan.run_uid, 1, 0))
        release.wait(PATIENCE)

    with ThreadPoolExecutor(4) as pool:
        hanging = grpc.server(pool, options=[("grpc.so_reuseport", 1)])
        handlers = {WIRE.stream: grpc.stream_stream_rpc_method_handler(silent)}
        hanging.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(WIRE.service, handlers),))
        hanging.add_insecure_port(f"127.0.0.1:{made.port}")
        hanging.start()
        client = made.actor(1)
        eventually(lambda: client.connected)
        assert made.push(client, 1)
        eventually(lambda: any(event.get("why") == "silent" for event in client.events()))
        hanging.stop(0)
        release.set()
        made.hub(version=4)
        assert client.latest(PATIENCE).version == 4
    assert client.stats().lost == 1


def test_silence_of_a_network_that_is_only_slow_is_no_reason_to_leave(star, loop_thread):
    """A hub that says everything ten times as slowly as it could keeps its actors."""
    made = star()
    delay = Fault(object, lambda frame: (time.sleep(0.01), WIRE.encode(frame))[1], times=10**6)
    server = made.hub(transport=delay.transport(loop_thread))
    client = made.actor(1)
    for number in range(1, 30):
        assert made.push(client, number)
        assert take(server).steps == number
        made.publish(server, number + 1)
        client.latest()
    assert delay.fired > 30
    assert [event["event"] for event in client.events()] == []
