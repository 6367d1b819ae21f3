"""Peers that are slow, silent or gone, in every state of a connection: they are dropped, and nobody waits for them."""

import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from ca.authority import server as server_module
from ca.authority.limits import LimitSettings
from ca.authority.logs import _LOGGER
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.messages import GetBundle, RefusalCode, SignWorkloads
from ca.spiffe import SpiffeId
from ca.tls import strict_context
from ca.wire import encode_frame
from tests.authority_builder import TRUST_DOMAIN, Authority, connected, make_authority, serving, sign_request, tcp


def node_csr(node: str) -> bytes:
    return build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, node))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def impatient_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that shake no hands: on a busy machine that takes longer."""
    monkeypatch.setattr(server_module, "_HANDSHAKE_TIMEOUT_S", 0.3)


@pytest.fixture
def impatient_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_IDLE_TIMEOUT_S", 1.0)


def limited(authority: Authority, **limits: int) -> Authority:
    return replace(authority, config=replace(authority.config, limits=LimitSettings(**limits)))


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append({"event": record.getMessage(), **getattr(record, "fields", {})})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]


@contextmanager
def logged() -> Iterator[_Lines]:
    lines, level = _Lines(), _LOGGER.level
    _LOGGER.addHandler(lines)
    _LOGGER.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        _LOGGER.removeHandler(lines)
        _LOGGER.setLevel(level)


def client_hello(authority: Authority) -> bytes:
    context = strict_context(server_side=False, roots=authority.hierarchy.roots, alpn="ringfence-ca/1", own=None)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


async def ended(stream: trio.abc.ReceiveStream) -> bool:
    """Whether the other side ends it, before the test's deadline."""
    try:
        while await stream.receive_some(65536):
            pass
    except (trio.BrokenResourceError, ConnectionResetError):
        pass
    return True


@asynccontextmanager
async def trickling(stream: trio.abc.SendStream, data: bytes) -> AsyncIterator[None]:
    """Send ``data`` byte by byte, faster than anybody gives up and slower than anybody would."""

    async def trickle() -> None:
        try:
            for number in range(len(data)):
                await stream.send_all(data[number : number + 1])
                await trio.sleep(0.02)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient_at_first")
async def test_a_hello_that_comes_byte_by_byte_is_not_waited_for(authority: Authority) -> None:
    async with serving(authority) as port, tcp(port) as stream:
        async with trickling(stream, client_hello(authority)):
            assert await ended(stream)


