"""What an edge of the gossip ring costs: two processes, one edge, models of several sizes, beside a bare TCP socket.

    python benchmarks/gossip.py [--megabytes 3.5 35 350] [--seconds 5] [--precision float32] [--json]

Per size: throughput with the sender offering as fast as it can, CPU time per message of either process, the time from
an offer to the message being ready at the other side (p50, p99; one message at a time), and the memory that each
process takes for gossip beside the model. "lent" is gossip between processes of one machine, whose parameters stay
where they are; "sent" is gossip as between machines, in chunks. The bare socket sends the same bytes with sendall and
recv_into.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from gala_worker.device import prepare
from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.peer import GossipPeer

PATIENCE_SECONDS = 60.0


@dataclass
class Side:
    """What one process measured."""

    messages: int
    seconds: float
    cpu_seconds: float
    latencies: list[float]
    megabytes_beside_model: float


@dataclass
class Result:
    """One row of the table."""

    what: str
    megabytes: float
    megabytes_per_second: float
    sender_cpu_ms: float
    receiver_cpu_ms: float
    p50_ms: float
    p99_ms: float
    sender_memory: float
    """Peak memory beside what the process took before, in models; the model itself is one of them."""
    receiver_memory: float


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[3.5, 35.0, 350.0])
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    for megabytes in arguments.megabytes:
        num_elements = int(megabytes * 1e6 / 4)
        results.append(run("lent", lent_side, num_elements, arguments.seconds, arguments.precision))
        results.append(run("sent", sent_side, num_elements, arguments.seconds, arguments.precision))
        results.append(run("bare TCP", socket_side, num_elements, arguments.seconds, arguments.precision))
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    print(f"{'':9} {'MB':>6} {'MB/s':>7} {'CPU ms/message':>17} {'latency ms':>15} {'memory / model':>16}")
    print(f"{'':9} {'':>6} {'':>7} {'send':>8} {'receive':>8} {'p50':>7} {'p99':>7} {'send':>8} {'receive':>7}")
    for r in results:
        cells = (r.megabytes, r.megabytes_per_second, r.sender_cpu_ms, r.receiver_cpu_ms, r.p50_ms, r.p99_ms)
        line = "{:6.1f} {:7.0f} {:8.2f} {:8.2f} {:7.2f} {:7.2f}".format(*cells)
        print(f"{r.what:9} {line} {r.sender_memory:8.2f} {r.receiver_memory:7.2f}")


def run(what: str, side: Callable[..., None], num_elements: int, seconds: float, precision: str) -> Result:
    """Both sides in processes of their own."""
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(_reserved_port()) for _ in range(2)]
        ends, processes = [], []
        near, far = context.Pipe()
        for rank, pipe in enumerate((near, far)):
            end, child_end = context.Pipe()
            process = context.Process(
                target=side, args=(rank, ports, num_elements, seconds, precision, pipe, child_end), daemon=True
            )
            process.start()
            ends.append(end)
            processes.append(process)
        sides: list[Side] = []
        for end, process in zip(ends, processes, strict=True):
            while not end.poll(0.1):
                if not process.is_alive():
                    raise RuntimeError(f"{what}: a side ended with {process.exitcode}")
            sides.append(end.recv())
        for process in processes:
            process.join(PATIENCE_SECONDS)
    sender, receiver = sides
    size = num_elements * (4 if precision == "float32" else 2) / 1e6
    model = num_elements * 4 / 1e6
    latencies = sorted(receiver.latencies)
    return Result(
        what,
        model,
        receiver.messages * size / receiver.seconds,
        sender.cpu_seconds / max(1, receiver.messages) * 1e3,
        receiver.cpu_seconds / max(1, receiver.messages) * 1e3,
        latencies[len(latencies) // 2] * 1e3,
        latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3,
        sender.megabytes_beside_model / model + 1,
        receiver.megabytes_beside_model / model + 1,
    )


class ManyMachines(GrpcTransport):
    """Takes every address for another machine's."""

    def is_this_machine(self, address: str) -> bool:
        """Never."""
        return False


def lent_side(*arguments: Any) -> None:
    """Gossip on one machine."""
    gossip_side(GrpcTransport, *arguments)


def sent_side(*arguments: Any) -> None:
    """Gossip between machines, on one."""
    gossip_side(ManyMachines, *arguments)


