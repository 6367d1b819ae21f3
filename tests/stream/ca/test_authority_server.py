"""The authority over real TLS on loopback: who gets what, and what happens to everybody else."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509

from ca.authority import server as server_module
from ca.authority import worker as worker_module
from ca.authority.limits import LimitSettings
from ca.client import load_chain
from ca.csr import build_csr, new_key
from ca.errors import CaRefused, CaUnreachable
from ca.messages import GetBundle, RefusalCode, Refused, SignRequest, SignWorkloads, parse_reply
from ca.spiffe import SpiffeId
from ca.svid import identity_of
from ca.tls import strict_context
from ca.wire import MAX_FRAME_BYTES, FrameDecoder, encode_frame
from tests.authority_builder import (
    TRUST_DOMAIN,
    Authority,
    attested,
    connected,
    make_authority,
    serving,
    sign,
    tcp,
    workload,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@contextmanager
def refused(code: RefusalCode) -> Iterator[pytest.ExceptionInfo[CaRefused]]:
    with pytest.raises(CaRefused) as caught:
        yield caught
    assert caught.value.code == code


def node_csr(node: str) -> bytes:
    return build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, node))


async def replies(stream: trio.SSLStream[trio.SocketStream]) -> list[Refused]:
    """Everything that comes until the other side closes."""
    decoder, found = FrameDecoder(), []
    try:
        while data := await stream.receive_some(65536):
            found += [parse_reply(fields) for fields in decoder.feed(bytes(data))]
    except trio.BrokenResourceError:
        pass
    return [each for each in found if isinstance(each, Refused)]


async def ended(stream: trio.abc.ReceiveStream) -> bool:
    """Whether the other side closes, before the test's deadline, without a byte."""
    try:
        return await stream.receive_some(1) == b""
    except (trio.BrokenResourceError, ConnectionResetError):
        return True


