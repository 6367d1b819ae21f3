"""Point 4, whom we dial: an endpoint that does not prove to be who it must be gets no byte of the payload.

The impostor is a pod that no agent serves; its manifest says that it is an
enrolled workload with the service account ``store``, so agent 1 dials it, and
what answers on 15008 is the test.
"""

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgpack
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import START, Leaf, Signer, make_root
from tests.lab_authority import lab_signer
from tests.mesh_builder import Mesh, Pod, read_all, wait_for
from tests.mesh_stage import CANARY, CONNECT_TIMEOUT_S, HANDSHAKE_TIMEOUT_S, OPEN_TIMEOUT_S, PORT
from tests.tunnel_peer import (
    DATA,
    EOF,
    OPEN,
    RESET,
    VERDICT,
    FakeAgent,
    TunnelPeer,
    frame,
    peer_context,
    verdict_payload,
)

pytestmark = pytest.mark.mesh

_STORE: Final = "spiffe://cluster.local/ns/default/sa/store"
_CLAIM: Final = """\
apiVersion: v1
kind: Pod
metadata: {name: impostor, namespace: default, labels: {ringfence.io/mesh: enabled, app: store}}
spec: {nodeName: node-9, serviceAccountName: store}
"""


@dataclass
class Scene:
    """The client, the impostor's address, and what the impostor does next."""

    mesh: Mesh
    client: Pod
    impostor: Pod
    agent: FakeAgent
    signer: Signer
    heard: bytearray

    @property
    def root(self) -> x509.Certificate:
        return self.signer.signers[-1]

    def answer(self, leaf: Leaf, then: Callable[[TunnelPeer], None] | None = None, **context: Any) -> None:
        """Answer with ``leaf``; then do ``then``, or listen to whatever is said."""
        made = peer_context(leaf, context.pop("root", self.root), server_side=True, **context)

        def handle(connection: socket.socket) -> None:
            with TunnelPeer(made.wrap_socket(connection, server_side=True)) as peer:
                if then is not None:
                    then(peer)
                while data := peer.tls.recv(65536):
                    self.heard += data

        self.agent.handle = handle

    def good_leaf(self) -> Leaf:
        return self.signer.leaf(_STORE)

    def fails(self, reason: str, flags: str = "TLS_FAILURE", *, detail: str = "") -> dict[str, Any]:
        """Assert that the client's connection is reset for ``reason`` and that the payload stayed at home."""
        assert _say_canary(self.client, self.impostor.ipv4) == b""
        record = self.mesh.record(1, direction="outbound")
        assert (record["close_reason"], record["response_flags"]) == (reason, flags), record
        assert detail in record["detail"], record
        assert record["destination_workload"] == "default/impostor"
        assert record["destination_identity"] == _STORE, "who it must be"
        assert record["connection_security_policy"] == "mutual_tls"
        assert record["sent_bytes"] == 0
        assert record["attempts"] == 1
        assert CANARY[:8] not in self.heard
        assert self.agent.failures == []
        return record


def _say_canary(client: Pod, ip: str) -> bytes:
    """Send at once, and return what was received before the RST; fails without one."""
    received = b""
    try:
        with client.connect(ip, PORT) as connection:
            connection.sendall(CANARY)
            while data := connection.recv(65536):
                received += data
    except (ConnectionResetError, BrokenPipeError):
        return received
    raise AssertionError(f"an end without RST, after {received!r}")


@pytest.fixture(scope="module")
def set_scene(session_mesh: Mesh) -> Iterator[Scene]:
    with session_mesh.configured(
        handshake_timeout_s=HANDSHAKE_TIMEOUT_S, open_timeout_s=OPEN_TIMEOUT_S, connect_timeout_s=CONNECT_TIMEOUT_S
    ):
        session_mesh.begin_test()
        try:
            client = session_mesh.pod("cart", node=1, service_account="cart")
            impostor = session_mesh.pod("impostor", node=2, mesh=False)
            agent = FakeAgent(impostor)
            session_mesh.apply(_CLAIM)
            yield Scene(session_mesh, client, impostor, agent, lab_signer(), bytearray())
            agent.close()
        finally:
            session_mesh.reset()


@pytest.fixture
def scene(set_scene: Scene) -> Scene:
    set_scene.agent.hang_up()
    set_scene.mesh.begin_test()
    set_scene.heard.clear()
    return set_scene


# -- certificates ------------------------------------------------------------------


def _named(name: str) -> Callable[[Signer], Leaf]:
    return lambda signer: signer.leaf(name)