def gossip_side(
    transport: type[GrpcTransport],
    rank: int,
    ports: list[int],
    num_elements: int,
    seconds: float,
    precision: str,
    pipe: Connection,
    result: Connection,
) -> None:
    """Rank 0 offers, rank 1 mixes; each is the other's only neighbour."""
    prepare(torch.device("cpu"))
    torch.set_num_threads(1)
    thread = LoopThread()
    plan = small_plan(
        learners=2, gossip={"precision": precision}, address=lambda peer: f"127.0.0.1:{ports[peer]}", uid="benchmark"
    )
    peer = GossipPeer(rank, plan, "schema", num_elements, transport=transport(thread), incarnation=1)
    vector = torch.randn(num_elements)
    base = _peak_megabytes()
    peer.start()
    pipe.send("listening")
    pipe.recv()
    peer.join()
    if not peer.wait(lambda stats: bool(stats.in_peers and stats.out_peers), PATIENCE_SECONDS):
        raise RuntimeError("no edge")
    latencies: list[float] = []
    version = 0

    def has_received(count: int) -> bool:
        return peer.wait(lambda stats: sum(e.messages for e in stats.edges if e.direction == "in") > count, 10.0)

    # Latency: one message at a time; the receiver asks for each.
    rounds = max(5, min(300, int(seconds * 1e9 / (num_elements * 4) / 10)))
    for _ in range(rounds):
        if rank == 0:
            pipe.recv()
            version += 1
            pipe.send(time.monotonic())
            peer.offer(vector, version=version, steps=version)
        else:
            before = sum(e.messages for e in peer.stats().edges if e.direction == "in")
            pipe.send("next")
            offered = pipe.recv()
            has_received(before)
            latencies.append(time.monotonic() - offered)
            peer.mix(vector)
    # Throughput: the sender is always ready, the receiver takes what comes.
    pipe.send("ready")
    pipe.recv()
    cpu, began, taken = time.process_time(), time.monotonic(), 0
    outbox = peer._hood.out_peers.edges[1 - rank].outbox
    while time.monotonic() - began < seconds:
        if rank == 0:
            version += 1
            peer.offer(vector, version=version, steps=version)
            peer._transport.wait(peer._condition, lambda: not outbox.is_waiting, 1.0)
        elif peer.wait(lambda stats: peer._rule.is_ready(), 1.0):
            taken += peer.mix(vector) is not None
    elapsed, cpu = time.monotonic() - began, time.process_time() - cpu
    result.send(Side(taken, elapsed, cpu, latencies, _peak_megabytes() - base))
    pipe.send("done")
    pipe.recv()
    peer.close(farewell=False)
    thread.stop()


def socket_side(
    rank: int, ports: list[int], num_elements: int, seconds: float, precision: str, pipe: Connection, result: Connection
) -> None:
    """The same bytes without anything around them."""
    torch.set_num_threads(1)
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    vector = torch.randn(num_elements).to(kind)
    view = memoryview(vector.view(torch.uint8).numpy())  # type: ignore[arg-type]
    base = _peak_megabytes()
    if rank == 1:
        with socket.create_server(("127.0.0.1", ports[1]), reuse_port=True) as server:
            pipe.send("listening")
            connection, _ = server.accept()
    else:
        pipe.recv()
        connection = socket.create_connection(("127.0.0.1", ports[1]))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive() -> bool:
        position = 0
        while position < len(view):
            count = connection.recv_into(view[position:])
            if count == 0:
                return False
            position += count
        return True

    latencies: list[float] = []
    rounds = max(5, min(300, int(seconds * 1e9 / (num_elements * 4) / 10)))
    for _ in range(rounds):
        if rank == 0:
            pipe.recv()
            pipe.send(time.monotonic())
            connection.sendall(view)
        else:
            pipe.send("next")
            offered = pipe.recv()
            receive()
            latencies.append(time.monotonic() - offered)
    cpu, began, messages = time.process_time(), time.monotonic(), 0
    if rank == 0:
        while time.monotonic() - began < seconds:
            connection.sendall(view)
        connection.close()
    else:
        while receive():
            messages += 1
    elapsed, cpu = time.monotonic() - began, time.process_time() - cpu
    result.send(Side(messages, elapsed, cpu, latencies, _peak_megabytes() - base))
    connection.close()


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