@pytest.mark.usefixtures("impatient_at_first")
async def test_half_a_hello_and_a_hello_that_is_not_followed_by_anything_end(authority: Authority) -> None:
    hello = client_hello(authority)
    async with serving(authority) as port, tcp(port) as half, tcp(port) as whole:
        await half.send_all(hello[: len(hello) // 2])
        await whole.send_all(hello)
        assert await ended(half)
        assert await ended(whole)


@pytest.mark.usefixtures("impatient_later")
async def test_a_request_that_comes_byte_by_byte_is_not_waited_for(authority: Authority) -> None:
    frame = encode_frame(sign_request("web", count=5).to_wire())
    with logged() as lines:
        async with (
            serving(authority) as port,
            connected(authority, port, authority.node_credentials("node-1")) as stream,
            trickling(stream, frame),
        ):
            assert await ended(stream)
    assert "did not arrive in full" in lines.of("refused")[0]["why"]


async def ask_for_ever(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(encode_frame(GetBundle().to_wire()) * 1000)


@pytest.mark.usefixtures("impatient_later")
async def test_who_does_not_read_its_replies_is_dropped(authority: Authority) -> None:
    """Requests one after the other, until the buffers are full and somebody has to wait."""
    everything = limited(authority, node_requests_a_minute=1_000_000)
    with logged() as lines:
        async with serving(everything) as port, tcp(port) as transport:
            transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            own = authority.node_credentials("node-1")
            context = strict_context(server_side=False, roots=authority.hierarchy.roots, alpn="ringfence-ca/1", own=own)
            stream = trio.SSLStream(transport, context)
            with pytest.raises(trio.BrokenResourceError):
                await ask_for_ever(stream)
    assert [each["why"] for each in lines.of("refused")] == ["the reply was not taken within 1 s"]


@pytest.mark.parametrize("says_hello", [True, False], ids=["hello", "nothing"])
async def test_peers_that_say_hello_or_nothing_do_not_keep_the_others_waiting(
    authority: Authority, says_hello: bool
) -> None:
    hello = client_hello(authority)
    async with serving(authority) as port, AsyncExitStack() as stack:
        for _ in range(60):  # more than have a turn at once
            stream = await stack.enter_async_context(tcp(port))
            if says_hello:
                await stream.send_all(hello)
        await authority.client(port).bundle()


async def test_unfinished_requests_of_all_together_are_bounded(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MAX_UNFINISHED_BYTES", 100_000)
    half = (500_000).to_bytes(4, "big") + bytes(60_000)
    async with serving(authority) as port:
        own = authority.node_credentials("node-1")
        async with connected(authority, port, own) as first, connected(authority, port, own) as second:
            await first.send_all(half)
            await second.send_all(half)
            async with trio.open_nursery() as nursery:
                one_ended = trio.Event()

                async def watch(stream: trio.abc.ReceiveStream) -> None:
                    await ended(stream)
                    one_ended.set()

                nursery.start_soon(watch, first)
                nursery.start_soon(watch, second)
                await one_ended.wait()
                nursery.cancel_scope.cancel()
        async with connected(authority, port, own) as third:  # what they held was given back
            await third.send_all(half)
            await authority.client(port).bundle()


async def test_who_asks_too_often_is_told_when_to_come_again_and_the_log_says_so_now_and_then(
    authority: Authority,
) -> None:
    strict = limited(authority, node_requests_a_minute=4)
    refusals: list[CaRefused] = []
    with logged() as lines:
        async with serving(strict) as port:
            client, own = authority.client(port), authority.node_credentials("node-1")
            for _ in range(60):
                try:
                    await client.renew_node(node_csr("node-1"), own)
                except CaRefused as exc:
                    refusals.append(exc)
            await client.renew_node(node_csr("node-2"), authority.node_credentials("node-2"))
    assert {each.code for each in refusals} == {RefusalCode.RATE_LIMITED}
    assert "node_requests_a_minute" in refusals[0].text
    assert all(each.retry_after_s > 0 for each in refusals)
    assert 0 < len(lines.of("over_limit")) < len(refusals)
    assert lines.of("over_limit")[0]["peer"] == "spiffe://cluster.local/ringfence/node/node-1"


async def test_tokens_can_not_be_guessed_fast(authority: Authority) -> None:
    codes = []
    async with serving(limited(authority, address_requests_a_minute=4)) as port:
        for number in range(8):
            with pytest.raises(CaRefused) as refusal:
                await authority.client(port).attest(f"rfjoin-{number:064x}", "node-1", node_csr("node-1"))
            codes.append(refusal.value.code)
        own = authority.node_credentials("node-1")
        await authority.client(port).renew_node(node_csr("node-1"), own)  # who has proved itself is not concerned
    assert codes == [RefusalCode.TOKEN_INVALID] + [RefusalCode.RATE_LIMITED] * 7


async def test_a_flood_of_connections_from_one_address_does_not_reach_another_nor_the_log(
    authority: Authority,
) -> None:
    with logged() as lines:
        async with serving(limited(authority, address_connections_a_minute=4)) as port:
            for _ in range(200):
                async with tcp(port) as stream:
                    await ended_or_open(stream)
            other = await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2")
            context = strict_context(
                server_side=False, roots=authority.hierarchy.roots, alpn="ringfence-ca/1", own=None
            )
            tls = trio.SSLStream(other, context, https_compatible=True)
            await tls.send_all(encode_frame(GetBundle().to_wire()))
            assert await tls.receive_some(65536)
            await trio.aclose_forcefully(tls)
    assert 0 < len(lines.of("connection_refused")) <= 20
    assert json.dumps(lines.events)


async def ended_or_open(stream: trio.SocketStream) -> None:
    with trio.move_on_after(0.005):
        await ended(stream)


async def test_a_node_has_so_many_connections_and_one_more_is_told(authority: Authority) -> None:
    async with serving(limited(authority, node_connections=2)) as port:
        own = authority.node_credentials("node-1")
        async with connected(authority, port, own), connected(authority, port, own):
            with pytest.raises(CaRefused) as refusal:
                await authority.client(port).renew_node(node_csr("node-1"), own)
            assert refusal.value.code == RefusalCode.RATE_LIMITED
            await authority.client(port).renew_node(node_csr("node-2"), authority.node_credentials("node-2"))
        await authority.client(port).renew_node(node_csr("node-1"), own)


async def test_a_greedy_node_does_not_starve_another(authority: Authority) -> None:
    for account in ("web", "db"):
        authority.pod(account, node=f"node-{account}", account=account)
    greedy_left = 8
    async with serving(authority) as port, trio.open_nursery() as nursery:
        begun = trio.Event()

        async def ask(request: SignWorkloads) -> None:
            nonlocal greedy_left
            async with connected(authority, port, authority.node_credentials("node-web")) as stream:
                await stream.send_all(encode_frame(request.to_wire()))
                begun.set()
                await stream.receive_some(1)
            greedy_left -= 1

        for _ in range(8):
            nursery.start_soon(ask, sign_request("web", count=200))
        await begun.wait()
        own = authority.node_credentials("node-db")
        async with connected(authority, port, own) as stream:
            await stream.send_all(encode_frame(sign_request("db", count=1).to_wire()))
            assert await stream.receive_some(1)
        assert greedy_left > 0
