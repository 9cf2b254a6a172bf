"""Gossip over real gRPC on the loopback interface: neighbours, faults, strangers, TLS."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gala import topology
from gala.errors import GossipError
from gala_worker import address
from gala_worker.gossip import framing
from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.grpc_transport import SERVICE, GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.messages import CHUNK_BYTES, Chunk, Header, Hello, Reason, Refusal, Welcome
from gala_worker.gossip.peer import GossipPeer
from ports import hold_port

TIMEOUT = 1.0
PATIENCE = 20.0
"""The longest that a test waits for a condition on a busy machine."""
GOSSIP = {"peerTimeoutSeconds": TIMEOUT}


class ManyMachines(GrpcTransport):
    """A transport that takes every address for another machine's: parameters go over the network."""

    def is_this_machine(self, address: str) -> bool:
        return False


class Ring:
    """Peers of one run in this process, each with a port that is its own for as long as the test takes."""

    def __init__(
        self, thread: LoopThread, learners: int, *, num_elements: int = 8, gossip=None, one_machine=True, **transport
    ):
        self.thread, self.num_elements, self.transport = thread, num_elements, transport
        self.make_transport = GrpcTransport if one_machine else ManyMachines
        self.gossip = {**GOSSIP, **(gossip or {})}
        self.holders = contextlib.ExitStack()
        self.ports = [hold_port(self.holders) for _ in range(learners)]
        self.plan = small_plan(learners=learners, gossip=self.gossip, address=self.address)
        self.peers: dict[int, GossipPeer] = {}
        self.runners: dict[int, Runner] = {}

    def address(self, rank: int) -> str:
        return f"127.0.0.1:{self.ports[rank]}"

    def start(self, rank: int) -> GossipPeer:
        peer = GossipPeer(
            rank,
            self.plan,
            "schema",
            self.num_elements,
            transport=self.make_transport(self.thread, **self.transport),
            incarnation=time.monotonic_ns() // 1000,
        )
        self.peers[rank] = peer
        peer.start()
        return peer

    def connect(self, ranks=None) -> None:
        for rank in self.plan.ranks if ranks is None else ranks:
            self.start(rank).join()
        if ranks is None:
            self.wait(self.is_whole)

    def run(self) -> None:
        for rank, peer in self.peers.items():
            self.runners[rank] = Runner(peer, self.num_elements)

    def is_whole(self) -> bool:
        return all(
            (stats.in_peers, stats.out_peers) == (planned.in_peers, planned.out_peers)
            for planned in self.plan.learners
            if planned.rank in self.peers
            for stats in [self.peers[planned.rank].stats()]
        )

    def lends(self) -> set[bool]:
        """Whether messages are lent, or sent: what is said of all open in-edges."""
        sessions = [edge.session for peer in self.peers.values() for edge in peer._hood.in_edges.values()]
        return {session._viewer is not None for session in sessions if session is not None}

    def wait(self, predicate, seconds: float = PATIENCE) -> None:
        peer = next(iter(self.peers.values()))
        assert peer.wait(lambda stats: predicate(), seconds), self.picture()

    def picture(self):
        return {rank: (peer.stats(), peer.events()) for rank, peer in self.peers.items()}

    def assert_all_mix(self, ranks) -> None:
        before = {rank: self.peers[rank].stats().mixes for rank in ranks}
        self.wait(lambda: all(self.peers[rank].stats().mixes >= before[rank] + 5 for rank in ranks))

    def close(self) -> None:
        for runner in self.runners.values():
            runner.stop()
        for peer in self.peers.values():
            peer.close()
        self.holders.close()


class Runner:
    """A learner thread that makes an update every few milliseconds."""

    def __init__(self, peer: GossipPeer, num_elements: int) -> None:
        self.updates = 0
        self.longest_pause = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(peer, torch.zeros(num_elements)))
        self._thread.start()

    def _run(self, peer: GossipPeer, vector: torch.Tensor) -> None:
        while not self._stopped.wait(0.01):
            began = time.monotonic()
            self.updates += 1
            peer.offer(vector, version=self.updates, steps=self.updates)
            peer.mix(vector)
            peer.answer_state_requests(lambda: b"s" * 3_000_000)
            self.longest_pause = max(self.longest_pause, time.monotonic() - began)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.fixture
