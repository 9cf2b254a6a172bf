"""The star over real gRPC on the loopback interface: order, credit, latest wins, comings and goings."""

from __future__ import annotations

import socket
import threading

import pytest
import torch

from gala.errors import GossipError
from gala_worker.algorithms.hub import HubServer
from gala_worker.algorithms.hub.messages import MAX_UNPROCESSED
from gala_worker.gossip.messages import CHUNK_BYTES
from hub_star import SIZE, take
from waiting import PATIENCE_SECONDS, eventually

# ------------------------------------------------------------------ up


def test_contributions_arrive_whole_in_order_and_with_what_was_said_of_them(hub_star):
    made = hub_star(size=3 * CHUNK_BYTES + 8)
    server, client = made.hub(), made.actor(1)
    for number in range(1, 6):
        assert made.push(client, number, version=number + 40)
        contribution = take(server)
        assert bytes(contribution.payload) == made.payload(number)
        assert (contribution.rank, contribution.steps, contribution.version) == (1, number, number + 40)
        contribution.release()
    assert server.take(0.0) is None


def test_pieces_of_a_payload_are_joined_and_another_length_is_a_mistake(hub_star):
    made = hub_star()
    server, client = made.hub(), made.actor(1)
    assert client.push(
        [b"a" * 8, bytearray(b"b" * 8), memoryview(b"c" * 8)], version=1, steps=1, timeout=PATIENCE_SECONDS
    )
    assert bytes(take(server).payload) == b"a" * 8 + b"b" * 8 + b"c" * 8
    with pytest.raises(ValueError, match="23 bytes, not 24"):
        client.push([b"a" * 23], version=1, steps=1, timeout=PATIENCE_SECONDS)


def test_a_hub_that_takes_nothing_stops_its_actors_and_memory_stays_bounded(hub_star):
    made = hub_star(learners=4)
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


def test_a_pusher_gives_up_when_it_is_told_to(hub_star):
    made = hub_star()
    client = made.actor(1)  # nobody answers
    assert made.push(client, 1)
    assert made.push(client, 2)
    asked = []
    assert not client.push(
        [made.payload(3)], version=1, steps=3, timeout=PATIENCE_SECONDS, give_up=lambda: asked.append(1) or True
    )
    assert asked
    assert not client.connected


