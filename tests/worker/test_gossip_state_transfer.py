"""What those can hold who ask for a learner's state, and those who only seem to."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import grpc
import pytest
import torch

from gala.errors import SilentError
from gala_worker.gossip import framing, state_transfer
from gala_worker.gossip.grpc_transport import SERVICE
from gala_worker.gossip.messages import Reason, StateRequest
from gala_worker.gossip.state_transfer import MAX_STATE_STREAMS, StateGiver
from grpc_ring import PATIENCE

REQUEST = framing.encode_request(StateRequest("a run", 1, "schema", 1))
SHORT = 0.05


class Asker:
    """A call of one who asks, seen from the handler: what it sends and takes, in this order."""

    def __init__(self, *, sends: bytes | None = REQUEST, takes: int = 100) -> None:
        """`sends`: None = nothing, ever. `takes`: answers, before it reads no more."""
        self.sends, self.takes = sends, takes
        self.heard: list[object] = []
        self.code: grpc.StatusCode | None = None

    async def read(self):
        if self.sends is None:
            await asyncio.Event().wait()
        return self.sends

    async def write(self, data: bytes) -> None:
        if len(self.heard) >= self.takes:
            await asyncio.Event().wait()
        self.heard.append(framing.decode_state(data))

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code


class Endpoint:
    """Answers as it is told; None = never."""

    def __init__(self, state: bytes | Reason | None) -> None:
        self.state = state

    def state_requested(self, request, answer) -> None:
        if self.state is not None:
            answer(self.state)


def reason(asker: Asker) -> Reason:
    (refusal,) = asker.heard
    return refusal.reason


def serve(giver: StateGiver, *askers: Asker) -> None:
    """All at once, until each is served, refused or given up; nobody is held for ever."""

    async def all_of_them() -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(giver.give(None, asker) for asker in askers))

    asyncio.run(all_of_them())


@pytest.fixture
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(state_transfer, "HELLO_SECONDS", SHORT)
    monkeypatch.setattr(state_transfer, "STATE_SECONDS", SHORT)


def test_who_never_says_what_it_asks_for_is_turned_away_in_time(ring, monkeypatch):
    monkeypatch.setattr(state_transfer, "HELLO_SECONDS", SHORT)
    made = ring(2)
    made.start(0)
    end = threading.Event()

    def nothing():
        end.wait()
        yield from ()

    with grpc.insecure_channel(made.address(0)) as channel, contextlib.ExitStack() as stack:
        stack.callback(end.set)
        fetch = channel.stream_stream(f"/{SERVICE}/FetchState", None, None)
        calls = [fetch(nothing(), timeout=PATIENCE) for _ in range(MAX_STATE_STREAMS + 2)]
        for call in calls:
            assert [framing.decode_state(answer).reason for answer in call] == [Reason.MALFORMED]


def test_a_joiner_is_served_while_others_do_not_say_what_they_ask_for(in_a_hurry):
    joiner = Asker()
    serve(StateGiver(Endpoint(b"state")), *(Asker(sends=None) for _ in range(2 * MAX_STATE_STREAMS)), joiner)
    assert joiner.heard == [(5, 0, b"state")]


def test_a_crowd_that_does_not_say_what_it_asks_for_is_turned_away_at_once(in_a_hurry, monkeypatch):
    monkeypatch.setattr(state_transfer, "MAX_STRANGERS", 2)
    crowd = [Asker(sends=None) for _ in range(5)]
    giver = StateGiver(Endpoint(b"state"))
    serve(giver, *crowd)
    assert [reason(asker) for asker in crowd] == [*[Reason.MALFORMED] * 2, *[Reason.TOO_BUSY] * 3]
    late = Asker()
    serve(giver, late)
    assert late.heard == [(5, 0, b"state")]


def test_who_ends_its_side_without_a_request_or_says_nonsense_is_refused():
    askers = [Asker(sends=grpc.aio.EOF), Asker(sends=b"\xff\xff")]
    serve(StateGiver(Endpoint(b"state")), *askers)
    assert [reason(asker) for asker in askers] == [Reason.MALFORMED] * 2


def test_more_joiners_than_are_served_at_once_are_told_to_come_back(in_a_hurry):
    joiners = [Asker() for _ in range(MAX_STATE_STREAMS + 1)]
    serve(StateGiver(Endpoint(None)), *joiners)
    assert reason(joiners.pop()) is Reason.TOO_BUSY
    assert {joiner.code for joiner in joiners} == {grpc.StatusCode.DEADLINE_EXCEEDED}  # the learner never answered


@pytest.mark.parametrize(
    ("state", "sends", "takes"),
    [(b"x" * (3 << 20), REQUEST, 1), (Reason.WRONG_RUN, REQUEST, 0), (b"", b"\xff\xff", 0)],
    ids=["state", "refusal", "complaint"],
)
def test_who_does_not_take_its_answer_is_given_up_and_keeps_nobody_from_being_served(in_a_hurry, state, sends, takes):
    endpoint = Endpoint(state)
    giver = StateGiver(endpoint)
    askers = [Asker(sends=sends, takes=takes) for _ in range(MAX_STATE_STREAMS)]
    serve(giver, *askers)
    assert {asker.code for asker in askers} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    endpoint.state = b"state"
    joiner = Asker()
    serve(giver, joiner)
    assert joiner.heard == [(5, 0, b"state")]


def test_a_learner_that_does_not_answer_in_time_may_be_asked_again(ring):
    made = ring(2)
    peer = made.start(0)
    peer.offer(torch.zeros(8), version=1, steps=1)  # it has something to give, and never does
    joiner = made.start(1)
    request = StateRequest(made.plan.run_uid, 1, "schema", 1)
    with pytest.raises(SilentError):
        joiner._transport.fetch_state(made.address(0), request, first_seconds=SHORT, seconds=PATIENCE, max_bytes=1)