_other_domain = make_root("other.example")

_WRONG: Final[dict[str, tuple[Callable[[Signer], Leaf], str, str]]] = {
    "another service account": (_named(_STORE + "2"), "identity_mismatch", "IDENTITY_ERROR"),
    "another namespace": (_named("spiffe://cluster.local/ns/other/sa/store"), "identity_mismatch", "IDENTITY_ERROR"),
    "a node": (_named("spiffe://cluster.local/ringfence/node/node-2"), "identity_mismatch", "IDENTITY_ERROR"),
    "the client itself": (_named("spiffe://cluster.local/ns/default/sa/cart"), "identity_mismatch", "IDENTITY_ERROR"),
    "another trust domain": (
        lambda _: _other_domain.leaf("spiffe://other.example/ns/default/sa/store"),
        "certificate_untrusted",
        "TLS_FAILURE",
    ),
    "another trust domain, signed by our CA": (
        _named("spiffe://other.example/ns/default/sa/store"),
        "certificate_invalid",
        "TLS_FAILURE",
    ),
    "right name, wrong bundle": (lambda _: make_root().leaf(_STORE), "certificate_untrusted", "TLS_FAILURE"),
    "expired": (
        lambda signer: signer.leaf(
            _STORE, not_before=START - timedelta(hours=2), not_after=START - timedelta(minutes=5)
        ),
        "certificate_expired",
        "TLS_FAILURE",
    ),
    "not yet valid": (
        lambda signer: signer.leaf(_STORE, not_before=START + timedelta(days=1), not_after=START + timedelta(days=2)),
        "certificate_expired",
        "TLS_FAILURE",
    ),
    "two URI names": (lambda signer: signer.leaf(_STORE, _STORE + "2"), "certificate_invalid", "TLS_FAILURE"),
    "no URI name": (
        lambda signer: signer.leaf(other_names=(x509.DNSName("store"),)),
        "certificate_invalid",
        "TLS_FAILURE",
    ),
    "for servers only": (
        lambda signer: signer.leaf(_STORE, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "certificate_invalid",
        "TLS_FAILURE",
    ),
}


@pytest.mark.parametrize("name", _WRONG)
def test_an_endpoint_that_proves_something_else(scene: Scene, name: str) -> None:
    make, reason, flags = _WRONG[name]
    scene.answer(make(scene.signer))

    scene.fails(reason, flags)

    assert scene.heard == b"", "not even an OPEN"


def test_a_mismatch_says_who_was_expected_and_who_answered(scene: Scene) -> None:
    scene.answer(scene.signer.leaf(_STORE + "2"))
    record = scene.fails("identity_mismatch", "IDENTITY_ERROR")
    assert f"must be {_STORE} but proved {_STORE}2" in record["detail"]


def test_a_good_endpoint_is_believed(scene: Scene) -> None:
    """The control: what the tests here change is all that was wrong."""

    def echo(peer: TunnelPeer) -> None:
        assert _hear_open(peer)["dst"] == [scene.impostor.ipv4, PORT]
        peer.send(VERDICT, verdict_payload())
        while (got := peer.read()) is not None:
            peer.send(*got)

    scene.answer(scene.good_leaf(), echo)
    with scene.client.connect(scene.impostor.ipv4, PORT) as connection:
        connection.sendall(CANARY)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == CANARY
    assert scene.mesh.record(1)["close_reason"] == "ok"


def test_an_endpoint_that_does_not_trust_us(scene: Scene) -> None:
    scene.answer(scene.good_leaf(), root=_other_domain.certificate)
    scene.fails("certificate_untrusted", detail="the peer does not trust the CA of ours")


@pytest.mark.parametrize("alpn", ["h2", None])
def test_an_endpoint_without_our_protocol(scene: Scene, alpn: str | None) -> None:
    scene.answer(scene.good_leaf(), alpn=alpn)
    scene.fails("handshake_failed", detail="ALPN")
    assert scene.heard == b""


def test_an_endpoint_with_tls_1_2(scene: Scene) -> None:
    scene.answer(scene.good_leaf(), version=ssl.TLSVersion.TLSv1_2)
    scene.fails("tls_version")


# -- no TLS --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [b"hello\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(1000)], ids=["a line", "HTTP", "zeros"]
)
def test_an_endpoint_that_speaks_something_else(scene: Scene, said: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        connection.sendall(said)
        while data := connection.recv(65536):
            scene.heard += data

    scene.agent.handle = handle
    scene.fails("not_tls")


def test_an_endpoint_that_hangs_up(scene: Scene) -> None:
    scene.agent.handle = socket.socket.close
    scene.fails("handshake_failed")


def test_an_endpoint_that_resets(scene: Scene) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(1)  # so that it is connected
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    scene.agent.handle = handle
    scene.fails("handshake_failed")


def test_a_service_loses_nobody_to_an_endpoint_that_leaves_within_the_handshake(scene: Scene) -> None:
    """As an agent does that ends: whoever was waiting to be accepted is reset."""
    mesh = scene.mesh
    mesh.pod("good", node=2, service_account="store", labels={"app": "store"}).serve_whoami(PORT)
    cluster, _ = mesh.service("store", app="store", port=80, target_port=PORT)

    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for handle in (socket.socket.close, reset):
        mesh.begin_test()
        scene.agent.handle = handle

        def has_tried_both() -> bool:
            assert scene.client.ask_whoami(cluster, 80)[0] == "good"
            return any(record["attempts"] == 2 for record in mesh.records(1, direction="outbound"))

        wait_for("one that met the impostor first", has_tried_both, deadline_s=30)
        assert {record["close_reason"] for record in mesh.records(1, direction="outbound")} == {"ok"}


def test_an_endpoint_that_does_not_answer(scene: Scene) -> None:
    def handle(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            scene.heard += data

    scene.agent.handle = handle
    record = scene.fails("handshake_timeout")
    assert record["duration_ms"] >= 1900


# -- the verdict ---------------------------------------------------------------------------


def _hear_open(peer: TunnelPeer) -> dict[str, Any]:
    got = peer.read()
    assert got is not None
    assert got.kind == OPEN
    fields: dict[str, Any] = msgpack.unpackb(got.payload)
    return fields


_NO_VERDICT: Final[dict[str, tuple[bytes, str, str]]] = {
    "garbage": (b"\xff" * 1000, "protocol_error", "TUNNEL_FAILURE"),
    "an HTTP answer": (b"HTTP/1.1 200 OK\r\n\r\n", "protocol_error", "TUNNEL_FAILURE"),
    "DATA": (frame(DATA, b"early"), "protocol_error", "TUNNEL_FAILURE"),
    "EOF": (frame(EOF), "protocol_error", "TUNNEL_FAILURE"),
    "RESET": (frame(RESET), "protocol_error", "TUNNEL_FAILURE"),
    "an OPEN": (frame(OPEN, b"\x80"), "protocol_error", "TUNNEL_FAILURE"),
    "a giant VERDICT": (frame(VERDICT, b"x" * 100, length=0xFFFFFF), "protocol_error", "TUNNEL_FAILURE"),
    "a VERDICT of garbage": (frame(VERDICT, b"\xc1" * 10), "protocol_error", "TUNNEL_FAILURE"),
    "an empty VERDICT": (frame(VERDICT), "protocol_error", "TUNNEL_FAILURE"),
    "a VERDICT that is text": (frame(VERDICT, msgpack.packb("ok")), "protocol_error", "TUNNEL_FAILURE"),
    "a reason that is true": (frame(VERDICT, msgpack.packb({"reason": True})), "protocol_error", "TUNNEL_FAILURE"),
    "a VERDICT without a reason": (frame(VERDICT, msgpack.packb({})), "connect_failed", "CONNECT"),
    "a reason to come": (frame(VERDICT, verdict_payload("of a later version")), "connect_failed", "CONNECT"),
    "OK in capitals": (frame(VERDICT, verdict_payload("OK")), "connect_failed", "CONNECT"),
    "a refusal": (frame(VERDICT, verdict_payload("policy_denied", "no")), "policy_denied", "DENY"),
}


@pytest.mark.parametrize("name", _NO_VERDICT)
def test_something_else_than_a_verdict_that_accepts(scene: Scene, name: str) -> None:
    said, reason, flags = _NO_VERDICT[name]

    def then(peer: TunnelPeer) -> None:
        _hear_open(peer)
        peer.send_raw(said)

    scene.answer(scene.good_leaf(), then)
    scene.fails(reason, flags)


def test_a_verdict_that_never_comes(scene: Scene) -> None:
    def then(peer: TunnelPeer) -> None:
        _hear_open(peer)

    scene.answer(scene.good_leaf(), then)
    record = scene.fails("verdict_timeout", "TUNNEL_FAILURE")
    assert record["duration_ms"] >= 2900, "connect_timeout_s and 2 s"


@pytest.mark.parametrize("said", [b"", frame(VERDICT, verdict_payload())[:3], frame(VERDICT, verdict_payload())[:9]])
def test_a_tunnel_that_ends_instead_of_a_verdict(scene: Scene, said: bytes) -> None:
    def then(peer: TunnelPeer) -> None:
        _hear_open(peer)
        peer.send_raw(said)
        peer.close()

    scene.answer(scene.good_leaf(), then)
    scene.fails("tunnel_lost", "TUNNEL_FAILURE")


# -- after the verdict --------------------------------------------------------------------------


_BROKEN: Final[dict[str, tuple[bytes, str, str]]] = {
    "an OPEN": (frame(OPEN, b"\x80"), "protocol_error", "TUNNEL_FAILURE"),
    "a second VERDICT": (frame(VERDICT, verdict_payload()), "protocol_error", "TUNNEL_FAILURE"),
    "type 0": (frame(0), "protocol_error", "TUNNEL_FAILURE"),
    "empty DATA": (frame(DATA), "protocol_error", "TUNNEL_FAILURE"),
    "giant DATA": (frame(DATA, b"x", length=0xFFFFFF), "protocol_error", "TUNNEL_FAILURE"),
    "EOF with a payload": (frame(EOF, b"x"), "protocol_error", "TUNNEL_FAILURE"),
    "RESET": (frame(RESET), "upstream_reset", "RESET"),
    "RESET that says why": (frame(RESET, b"drained"), "drained", "CUT"),
    "RESET with a reason to come": (frame(RESET, b"of a later version"), "upstream_reset", "RESET"),
    "RESET that claims that all is well": (frame(RESET, b"ok"), "upstream_reset", "RESET"),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_frame_that_does_not_belong_resets_the_client(scene: Scene, name: str) -> None:
    said, reason, flags = _BROKEN[name]

    def then(peer: TunnelPeer) -> None:
        _hear_open(peer)
        peer.send(VERDICT, verdict_payload())
        peer.send(DATA, b"first")
        assert peer.read() == (DATA, CANARY)
        peer.send_raw(said)

    scene.answer(scene.good_leaf(), then)
    assert _say_canary(scene.client, scene.impostor.ipv4) in (b"first", b"")
    record = scene.mesh.record(1)
    assert (record["close_reason"], record["response_flags"]) == (reason, flags), record
    assert (record["sent_bytes"], record["received_bytes"]) == (len(b"first"), len(CANARY))
    assert scene.agent.failures == []


def test_a_tunnel_that_ends_without_eof_resets_the_client(scene: Scene) -> None:
    def then(peer: TunnelPeer) -> None:
        _hear_open(peer)
        peer.send(VERDICT, verdict_payload())
        peer.send(DATA, b"not all of it")
        assert peer.read() == (DATA, CANARY)
        peer.tls.unwrap()

    scene.answer(scene.good_leaf(), then)
    _say_canary(scene.client, scene.impostor.ipv4)
    assert scene.mesh.record(1)["close_reason"] == "tunnel_lost"


def test_a_refused_impostor_is_not_avoided(scene: Scene) -> None:
    """A service with an impostor among its endpoints fails where it meets it: somebody has to see that."""
    honest = scene.mesh.pod("honest", node=2, service_account="store", labels={"app": "mixed"})
    honest.serve_whoami(PORT)
    scene.answer(scene.signer.leaf(_STORE + "2"))
    manifest = f"""\
apiVersion: v1
kind: Service
metadata: {{name: mixed, namespace: default}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: mixed-1, namespace: default, labels: {{kubernetes.io/service-name: mixed}}}}
addressType: IPv4
ports: [{{port: {PORT}}}]
endpoints: [{{addresses: [{honest.ipv4}]}}, {{addresses: [{scene.impostor.ipv4}]}}]
"""
    with scene.mesh.applied(manifest):
        (row,) = [row for row in scene.mesh.ringfence(1, "services") if row["name"] == "mixed"]
        ip = row["cluster_ips"][0]
        for _ in range(20):
            with scene.client.connect(ip, 80) as connection:
                try:
                    assert read_all(connection).startswith(b"honest")
                except ConnectionResetError:
                    pass
        records = wait_for("20 records", lambda: found if len(found := scene.mesh.records(1)) == 20 else None)
    reasons = {(record["endpoint"], record["close_reason"]) for record in records}
    assert reasons == {
        (f"{honest.ipv4}:{PORT}", "ok"),
        (f"{scene.impostor.ipv4}:{PORT}", "identity_mismatch"),
    }