async def test_a_token_buys_a_node_certificate_which_buys_workload_certificates(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    async with serving(authority) as port:
        client = authority.client(port)
        node = await attested(authority, client, "node-1")
        reply = await sign(client, node, workload("web"))

    assert identity_of(node.chain[0]) == SpiffeId.node(TRUST_DOMAIN, "node-1")
    leaf = load_chain(reply.certificates[0].chain_der)[0]
    assert identity_of(leaf) == workload("web")
    assert reply.trust_domain == TRUST_DOMAIN
    journal = {each.identity: each for each in authority.journal()}
    assert journal[str(workload("web"))].serial == leaf.serial_number
    assert journal[str(workload("web"))].node == "node-1"
    assert journal[str(workload("web"))].requester.startswith("127.0.0.1:")
    assert journal["spiffe://cluster.local/ringfence/node/node-1"].attestation == "join_token"
    assert journal["spiffe://cluster.local/ringfence/ca"].attestation == "self"


async def test_a_token_is_good_once(authority: Authority) -> None:
    async with serving(authority) as port:
        client, token = authority.client(port), authority.token("node-1")
        await client.attest(token, "node-1", node_csr("node-1"))
        with refused(RefusalCode.TOKEN_INVALID) as refusal:
            await client.attest(token, "node-1", node_csr("node-1"))
    assert "used already" in refusal.value.text


async def test_of_many_who_use_one_token_at_once_one_gets_a_certificate(authority: Authority) -> None:
    async with serving(authority) as port:
        client, token = authority.client(port), authority.token("node-1")
        outcomes: list[str] = []

        async def attest() -> None:
            try:
                await client.attest(token, "node-1", node_csr("node-1"))
                outcomes.append("issued")
            except CaRefused as exc:
                outcomes.append(exc.code)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(attest)

    assert sorted(outcomes) == ["issued"] + [RefusalCode.TOKEN_INVALID] * 7
    assert len([each for each in authority.journal() if each.node == "node-1"]) == 1


async def test_a_token_that_expired_or_is_anothers_buys_nothing_and_is_not_used_up(authority: Authority) -> None:
    async with serving(authority) as port:
        client = authority.client(port)
        with refused(RefusalCode.TOKEN_INVALID):
            await client.attest(authority.token("node-1", expires_in_s=-1), "node-1", node_csr("node-1"))
        token = authority.token("node-1")
        with refused(RefusalCode.TOKEN_INVALID):
            await client.attest(token, "node-2", node_csr("node-2"))
        await client.attest(token, "node-1", node_csr("node-1"))


async def test_a_request_with_a_bad_csr_does_not_use_the_token_up(authority: Authority) -> None:
    async with serving(authority) as port:
        client, token = authority.client(port), authority.token("node-1")
        with refused(RefusalCode.BAD_CSR):
            await client.attest(token, "node-1", node_csr("node-2"))
        await client.attest(token, "node-1", node_csr("node-1"))


async def test_a_csr_for_anothers_identity_is_refused_and_the_others_are_signed(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    authority.pod("db-1", node="node-1", account="db")
    async with serving(authority) as port:
        requests = [
            SignRequest(identity=workload("web"), csr_der=build_csr(new_key(), workload("db"))),
            SignRequest(identity=workload("db"), csr_der=build_csr(new_key(), workload("db"))),
        ]
        reply = await authority.client(port).sign(requests, authority.node_credentials("node-1"))

    first, second = reply.certificates
    assert first.error is not None
    assert first.error.code is RefusalCode.BAD_CSR
    assert second.chain_der


async def test_a_stolen_node_certificate_gets_nothing_of_another_node(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    authority.pod("db-1", node="node-2", account="db")
    async with serving(authority) as port:
        asked = (workload("db"), SpiffeId.node(TRUST_DOMAIN, "node-2"), SpiffeId.authority(TRUST_DOMAIN))
        reply = await sign(authority.client(port), authority.node_credentials("node-1"), *asked)

    assert [each.error.code for each in reply.certificates if each.error] == [RefusalCode.NOT_SCHEDULED] * 3
    assert [each for each in authority.journal() if each.node == "node-1"] == []


async def test_a_workloads_certificate_can_ask_for_nothing(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    async with serving(authority) as port:
        client, own = authority.client(port), authority.credentials(workload("web"))
        with refused(RefusalCode.UNAUTHENTICATED):
            await sign(client, own, workload("web"))
        with refused(RefusalCode.UNAUTHENTICATED):
            await client.renew_node(node_csr("node-1"), own)


async def test_without_a_node_certificate_nothing_is_signed(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    async with serving(authority) as port, connected(authority, port) as stream:
        request = SignRequest(identity=workload("web"), csr_der=build_csr(new_key(), workload("web")))
        await stream.send_all(encode_frame(SignWorkloads(requests=(request,)).to_wire()))
        decoder, arrived = FrameDecoder(), list[dict[str, object]]()
        while not arrived:
            arrived = decoder.feed(bytes(await stream.receive_some(65536)))
    reply = parse_reply(arrived[0])
    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.UNAUTHENTICATED


async def test_a_node_renews_only_itself(authority: Authority) -> None:
    async with serving(authority) as port:
        client, own = authority.client(port), authority.node_credentials("node-1")
        renewed = await client.renew_node(node_csr("node-1"), own)
        assert renewed.certificates[0].identity == SpiffeId.node(TRUST_DOMAIN, "node-1")
        with refused(RefusalCode.BAD_CSR):
            await client.renew_node(node_csr("node-2"), own)


async def test_an_expired_node_certificate_is_refused_with_its_dates_and_the_authoritys_time(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=1))
    expired = authority.node_credentials("node-1", at=datetime.now(UTC) - timedelta(hours=2))
    async with serving(authority) as port:
        with pytest.raises(CaRefused, match=r"expired(: valid from .* to| at) .*, and it is .* here") as caught:
            await authority.client(port).renew_node(node_csr("node-1"), expired)
    assert caught.value.code == RefusalCode.UNAUTHENTICATED


@pytest.mark.parametrize("off_s", [-59, 59])
async def test_a_node_certificate_is_taken_within_the_tolerance_of_clocks(tmp_path: Path, off_s: int) -> None:
    """It ended 59 s ago, or begins in 59 s: 60 s are granted either way."""
    authority = make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=1))
    at = datetime.now(UTC)
    issued_at = at - timedelta(hours=1) if off_s < 0 else at + timedelta(seconds=60)  # not_before is set back by 60 s
    own = authority.node_credentials("node-1", at=issued_at + timedelta(seconds=off_s + (1 if off_s < 0 else -1)))
    async with serving(authority) as port:
        renewed = await authority.client(port).renew_node(node_csr("node-1"), own)
        assert renewed.certificates[0].chain_der


async def test_a_node_certificate_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = make_authority(tmp_path / "other").node_credentials("node-1")
    async with serving(authority) as port:
        with pytest.raises(CaUnreachable):
            await authority.client(port).renew_node(node_csr("node-1"), stranger)


async def test_a_pod_that_appears_is_served_at_the_next_request(authority: Authority) -> None:
    async with serving(authority) as port:
        client, own = authority.client(port), authority.node_credentials("node-1")
        before = await sign(client, own, workload("web"))
        authority.pod("web-1", node="node-1", account="web")
        after = await sign(client, own, workload("web"))
    assert before.certificates[0].error is not None
    assert before.certificates[0].error.retry_after_s > 0
    assert after.certificates[0].chain_der


async def test_anybody_may_ask_for_the_bundle(authority: Authority) -> None:
    async with serving(authority) as port:
        bundle = await authority.client(port).bundle()
    assert tuple(x509.load_der_x509_certificate(der) for der in bundle.roots_der) == authority.hierarchy.roots
    assert bundle.sequence == 1


async def test_the_authority_proves_itself_with_its_own_identity(authority: Authority) -> None:
    async with serving(authority) as port, connected(authority, port) as stream:
        leaf = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))
        assert stream.version() == "TLSv1.3"
    assert identity_of(leaf) == SpiffeId.authority(TRUST_DOMAIN)


