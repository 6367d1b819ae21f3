"""Every vector in a real handshake, from either side; and what broken handshakes are called."""

import ssl
from datetime import timedelta

import pytest
from cryptography import x509

from ca.anchors import distinct
from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure, HandshakeBrokenOff
from node_agent.identity import handshake_failure, peer_identity
from node_agent.identity.credentials import assemble
from node_agent.identity.peers import PeerCertificate
from tests.certificates import START, TRUST_DOMAIN, WEB, Leaf, der, make_root
from tests.handshakes import Side, careless_context, context, feed_server, shake_hands, trusting
from tests.svid_vectors.chains import OTHER_DOMAIN, OTHER_WEB, Vector, cross_signed, vectors

_ROOT = make_root()
_OTHER_ROOT = make_root()
_OURS = SpiffeId.parse(WEB)


def _present(leaf: Leaf, *roots: x509.Certificate, by_server: bool) -> Side:
    """Let ``leaf`` be presented to a peer that trusts ``roots``; returns that peer's end."""
    presenting = careless_context(leaf.own, _ROOT.certificate, server_side=by_server)
    judge = assemble(identity=_OURS, own=_ROOT.intermediate().leaf(WEB).own, roots=roots, ring=1)
    judging = judge.client_context if by_server else judge.server_context
    if by_server:
        client, _ = shake_hands(judging, presenting)
        return client
    _, server = shake_hands(presenting, judging)
    return server


def _judge(vector: Vector, *, by_server: bool) -> PeerCertificate:
    judge = _present(vector.leaf, *vector.roots, by_server=by_server)
    if not judge.finished:
        assert judge.error is not None
        raise handshake_failure(judge.error)
    return peer_identity(judge.tls, bundles=vector.bundles_der, at=vector.at)


@pytest.mark.parametrize("by_server", [False, True], ids=["client", "server"])
@pytest.mark.parametrize("vector", [v for v in vectors() if v.accepted], ids=lambda v: v.name)
def test_a_good_peer_is_known_by_its_identity(vector: Vector, by_server: bool) -> None:
    peer = _judge(vector, by_server=by_server)
    names = vector.leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(peer.identity)] == names.get_values_for_type(x509.UniformResourceIdentifier)
    assert peer.serial == vector.leaf.certificate.serial_number
    assert peer.not_after == min(certificate.not_valid_after_utc for certificate in vector.leaf.chain)


@pytest.mark.parametrize("by_server", [False, True], ids=["client", "server"])
@pytest.mark.parametrize("vector", [v for v in vectors() if v.presentable and not v.accepted], ids=lambda v: v.name)
def test_a_bad_peer_is_refused_with_the_reason(vector: Vector, by_server: bool) -> None:
    with pytest.raises(ConnectionFailure) as caught:
        _judge(vector, by_server=by_server)
    if vector.expired:
        assert caught.value.reason is CloseReason.CERTIFICATE_EXPIRED
    else:
        assert caught.value.reason in (CloseReason.CERTIFICATE_INVALID, CloseReason.CERTIFICATE_UNTRUSTED)
    assert caught.value.detail


def test_an_answer_that_is_remembered_still_expires() -> None:
    leaf = _ROOT.leaf(WEB)
    judge = _present(leaf, _ROOT.certificate, by_server=True)
    peer_identity(judge.tls, bundles=trusting(_ROOT.certificate), at=START)
    with pytest.raises(ConnectionFailure) as caught:
        peer_identity(judge.tls, bundles=trusting(_ROOT.certificate), at=START + timedelta(hours=2))
    assert caught.value.reason is CloseReason.CERTIFICATE_EXPIRED


def test_a_trust_domain_that_went_away_meanwhile_is_called_that() -> None:
    """The context still knows its root: it is replaced a moment later."""
    theirs = make_root(OTHER_DOMAIN)
    judge = _present(theirs.leaf(OTHER_WEB), _ROOT.certificate, theirs.certificate, by_server=True)
    with pytest.raises(ConnectionFailure) as caught:
        peer_identity(judge.tls, bundles=trusting(_ROOT.certificate), at=START)
    assert caught.value.reason is CloseReason.TRUST_REMOVED
    assert OTHER_DOMAIN in caught.value.detail


def test_an_impostor_is_not_called_a_trust_domain_that_went_away() -> None:
    judge = _present(_ROOT.leaf(OTHER_WEB), _ROOT.certificate, by_server=True)
    with pytest.raises(ConnectionFailure) as caught:
        peer_identity(judge.tls, bundles=trusting(_ROOT.certificate), at=START)
    assert caught.value.reason is CloseReason.CERTIFICATE_INVALID


def test_a_root_moved_to_another_trust_domain_no_longer_vouches_for_its_old_one() -> None:
    shared = make_root(names=())
    judge = _present(shared.leaf(WEB), shared.certificate, by_server=True)
    peer_identity(judge.tls, bundles=trusting(shared.certificate), at=START)
    moved = {TRUST_DOMAIN: frozenset({der(_ROOT.certificate)}), OTHER_DOMAIN: frozenset({der(shared.certificate)})}
    with pytest.raises(ConnectionFailure) as caught:
        peer_identity(judge.tls, bundles=moved, at=START)
    assert caught.value.reason is CloseReason.CERTIFICATE_INVALID


