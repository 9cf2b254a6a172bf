"""The star over real gRPC: what strangers say, and faults by a script, of which each test asserts that they fired."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from gala_worker.algorithms.hub.framing import WIRE
from gala_worker.algorithms.hub.messages import HubChunk, HubHeader, HubHello, HubWelcome, Kind, Taken, Want
from gala_worker.algorithms.hub.pieces import split
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.messages import CHUNK_BYTES, Reason, Refusal
from hub_star import Star, take
from waiting import PATIENCE_SECONDS, eventually

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
        call = channel.stream_stream(f"/{WIRE.service}/{WIRE.stream}", None, None)(
            iter(messages), timeout=PATIENCE_SECONDS
        )
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
def test_a_hello_that_is_not_acceptable_is_refused_with_its_reason(hub_star, changes, reason):
    made = hub_star()
    made.plan = made.make_plan(2, epoch=3)
    server = made.hub()
    assert say(made, hello(made, **changes)) == [Refusal(reason, reason.text)]
    assert server.stats().strangers == {reason.name: 1}
    assert server.stats().connected == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"epoch": 0}, Reason.STALE_EPOCH), ({}, Reason.NOT_MY_PEER), ({"run_uid": "x"}, Reason.WRONG_RUN)],
    ids=["epoch", "rank", "run"],
)
def test_a_stranger_that_claims_many_ranks_is_named_once_and_as_a_stranger(hub_star, changes, reason, caplog):
    made = hub_star()
    made.plan = made.make_plan(2, epoch=3)
    server = made.hub()
    for rank in range(2, 8):
        assert say(made, hello(made, rank=rank, **changes)) == [Refusal(reason, reason.text)]
    assert server.stats().strangers == {reason.name: 6}
    assert [message for message in caplog.messages if "refusing" in message] == [
        f"refusing a stranger: {reason.text} (rank 2 says hello)"
    ]


def test_an_actor_that_is_refused_is_named(hub_star, caplog):
    made = hub_star()
    made.plan = made.make_plan(2, epoch=3)
    made.hub()
    assert say(made, hello(made, epoch=0)) == [Refusal(Reason.STALE_EPOCH, Reason.STALE_EPOCH.text)]
    assert any(message.startswith("refusing rank 1: ") for message in caplog.messages)


def test_what_a_hello_must_not_be_followed_by_ends_the_stream_and_nothing_else(hub_star):
    made = hub_star(size=2 * CHUNK_BYTES)
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


def test_a_frame_larger_than_any_that_is_proper_is_not_read(hub_star):
    made = hub_star(size=CHUNK_BYTES)
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
def test_after_an_actor_s_fault_its_contribution_is_sent_again_and_arrives_once(
    hub_star, loop_thread, kind, act, reason
):
    made, fault = hub_star(), Fault(kind, act)
    server = made.hub()
    client = made.actor(1, transport=fault.transport(loop_thread))
    assert made.push(client, 1)
    assert made.push(client, 2)
    assert [take(server).steps, take(server).steps] == [1, 2]
    assert server.take(0.05) is None
    assert fault.fired == 1
    assert server.stats().strangers == {reason: 1}
    assert client.stats().strangers == {reason: 1}


def test_a_contribution_that_is_not_finite_is_refused_alone_and_counted_at_both_ends(hub_star, loop_thread):
    made, fault = hub_star(), Fault(HubChunk, not_a_number)
    server = made.hub(inspect=lambda payload: Refusal(Reason.NOT_FINITE) if b"\xc0\x7f" in bytes(payload) else None)
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
def test_after_a_fault_of_the_hub_the_actor_still_gets_its_parameters(hub_star, loop_thread, kind, act, reason):
    made, fault = hub_star(), Fault(kind, act)
    server = made.hub(transport=fault.transport(loop_thread))
    client = made.actor(1)
    eventually(lambda: client.stats().strangers == {reason: 1})
    assert fault.fired == 1
    deadline = time.monotonic() + PATIENCE_SECONDS
    parameters, version = None, 1
    while parameters is None and time.monotonic() < deadline:
        version += 1
        made.publish(server, version)
        parameters = client.latest(0.2)
    assert parameters is not None
    assert torch.isfinite(parameters.vector.float()).all()


def test_a_credit_for_what_was_never_sent_ends_the_stream(hub_star, loop_thread):
    made = hub_star()
    fault = Fault(Taken, lambda frame: WIRE.encode(Taken(99)))
    server = made.hub(transport=fault.transport(loop_thread))
    client = made.actor(1)
    for number in (1, 2, 3, 4):
        assert made.push(client, number)
        assert take(server).steps == number
    assert fault.fired == 1
    assert client.stats().strangers == {"MALFORMED": 1}


def test_an_actor_that_hangs_without_closing_is_left_and_the_others_go_on(hub_star):
    made = hub_star(learners=3)
    server = made.hub()
    release = threading.Event()

    def silent():
        yield hello(made, rank=2)
        yield contribution(made, 1)[0]
        release.wait(PATIENCE_SECONDS)

    with grpc.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        call = channel.stream_stream(f"/{WIRE.service}/{WIRE.stream}", None, None)(silent(), timeout=PATIENCE_SECONDS)
        eventually(lambda: server.stats().connected == (2,))
        client = made.actor(1)
        eventually(lambda: server.stats().connected == (1,))  # it is closed after the timeout
        release.set()
        call.cancel()
    assert made.push(client, 7)
    assert {take(server).rank, take(server).rank} == {1, 2}  # what it had sent is used
    assert ("peer-gone", "silent") in [(event["event"], event.get("reason")) for event in server.events()]


def test_a_hub_that_hangs_without_closing_is_left_and_dialled_again(hub_star):
    made = hub_star()
    release = threading.Event()

    def silent(requests, context):
        next(requests)
        yield WIRE.encode(HubWelcome(made.plan.run_uid, 1, 0))
        release.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(4) as pool:
        hanging = grpc.server(pool, options=[("grpc.so_reuseport", 1)])
        handlers = {WIRE.stream: grpc.stream_stream_rpc_method_handler(silent)}
        hanging.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(WIRE.service, handlers),))
        hanging.add_insecure_port(f"127.0.0.1:{made.port}")
        hanging.start()
        client = made.actor(1)
        eventually(lambda: client.connected)
        assert made.push(client, 1)
        eventually(lambda: any(event.get("reason") == "silent" for event in client.events()))
        hanging.stop(0)
        release.set()
        made.hub(version=4)
        assert client.latest(PATIENCE_SECONDS).version == 4
    assert client.stats().lost == 1


def test_silence_of_a_network_that_is_only_slow_is_no_reason_to_leave(hub_star, loop_thread):
    """A hub that says everything ten times as slowly as it could keeps its actors."""
    made = hub_star()
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