async def test_one_connection_serves_request_after_request(authority: Authority) -> None:
    async with serving(authority) as port, connected(authority, port) as stream:
        await stream.send_all(encode_frame(GetBundle().to_wire()) * 3)
        decoder, count = FrameDecoder(), 0
        while count < 3:
            count += len(decoder.feed(bytes(await stream.receive_some(65536))))


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\x02\x00" + b"\xff" * 600],
    ids=["http", "zeros", "broken-hello"],
)
async def test_garbage_on_the_port_ends_that_connection_only(authority: Authority, garbage: bytes) -> None:
    async with serving(authority) as port, tcp(port) as stream:
        await stream.send_all(garbage)
        try:
            while await stream.receive_some(1000):
                pass
        except trio.BrokenResourceError:
            pass
        await authority.client(port).bundle()


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        encode_frame({"type": "make_me_root"}),
        encode_frame({"type": "attest_with_token", "node": 3}),
        encode_frame({"type": "sign_workloads", "requests": [{"identity": "http://x", "csr": b"x"}]}),
    ],
    ids=["length", "msgpack", "type", "field", "identity"],
)
async def test_a_frame_that_is_no_request_is_refused_with_the_reason_and_closed(
    authority: Authority, frame: bytes
) -> None:
    async with serving(authority) as port, connected(authority, port) as stream:
        await stream.send_all(frame)
        found = await replies(stream)
        assert [each.code for each in found] == [RefusalCode.BAD_REQUEST]
        await authority.client(port).bundle()


async def test_who_has_not_proved_who_it_is_may_send_small_frames_only(authority: Authority) -> None:
    length = (MAX_FRAME_BYTES - 10).to_bytes(4, "big")
    async with serving(authority) as port, connected(authority, port) as anonymous:
        await anonymous.send_all(length)
        assert [each.code for each in await replies(anonymous)] == [RefusalCode.BAD_REQUEST]

        async with connected(authority, port, authority.node_credentials("node-1")) as node:
            await node.send_all(length)
            with trio.move_on_after(0.1) as waited:
                await node.receive_some(1)
            assert waited.cancelled_caught


@pytest.mark.parametrize("sends", [b"", b"\x16\x03\x01"], ids=["nothing", "half-a-header"])
async def test_a_silent_peer_is_dropped_in_the_handshake(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, sends: bytes
) -> None:
    monkeypatch.setattr(server_module, "_HANDSHAKE_TIMEOUT_S", 0.1)
    async with serving(authority) as port, tcp(port) as stream:
        await stream.send_all(sends)
        assert await ended(stream)


@pytest.mark.parametrize("sends", [b"", b"\x00\x00\x00\x10half"], ids=["nothing", "half-a-frame"])
async def test_a_peer_that_asks_nothing_is_dropped_after_the_handshake(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, sends: bytes
) -> None:
    monkeypatch.setattr(server_module, "_IDLE_TIMEOUT_S", 0.1)
    async with serving(authority) as port, connected(authority, port) as stream:
        await stream.send_all(sends)
        assert await replies(stream) == []


async def test_tls_below_1_3_is_refused(authority: Authority) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(authority) as port, tcp(port) as transport:
        stream = trio.SSLStream(transport, context)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert caught.value.__cause__.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


async def test_another_protocol_over_tls_is_not_answered(authority: Authority) -> None:
    context = strict_context(server_side=False, roots=authority.hierarchy.roots, alpn="http/1.1", own=None)
    async with serving(authority) as port, tcp(port) as transport:
        stream = trio.SSLStream(transport, context)
        await stream.send_all(encode_frame(GetBundle().to_wire()))
        assert await replies(stream) == []


async def test_more_connections_than_allowed_are_closed_and_the_others_served(
    authority: Authority,
) -> None:
    few = replace(authority, config=replace(authority.config, limits=LimitSettings(address_connections=2)))
    async with serving(few) as port, connected(authority, port) as first, connected(authority, port) as second:
        async with tcp(port) as third:
            assert await ended(third)
        for stream in (first, second):
            await stream.send_all(encode_frame(GetBundle().to_wire()))
            assert await stream.receive_some(65536)


async def test_a_request_too_many_is_told_when_to_come_again(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_PATIENCE_S", -1.0)  # whoever asks has waited too long already
    async with serving(authority) as port:
        with refused(RefusalCode.UNAVAILABLE) as refusal:
            await authority.client(port).bundle()
    assert 1 <= refusal.value.retry_after_s <= 5


async def test_ipv6_is_served_beside_ipv4(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free_port: int = probe.getsockname()[1]
    everywhere = replace(authority, config=replace(authority.config, host=None, port=free_port))
    async with serving(everywhere) as port:
        assert port == free_port
        for host in ("127.0.0.1", "::1"):
            async with tcp(port, host):
                pass
