"""Memory that a neighbour on the same machine may read: who sees it, who does not, and how long it is there."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import torch

from gala.errors import GossipError
from gala_worker.gossip.buffers import Buffers
from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.mailbox import OwnMailbox, find_mailbox
from gala_worker.gossip.memory import MemoryNetwork
from gala_worker.gossip.messages import Hello, Precision, SharedMemory
from gala_worker.gossip.shared_memory import MAX_VIEWS, Segment, Viewer

HERE = os.getpid()


@pytest.fixture
def viewer():
    return Viewer(HERE)


def view(viewer: Viewer, segment: Segment, num_bytes: int = 16) -> torch.Tensor:
    return viewer.view(segment.descriptor, segment.serial, num_bytes, torch.float32)


def hello(memory: SharedMemory | None) -> Hello:
    return Hello("a run", 0, 1, 1, 0, "schema", 4, Precision.FLOAT32, memory)


# ------------------------------------------------------------------ what is seen


def test_what_one_process_writes_another_one_reads_without_a_copy():
    segment = Segment(16)
    segment.tensor(torch.float32).copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    program = (
        "import sys, torch\n"
        "from gala_worker.gossip.shared_memory import Viewer\n"
        f"seen = Viewer({HERE}).view({segment.descriptor}, {segment.serial}, 16, torch.float32)\n"
        "print(seen.tolist(), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(seen.tolist(), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "[1.0, 2.0, 3.0, 4.0]\n"
        segment.tensor(torch.float32)[0] = 9.0
        assert other.communicate("\n")[0] == "[9.0, 2.0, 3.0, 4.0]\n"


def test_memory_can_be_read_after_its_owner_has_let_it_go(viewer):
    segment = Segment(16)
    segment.tensor(torch.float32).fill_(7.0)
    seen, descriptor = view(viewer, segment), segment.descriptor
    del segment
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert seen.tolist() == [7.0] * 4


def test_a_descriptor_that_is_used_again_is_not_taken_for_the_memory_before(viewer):
    first = Segment(16)
    first.tensor(torch.float32).fill_(1.0)
    assert view(viewer, first).tolist() == [1.0] * 4
    assert view(viewer, first) is view(viewer, first)  # mapped once
    descriptor = first.descriptor
    del first
    gc.collect()
    second = Segment(16)
    second.tensor(torch.float32).fill_(2.0)
    assert second.descriptor == descriptor
    assert view(viewer, second).tolist() == [2.0] * 4


def test_only_so_much_of_a_neighbour_stays_mapped(viewer):
    for _ in range(3 * MAX_VIEWS):
        view(viewer, Segment(16))
    assert len(viewer._views) == MAX_VIEWS


# ------------------------------------------------------------------ what is not


def unsealed(tmp_path) -> int:
    descriptor = os.memfd_create("gala-gossip")
    os.ftruncate(descriptor, 16)
    return descriptor


def ordinary_file(tmp_path) -> int:
    path = tmp_path / "file"
    path.write_bytes(bytes(16))
    return os.open(path, os.O_RDWR)


def pipe(tmp_path) -> int:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return os.open(path, os.O_RDWR)  # to open it again for reading only would wait for a writer


def foreign_memory(tmp_path) -> int:
    descriptor = os.memfd_create("another program's")
    os.ftruncate(descriptor, 16)
    return descriptor


def closed(tmp_path) -> int:
    descriptor = os.memfd_create("gala-gossip")
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("make", [unsealed, ordinary_file, pipe, foreign_memory, closed])
def test_nothing_is_mapped_but_the_sealed_memory_of_a_learner(viewer, tmp_path, make):
    descriptor = make(tmp_path)
    try:
        with pytest.raises(GossipError, match=f"/proc/{HERE}/fd/{descriptor}"):
            viewer.view(descriptor, 1000, 16, torch.float32)
        with pytest.raises(GossipError):
            find_mailbox(SharedMemory(HERE, descriptor, bytes(16)))
    finally:
        if make is not closed:
            os.close(descriptor)


def test_memory_of_another_size_is_not_mapped(viewer):
    segment = Segment(16)
    for num_bytes in (0, 8, 32):
        with pytest.raises(GossipError, match="not"):
            view(viewer, segment, num_bytes)


def test_memory_cannot_be_taken_away_from_under_its_reader():
    segment = Segment(16)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.descriptor, 0)


def test_a_neighbour_whose_token_is_not_there_is_on_another_machine(caplog):
    mailbox, buffers = OwnMailbox(), Buffers(4, Precision.FLOAT32, shared=True)
    memory = mailbox.address
    assert buffers.look_into(hello(memory)) is not None
    caplog.set_level("INFO")
    for elsewhere in (
        SharedMemory(memory.process, memory.descriptor, bytes(16)),
        SharedMemory(memory.process, memory.descriptor, b""),
        SharedMemory(2**22 + 1, memory.descriptor, memory.token),  # beyond the largest process number of Linux
    ):
        caplog.clear()
        assert buffers.look_into(hello(elsewhere)) is None
        assert "rank 0 sends its parameters in chunks" in caplog.text
    assert buffers.look_into(hello(None)) is None


def test_nothing_is_shared_with_other_machines_or_from_page_locked_memory():
    assert Buffers(4, Precision.FLOAT32, shared=True).mailbox() is not None
    assert Buffers(4, Precision.FLOAT32).mailbox() is None
    assert Buffers(4, Precision.FLOAT32).pool.acquire().segment is None
    assert Buffers(4, Precision.FLOAT32, shared=True, pinned=True).mailbox() is None


def test_where_the_system_has_no_such_memory_parameters_travel_in_chunks(monkeypatch):
    with_memory = Buffers(4, Precision.FLOAT32, shared=True)

    def refuse(*_):
        raise OSError("none")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert Buffers(4, Precision.FLOAT32, shared=True).mailbox() is None
    snapshot = with_memory.pool.acquire()  # it had some, and has no more
    assert snapshot.segment is None
    assert snapshot.buffer.shape == (4,)


# ------------------------------------------------------------------ loans on an edge


def lending_pair(monkeypatch, **gossip) -> Fleet:
    monkeypatch.setattr(MemoryNetwork, "shares_memory", True)
    fleet = Fleet(small_plan(learners=2, gossip=gossip), num_elements=4)
    fleet.connect()
    return fleet


def test_a_lent_message_is_not_written_to_before_it_is_read(monkeypatch):
    fleet = lending_pair(monkeypatch)
    lender, reader = fleet.learners[0], fleet.learners[1]
    lender.vector.fill_(1.0)
    lender.offer()
    fleet.network.advance(0.1)
    edge = reader.peer._hood.in_peers.edges[0]
    reader.peer._look()
    received = edge.inbox.take()
    assert received is not None
    assert received.lent
    for number in range(2, 6):
        lender.vector.fill_(float(number))
        lender.offer()
        fleet.network.advance(0.1)
        assert received.buffer.tolist() == [1.0] * 4
    reader.peer._look()
    assert not edge.inbox.is_fresh  # the next one comes when this one has been read
    edge.inbox.give_back(received)
    fleet.network.advance(0.1)
    again = edge.inbox.take()
    assert again is not None
    assert (again.version, again.buffer.tolist()) == (5, [5.0] * 4)
    assert edge.inbox.allocated == 0  # the receiver needs no buffers of its own


def test_a_message_that_was_lent_on_a_stream_that_broke_is_never_written_to_again(monkeypatch):
    fleet = lending_pair(monkeypatch)
    lender, reader = fleet.learners[0], fleet.learners[1]
    lender.vector.fill_(1.0)
    lender.offer()
    fleet.network.advance(0.1)
    reader.peer._look()
    received = reader.peer._hood.in_peers.edges[0].inbox.take()  # the learner is mixing it while
    assert received is not None
    assert fleet.network.sever(0, 1) > 0
    assert fleet.network.run_until(fleet.is_connected, 10.0)
    for number in range(2, 20):
        lender.vector.fill_(float(number))
        lender.offer()
        fleet.network.advance(0.1)
        reader.mix()
    assert received.buffer.tolist() == [1.0] * 4
    assert len(reader.mixings) > 5
    assert lender.peer._pool.allocated <= 3
