"""Point 4, who dials us: a peer that does not prove itself gets nothing but a close, and one record says why."""

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import START, Leaf, Signer, key_usage, make_root
from tests.mesh_builder import Mesh, read_all
from tests.mesh_stage import Stage, staged
from tests.tunnel_peer import TUNNEL_PORT, dial, open_payload, peer_context

pytestmark = pytest.mark.mesh

_CART: Final = "spiffe://cluster.local/ns/default/sa/cart"
_OTHER: Final = "spiffe://other.example/ns/default/sa/cart"
_LONG_AGO: Final = START - timedelta(hours=2)
_EXPIRED: Final = START - timedelta(minutes=5)
_TO_COME: Final = START + timedelta(days=1)  # far beyond the end of the slowest session


@pytest.fixture(scope="module")
def set_stage(session_mesh: Mesh) -> Iterator[Stage]:
    with staged(session_mesh) as stage:
        yield stage


@pytest.fixture
def stage(set_stage: Stage) -> Stage:
    set_stage.begin_test()
    return set_stage


def _self_signed() -> Leaf:
    own = make_root(names=(_CART,))
    return Leaf(certificate=own.certificate, key=own.key, signers=(own.certificate,))


def _ca_as_leaf(signer: Signer) -> Leaf:
    return Leaf(certificate=signer.certificate, key=signer.key, signers=signer.signers[1:])


def _without_intermediate(signer: Signer) -> Leaf:
    leaf = signer.leaf(_CART)
    return Leaf(certificate=leaf.certificate, key=leaf.key, signers=signer.signers[1:])


_signing = key_usage(digital_signature=True, key_cert_sign=True)

