"""What strangers, and members that misbehave, can do to a ring: nothing."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gala_worker.gossip import framing
from gala_worker.gossip.grpc_transport import SERVICE
from gala_worker.gossip.messages import CHUNK_BYTES, Chunk, Header, Hello, Reason, Refusal, Welcome
from grpc_ring import PATIENCE, Ring


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
    assert made.peers[0]._hood.in_peers.edges[1].inbox.allocated == 0


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