def test_a_slow_actor_is_neither_starved_by_a_fast_one_nor_waited_for(hub_star):
    """One actor that is ten times as slow as the other."""
    made = hub_star(learners=3)
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
def test_the_first_parameters_come_unasked_with_version_and_progress(hub_star, precision):
    made = hub_star(num_elements=CHUNK_BYTES // 2 + 3, precision=precision)
    made.hub(version=7)
    parameters = made.actor(1).latest(PATIENCE_SECONDS)
    assert parameters is not None
    assert parameters.vector.dtype == getattr(torch, precision)
    assert torch.equal(parameters.vector.float(), torch.full((made.num_elements,), 7.0))
    assert (parameters.version, parameters.progress, parameters.finished) == (7, {1: 70}, False)


def test_the_latest_parameters_win_and_each_is_taken_once(hub_star):
    made = hub_star()
    server, client = made.hub(), made.actor(1)
    assert client.latest(PATIENCE_SECONDS).version == 1
    for version in range(2, 50):
        made.publish(server, version)
    client.request()
    eventually(lambda: client.stats().parameters == 2)
    assert client.latest().version == 49
    assert client.latest() is None
    assert server.stats().actors[0].parameters == 2


def test_an_actor_that_asks_for_nothing_gets_nothing_but_the_end(hub_star):
    made = hub_star()
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


def test_who_waits_for_parameters_gets_the_next_that_are_published(hub_star):
    made = hub_star()
    server, client = made.hub(version=None), made.actor(1)
    assert client.latest(0.05) is None
    eventually(lambda: client.connected)
    threading.Timer(0.05, made.publish, (server, 3)).start()
    assert client.latest(PATIENCE_SECONDS).version == 3


def test_parameters_in_hand_do_not_change_while_newer_ones_arrive(hub_star):
    made = hub_star()
    server, client = made.hub(), made.actor(1)
    held = client.latest(PATIENCE_SECONDS)
    for version in range(2, 8):
        made.publish(server, version)
        before = client.stats().parameters
        client.request()
        eventually(lambda before=before: client.stats().parameters > before)
        assert torch.equal(held.vector, torch.ones(made.num_elements))
    assert client.stats().replaced == 5


def test_memory_for_parameters_is_bounded_however_often_they_are_published(hub_star):
    made = hub_star(learners=3)
    server = made.hub()
    clients = [made.actor(1), made.actor(2)]
    for version in range(2, 200):
        made.publish(server, version)
        clients[version % 2].latest()
    assert server._reception.press.allocated <= len(clients) + 2
    assert all(len(client._attendance._free_buffers) <= 2 for client in clients)


# ------------------------------------------------------------------ comings and goings


def test_the_last_parameters_reach_everybody_before_the_hub_is_gone(hub_star):
    made = hub_star(learners=4, num_elements=3 * CHUNK_BYTES // 4)
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


def test_an_actor_that_has_been_away_hears_the_end_from_a_hub_that_waits_for_it(hub_star):
    made = hub_star(peerTimeoutSeconds=30)
    server, client = made.hub(), made.actor(1, incarnation=50)
    eventually(lambda: server.stats().connected == (1,))
    client._transport.close(0.0)  # without a farewell
    eventually(lambda: server.stats().connected == ())
    made.publish(server, 2, finished=True)
    closing = threading.Thread(target=server.close)
    closing.start()
    again = made.actor(1, incarnation=51)
    assert again.latest(PATIENCE_SECONDS).finished
    closing.join()


def test_a_hub_that_comes_back_is_adopted_also_backwards_and_old_contributions_are_given_up(hub_star):
    made = hub_star()
    server, client = made.hub(version=100), made.actor(1)
    first = client.latest(PATIENCE_SECONDS)
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
    second = client.latest(PATIENCE_SECONDS)
    assert (second.version, second.lineage != first.lineage) == (60, True)
    assert client.progress() == {1: 600}
    assert made.push(client, 4, version=60)
    assert take(back).steps == 4
    assert back.take(0.05) is None
    assert [event["event"] for event in client.events()] == ["peer-gone", "peer-back"]


def test_a_hub_that_starts_after_its_actors_has_not_been_gone(hub_star):
    made = hub_star()
    client = made.actor(1)
    eventually(lambda: client._attendance._backoff._failures >= 2)
    made.hub()
    eventually(lambda: client.connected)
    assert client.events() == []


def test_after_a_broken_stream_every_contribution_arrives_once_and_in_order(hub_star):
    made = hub_star()
    server, client = made.hub(), made.actor(1)
    client.latest(PATIENCE_SECONDS)
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


def test_an_actor_that_dies_and_returns_goes_on_and_what_it_left_is_used(hub_star):
    made = hub_star(peerTimeoutSeconds=30)
    server, client = made.hub(), made.actor(1, incarnation=7)
    assert made.push(client, 1)
    assert made.push(client, 2)
    eventually(lambda: server.stats().actors and server.stats().actors[0].waiting == 2)
    client._transport.close(0.0)
    eventually(lambda: server.stats().connected == ())
    again = made.actor(1, incarnation=8)
    assert again.latest(PATIENCE_SECONDS) is not None
    assert take(server).incarnation == 7
    assert made.push(again, 3)
    eventually(lambda: server.stats().actors[0].waiting == 1)
    assert [(take(server).incarnation) for _ in range(2)] == [7, 8]
    kinds = [(event["event"], event["peer"]) for event in server.events()]
    assert kinds == [("peer-gone", 1), ("peer-back", 1)]


def test_the_newest_process_of_a_rank_wins_and_an_older_one_is_told(hub_star):
    made = hub_star()
    server, young = made.hub(), made.actor(1, incarnation=20)
    eventually(lambda: young.connected)
    old = made.actor(1, incarnation=10)
    eventually(lambda: old.stats().strangers.get("STALE_INCARNATION", 0) > 0)
    assert young.connected
    younger = made.actor(1, incarnation=30)
    eventually(lambda: younger.connected)
    assert made.push(younger, 5)
    assert take(server).incarnation == 30


def test_a_newer_plan_brings_actors_and_takes_them_away(hub_star):
    made = hub_star(learners=3)
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


def test_an_actor_that_is_taken_out_and_called_back_sends_nothing_twice(hub_star):
    made = hub_star(learners=3)
    server, client = made.hub(), made.actor(2)
    assert made.push(client, 1)
    assert made.push(client, 2)
    eventually(lambda: [actor.waiting for actor in server.stats().actors] == [2])
    server.set_plan(made.make_plan(2, epoch=1))  # of which the actor does not hear
    eventually(lambda: server.stats().actors == ())
    assert [take(server).steps, take(server).steps] == [1, 2]
    made.plan = made.make_plan(3, epoch=2)
    server.set_plan(made.plan)
    client.set_plan(made.plan)
    eventually(lambda: server.stats().connected == (2,))
    assert made.push(client, 3)
    assert take(server).steps == 3


def test_actors_follow_a_hub_that_has_moved(hub_star, free_port):
    made = hub_star()
    server, client = made.hub(), made.actor(1)
    eventually(lambda: client.connected)
    made.plan = made.make_plan(2, epoch=1, port=free_port)
    moved = made.hub(version=5)
    client.set_plan(made.plan)
    eventually(lambda: moved.stats().connected == (1,))
    eventually(lambda: server.stats().connected == ())
    assert client.latest(PATIENCE_SECONDS).version in (1, 5)


def test_a_port_of_the_hub_that_somebody_else_uses_is_a_clear_error(hub_star, loop_thread):
    made = hub_star()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        plan = made.make_plan(2, port=taken.getsockname()[1])
        server = HubServer(plan, made.identity(0, None), loop=loop_thread, contribution_bytes=SIZE)
        with pytest.raises(GossipError, match="cannot listen on"):
            server.start()
        server.close()