def ring(loop_thread, nothing_is_left_on_the_loop):
    with contextlib.ExitStack() as stack:

        def make(learners: int, **kwargs) -> Ring:
            made = Ring(loop_thread, learners, **kwargs)
            stack.callback(made.close)
            return made

        yield make


# ------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("one_machine", [True, False])
def test_synchronous_rounds_over_the_network_equal_the_product_of_the_mixing_matrices(ring, one_machine):
    """Each learner at its own pace: nobody is ahead by more than the bound allows."""
    gossip = {"maxStaleness": 0, "peerTimeoutSeconds": 30}
    made = ring(4, num_elements=300_000, gossip=gossip, one_machine=one_machine)
    made.connect()
    assert made.lends() == {one_machine}
    generator = torch.Generator().manual_seed(0)
    vectors = {rank: torch.randn(300_000, generator=generator) for rank in made.peers}
    matrix = np.array(topology.mixing_matrix(made.plan.spec.topology, 4))
    expected = np.linalg.matrix_power(matrix, 10) @ torch.stack(list(vectors.values())).double().numpy()

    def learner(rank: int) -> None:
        for version in range(1, 11):
            made.peers[rank].offer(vectors[rank], version=version, steps=version)
            made.peers[rank].mix(vectors[rank])

    threads = [threading.Thread(target=learner, args=(rank,)) for rank in made.peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(torch.stack(list(vectors.values())).double().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("one_machine", [True, False])
def test_push_sum_over_the_network_keeps_the_weighted_mean(ring, one_machine):
    """Three threads as fast as they can, one of them slower."""
    gossip = {"mixing": "push-sum", "peerTimeoutSeconds": 30}
    made = ring(3, num_elements=300_000, gossip=gossip, one_machine=one_machine)
    made.connect()
    vectors = {rank: torch.full((300_000,), float(rank)) for rank in made.peers}
    done = threading.Barrier(3)

    def learner(rank: int) -> None:
        version, deadline = 0, time.monotonic() + PATIENCE
        # Until all have mixed: whoever stopped earlier would leave the next one without messages.
        while min(peer.stats().mixes for peer in made.peers.values()) < 6 and time.monotonic() < deadline:
            version += 1
            made.peers[rank].offer(vectors[rank], version=version, steps=version)
            made.peers[rank].mix(vectors[rank])
            threading.Event().wait(0.004 if rank == 1 else 0.001)
        done.wait()
        deadline = time.monotonic() + PATIENCE
        while sum(peer.weight for peer in made.peers.values()) < 3 - 1e-9 and time.monotonic() < deadline:
            made.peers[rank].mix(vectors[rank])  # what is still on its way
            threading.Event().wait(0.01)

    threads = [threading.Thread(target=learner, args=(rank,)) for rank in made.peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


# ------------------------------------------------------------------ strangers


def hello(made: Ring, **changes) -> bytes:
    proper = {
        "run_uid": made.plan.run_uid,
        "rank": 1,
        "receiver": 0,
        "incarnation": 2**63,
        "epoch": 0,
        "schema_hash": "schema",
        "num_elements": made.num_elements,
        "precision": 1,
    }
    return framing.encode(Hello(**{**proper, **changes}))


def say(made: Ring, *messages: bytes):
    """What rank 0 answers to a stranger's bytes, and how its stream ends."""
    with grpc.insecure_channel(made.address(0)) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Push", None, None)(iter(messages), timeout=PATIENCE)
        heard: list[object] = []
        try:
            heard.extend(framing.decode(answer) for answer in call)
        except grpc.RpcError as error:
            heard.append(error.code())
        return heard


@pytest.fixture
def busy_ring(ring):
    """Two learners, running; afterwards they still are, on the same streams."""
    made = ring(2)
    made.connect()
    made.run()
    made.assert_all_mix([0, 1])
    yield made
    made.assert_all_mix([0, 1])
    assert made.is_whole()
    assert not [event for peer in made.peers.values() for event in peer.events() if event["event"] == "peer-gone"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_uid": "another"}, Reason.WRONG_RUN),
        ({"rank": 9}, Reason.NOT_MY_PEER),
        ({"schema_hash": "x" * 100_000}, Reason.WRONG_SCHEMA),
        ({"incarnation": 1}, Reason.STALE_INCARNATION),
    ],
)
def test_a_strangers_hello_is_refused(busy_ring, changes, reason):
    heard = say(busy_ring, hello(busy_ring, **changes))
    assert heard == [Refusal(reason, reason.text)]
    assert busy_ring.peers[0].stats().strangers == {reason.name: 1}


def test_bytes_that_are_no_frame_are_refused(busy_ring):
    assert say(busy_ring, b"\xff" * 1000) == [Refusal(Reason.MALFORMED, "1000 bytes that are not a Frame")]


def test_a_message_larger_than_any_frame_is_not_even_read(busy_ring):
    assert say(busy_ring, b"\x12" * (8 * CHUNK_BYTES)) == [grpc.StatusCode.RESOURCE_EXHAUSTED]


def test_a_member_that_announces_too_much_is_refused_before_memory_is_taken(ring):
    made = ring(2)
    made.start(0)
    chunk = Chunk(1, 0, 2**31, b"x" * CHUNK_BYTES, Header(2**51, 0, 1.0, 0.0))
    heard = say(made, hello(made), framing.encode(chunk))
    assert [type(frame) for frame in heard] == [Welcome, Refusal]
    assert made.peers[0]._hood.in_edges[1].inbox.allocated == 0


def test_random_bytes_and_a_crowd_of_silent_connections_disturb_nobody(busy_ring):
    rng = np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", busy_ring.ports[0]), timeout=PATIENCE))
            for _ in range(60)
        ]
        for number, connection in enumerate(crowd):
            with contextlib.suppress(OSError):  # gRPC may hang up first
                if number % 3 == 0:
                    connection.sendall(rng.bytes(5000))
                elif number % 3 == 1:
                    connection.sendall(b"PRI * HTTP/2.0\r\n")  # and no more of it: a slow loris
        busy_ring.assert_all_mix([0, 1])


def test_an_unknown_method_and_a_request_for_state_by_a_stranger_are_answered(busy_ring):
    with grpc.insecure_channel(busy_ring.address(0)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/Shutdown", None, None)(b"", timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        fetch = channel.unary_stream(f"/{SERVICE}/FetchState", None, None)
        assert framing.decode_state(next(fetch(b"\xff\xff", timeout=PATIENCE))).reason is Reason.MALFORMED
        assert framing.decode_state(next(fetch(b"", timeout=PATIENCE))).reason is Reason.WRONG_RUN


# ------------------------------------------------------------------ TLS


def certificate(subject: str, issuer=None):
    """(certificate, key), self-signed or by an issuer's (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    return built, key


def pem(made) -> tuple[bytes, bytes]:
    private = made[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, made[0].public_bytes(serialization.Encoding.PEM)


def test_neighbours_meet_over_mutual_tls_and_others_stay_outside(ring):
    authority = certificate("authority")
    root = pem(authority)[1]
    private, chain = pem(certificate("learner", authority))
    made = ring(
        2,
        server_credentials=grpc.ssl_server_credentials([(private, chain)], root, require_client_auth=True),
        channel_credentials=grpc.ssl_channel_credentials(root, private, chain),
    )
    made.connect()
    made.run()
    made.assert_all_mix([0, 1])
    assert say(made, hello(made)) == [grpc.StatusCode.UNAVAILABLE]
    without_a_certificate = grpc.secure_channel(made.address(0), grpc.ssl_channel_credentials(root))
    with without_a_certificate as channel, pytest.raises(grpc.RpcError):
        next(channel.stream_stream(f"/{SERVICE}/Push", None, None)(iter([hello(made)]), timeout=PATIENCE))
    made.assert_all_mix([0, 1])