@pytest.mark.parametrize("by_server", [False, True], ids=["client", "server"])
def test_a_path_through_a_cross_signed_root_is_found_to_the_own_root(by_server: bool) -> None:
    """Their CA has signed our root's key: a path to either root can be built, and ours is."""
    ours, theirs = make_root(), make_root(OTHER_DOMAIN)
    leaf = cross_signed(ours, by=theirs).leaf(WEB)
    judge = _present(leaf, ours.certificate, theirs.certificate, by_server=by_server)
    bundles = {**trusting(ours.certificate), **trusting(theirs.certificate, trust_domain=OTHER_DOMAIN)}
    assert str(peer_identity(judge.tls, bundles=bundles, at=START).identity) == WEB


@pytest.mark.parametrize("of_intermediate", [False, True], ids=["root", "intermediate"])
def test_a_federated_root_that_passes_for_one_of_ours_ends_no_handshake_of_ours(of_intermediate: bool) -> None:
    """OpenSSL alone would take the first that fits and fail; what is left out beforehand can not be taken."""
    ours = make_root()
    signer = ours.intermediate()
    copied = (signer if of_intermediate else ours).certificate
    identifier = copied.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    twin = make_root(OTHER_DOMAIN, names=(), subject=copied.subject, key_identifier=identifier)

    fooled = _present(signer.leaf(WEB), twin.certificate, ours.certificate, by_server=True)
    assert fooled.error is not None, "the attack is real"

    bundles = [(ours.certificate,), (twin.certificate,)]
    kept, confusions = distinct(bundles, issuers=[ours.certificate, signer.certificate])
    assert len(confusions) == 1
    judge = _present(signer.leaf(WEB), *kept, by_server=True)
    assert str(peer_identity(judge.tls, bundles=trusting(ours.certificate), at=START).identity) == WEB


def _server() -> ssl.SSLContext:
    return context(_ROOT.leaf(WEB).own, _ROOT.certificate, server_side=True)


def _client(**changes: object) -> ssl.SSLContext:
    made = context(_ROOT.leaf(WEB).own, _ROOT.certificate, server_side=False)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _reason(side: Side) -> CloseReason:
    assert side.error is not None
    return handshake_failure(side.error).reason


def test_a_client_without_a_certificate_is_called_that_on_both_sides() -> None:
    client, server = shake_hands(context(None, _ROOT.certificate, server_side=False), _server())
    assert _reason(server) is CloseReason.CERTIFICATE_MISSING
    assert client.finished  # a TLS 1.3 client has finished before the server judges
    assert _reason(client) is CloseReason.CERTIFICATE_MISSING


def test_a_client_of_another_ca_is_untrusted_on_both_sides() -> None:
    stranger = context(_OTHER_ROOT.leaf(WEB).own, _ROOT.certificate, server_side=False)
    client, server = shake_hands(stranger, _server())
    assert _reason(server) is CloseReason.CERTIFICATE_UNTRUSTED
    assert _reason(client) is CloseReason.CERTIFICATE_UNTRUSTED


def test_a_server_of_another_ca_is_untrusted_on_both_sides() -> None:
    stranger = context(_OTHER_ROOT.leaf(WEB).own, _ROOT.certificate, server_side=True)
    client, server = shake_hands(_client(), stranger)
    assert _reason(client) is CloseReason.CERTIFICATE_UNTRUSTED
    assert _reason(server) is CloseReason.CERTIFICATE_UNTRUSTED


def test_tls_1_2_is_refused_by_name() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = shake_hands(old, _server())
    assert _reason(server) is CloseReason.TLS_VERSION
    assert _reason(client) is CloseReason.TLS_VERSION


def test_a_server_that_speaks_only_tls_1_2_is_refused_by_name() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, _ = shake_hands(_client(), old)
    assert _reason(client) is CloseReason.TLS_VERSION


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: web\r\n\r\n",
        b"POST /a HTTP/1.0\r\n\r\n",
        b"CONNECT web:80 HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
    ],
)
def test_plain_bytes_to_a_server_are_not_tls(data: bytes) -> None:
    assert _reason(feed_server(_server(), data)) is CloseReason.NOT_TLS


def test_plain_bytes_from_a_server_are_not_tls() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = Side(_client().wrap_bio(incoming, outgoing), incoming, outgoing)
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    client.step()
    assert _reason(client) is CloseReason.NOT_TLS


def test_a_peer_that_goes_away_has_failed_the_handshake() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = Side(_server().wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    incoming.write_eof()
    server.step()
    assert _reason(server) is CloseReason.HANDSHAKE_FAILED
    for error in (ConnectionResetError(104, "Connection reset by peer"), ssl.SSLEOFError(8, "EOF")):
        assert isinstance(handshake_failure(error), HandshakeBrokenOff)
    assert handshake_failure(ConnectionResetError(104, "Connection reset by peer")).detail == "Connection reset by peer"


def test_no_session_ticket_is_ever_sent() -> None:
    client, server = shake_hands(_client(), _server())
    assert client.finished
    assert server.finished
    assert client.tls.session is None or not client.tls.session.has_ticket