_WRONG: Final[dict[str, tuple[Callable[[Signer], Leaf], str]]] = {
    "of another trust domain": (lambda _: make_root("other.example").leaf(_OTHER), "certificate_untrusted"),
    "of another trust domain, signed by our CA": (lambda signer: signer.leaf(_OTHER), "certificate_invalid"),
    "self-signed": (lambda _: _self_signed(), "certificate_untrusted"),
    "right name, wrong bundle": (lambda _: make_root().intermediate().leaf(_CART), "certificate_untrusted"),
    "without its intermediate": (_without_intermediate, "certificate_untrusted"),
    "signed by a leaf": (
        lambda signer: Signer(
            certificate=(made := signer.leaf(_CART, subject="cart")).certificate,
            key=made.key,
            trust_domain=signer.trust_domain,
            signers=made.chain,
        ).leaf(_CART),
        "certificate_",
    ),
    "expired": (lambda signer: signer.leaf(_CART, not_before=_LONG_AGO, not_after=_EXPIRED), "certificate_expired"),
    "not yet valid": (
        lambda signer: signer.leaf(_CART, not_before=_TO_COME, not_after=_TO_COME + timedelta(days=1)),
        "certificate_expired",
    ),
    "two URI names": (lambda signer: signer.leaf(_CART, _CART + "2"), "certificate_invalid"),
    "the ID and another URI": (lambda signer: signer.leaf(_CART, "https://cluster.local/"), "certificate_invalid"),
    "no URI name": (lambda signer: signer.leaf(other_names=(x509.DNSName("cart"),)), "certificate_invalid"),
    "no names": (lambda signer: signer.leaf(subject="cart"), "certificate_invalid"),
    "a trust domain without a path": (lambda signer: signer.leaf("spiffe://cluster.local"), "certificate_invalid"),
    "cA set": (lambda signer: signer.leaf(_CART, ca=True, usage=_signing), "certificate_invalid"),
    "the CA's own": (_ca_as_leaf, "certificate_invalid"),
    "for clients only": (
        lambda signer: signer.leaf(_CART, purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        "certificate_invalid",
    ),
    "for servers only": (
        lambda signer: signer.leaf(_CART, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "certificate_invalid",
    ),
    "no key usage": (lambda signer: signer.leaf(_CART, usage_absent=True), "certificate_invalid"),
    "a node's": (lambda signer: signer.leaf("spiffe://cluster.local/ringfence/node/node-1"), "certificate_invalid"),
    "the CA server's": (lambda signer: signer.leaf("spiffe://cluster.local/ringfence/ca"), "certificate_invalid"),
}


def _attack(stage: Stage, context: ssl.SSLContext, *, ip: str | None = None) -> None:
    """Handshake, ask for the application at once, and be refused without a frame."""
    ip = ip or stage.server.ipv4
    try:
        peer = dial(stage.attacker, ip, context)
    except OSError:
        return  # refused within the handshake: an alert or a RST
    with peer:
        source = stage.attacker.ipv6 if ":" in ip else stage.attacker.ipv4
        try:
            peer.send(1, open_payload(destination=(ip, 8080), source=(source, 40000)))
            peer.send(3, b"let me in")
        except OSError:
            return
        assert peer.is_refused()


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_client_certificate_is_refused(stage: Stage, name: str) -> None:
    make, reason = _WRONG[name]
    context = peer_context(make(stage.signer), stage.root)

    _attack(stage, context)

    if reason == "certificate_":
        reason = stage.records(1)[0]["close_reason"]
        assert reason in ("certificate_invalid", "certificate_untrusted")
    record = stage.refused(reason)
    assert record["detail"]
    assert record["source_identity"] is None, "nothing was proved"


def test_a_good_certificate_is_accepted(stage: Stage) -> None:
    """The control: what the tests above change is all that was wrong."""
    with dial(stage.attacker, stage.server.ipv4, peer_context(stage.leaf(), stage.root)) as peer:
        destination, source = (stage.server.ipv4, 8080), (stage.attacker.ipv4, 40000)
        assert peer.open(destination=destination, source=source) == "ok"
        peer.send(3, b"hello")
        assert peer.read() == (3, b"hello")
        peer.send(4)
        assert peer.read() == (4, b"")
    (record,) = stage.records(1)
    assert record["source_identity"] == _CART
    assert record["close_reason"] == "ok"
    assert stage.application.accepted == [stage.attacker.ipv4]


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_no_client_certificate(stage: Stage, version: str) -> None:
    _attack(stage, peer_context(None, stage.root), ip=getattr(stage.server, version))
    stage.refused("certificate_missing")


def test_tls_1_2_only(stage: Stage) -> None:
    _attack(stage, peer_context(stage.leaf(), stage.root, version=ssl.TLSVersion.TLSv1_2))
    stage.refused("tls_version")


@pytest.mark.parametrize("alpn", ["h2", "ringfence/9", None])
def test_no_common_protocol(stage: Stage, alpn: str | None) -> None:
    _attack(stage, peer_context(stage.leaf(), stage.root, alpn=alpn))
    stage.refused("handshake_failed", detail="ALPN")


_CLIENT_HELLO_HEADER: Final = bytes.fromhex("16030100f1010000ed0303")
_NOT_TLS: Final = {
    "a line": b"hello\r\n",
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: store\r\n\r\n",
    "an HTTP CONNECT": b"CONNECT store:8080 HTTP/1.1\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a tunnel frame": b"\x01\x00\x00\x10" + bytes(16),
    "much garbage": bytes(range(1, 256)) * 4000,
    "a record that is too long": b"\x16\x03\x01\xff\xff" + bytes(65535),
    "an SSL 2 hello": bytes.fromhex("802e0100020015000000100100800200800600400400800300800700c0") + bytes(64),
    "application data before a handshake": b"\x17\x03\x03\x00\x10" + bytes(16),
    "an alert": b"\x15\x03\x01\x00\x02\x01\x00",
    "a hello of nonsense": b"\x16\x03\x01\x00\x20" + bytes(32),
}


@pytest.mark.parametrize("name", _NOT_TLS)
def test_something_else_than_tls(stage: Stage, name: str) -> None:
    data = _NOT_TLS[name]
    with stage.attacker.connect(stage.server.ipv4, TUNNEL_PORT) as connection:
        try:
            connection.sendall(data)
            answer = read_all(connection)
        except OSError:
            answer = b""
    assert len(answer) <= 7, "an alert at most"
    # What has the form of a record is TLS gone wrong, the rest is no TLS.
    formed = name in ("application data before a handshake", "an alert", "a hello of nonsense")
    reason = stage.records(1)[0]["close_reason"]
    assert reason in (("not_tls", "handshake_failed") if formed else ("not_tls",)), stage.records(1)
    stage.refused(reason)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("said", [b"", _CLIENT_HELLO_HEADER], ids=["nothing", "half a hello"])
def test_a_peer_that_leaves_within_the_handshake(stage: Stage, said: bytes, how: str) -> None:
    with stage.attacker.connect(stage.server.ipv4, TUNNEL_PORT) as connection:
        connection.sendall(said)
        if how == "RST":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stage.refused("handshake_failed")


@pytest.mark.parametrize("said", [b"", _CLIENT_HELLO_HEADER], ids=["nothing", "half a hello"])
def test_a_peer_that_says_no_more_is_cut_in_time(stage: Stage, said: bytes) -> None:
    with stage.attacker.connect(stage.server.ipv4, TUNNEL_PORT) as connection:
        connection.sendall(said)
        try:
            assert read_all(connection) == b""
        except ConnectionResetError:
            pass
    record = stage.refused("handshake_timeout")
    assert record["duration_ms"] >= 1900


def test_a_peer_that_drips_its_hello_is_cut_in_time(stage: Stage) -> None:
    """The limit is on the whole handshake, not on each wait."""
    with stage.attacker.connect(stage.server.ipv4, TUNNEL_PORT) as connection:
        connection.settimeout(0.1)
        connection.sendall(_CLIENT_HELLO_HEADER)
        for _ in range(100):
            try:
                connection.sendall(b"\0")
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("still open after 10 s")
    record = stage.refused("handshake_timeout")
    assert record["duration_ms"] >= 1900
