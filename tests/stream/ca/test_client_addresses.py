"""An agent that knows several addresses of the CA gets its answer from whichever serves."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ca.client import CaClient
from ca.csr import build_csr, new_key
from ca.errors import CaRefused, CaUnreachable
from ca.messages import ALPN, RefusalCode, Refused
from ca.spiffe import SpiffeId
from ca.tls import strict_context
from ca.wire import FrameDecoder, encode_frame
from tests.authority_builder import TRUST_DOMAIN, Authority, attested, make_authority, serving, sign, workload

Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path)
    made.pod("web-1", node="node-1", account="web")
    return made


class FirstListed:
    """Draws so that the replica that is listed first is tried first."""

    def __init__(self) -> None:
        self.drawn = 0.0

    def random(self) -> float:
        self.drawn += 1.0
        return self.drawn


def client_of(authority: Authority, *ports: int, host: str = "127.0.0.1") -> CaClient:
    return CaClient(
        addresses=[(host, port) for port in ports],
        roots_pem=authority.config.bundle_file.read_bytes(),
        trust_domain=TRUST_DOMAIN,
        rng=FirstListed(),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def broken(behaviour: Behaviour) -> AsyncIterator[tuple[int, list[int]]]:
    """A listener that does ``behaviour`` with each connection; gives its port, and a list that grows with each."""
    met: list[int] = []

    async def handle(stream: trio.SocketStream) -> None:
        met.append(len(met))
        async with stream:
            await behaviour(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1], met
        nursery.cancel_scope.cancel()


async def closes(stream: trio.SocketStream) -> None:
    """As a replica that is killed while it shakes hands."""


async def hangs(stream: trio.SocketStream) -> None:
    """As a replica whose machine is stuck."""
    await trio.sleep_forever()


def closes_after_the_request(authority: Authority) -> Behaviour:
    return replies(authority, None)


def replies(authority: Authority, reply: Refused | None) -> Behaviour:
    """Prove to be the CA, take a request, and answer ``reply`` or hang up."""

    async def behave(stream: trio.SocketStream) -> None:
        own = authority.credentials(SpiffeId.authority(TRUST_DOMAIN))
        context = strict_context(server_side=True, roots=authority.hierarchy.roots, alpn=ALPN, own=own)
        context.verify_mode = ssl.CERT_OPTIONAL
        tls = trio.SSLStream(stream, context, server_side=True)
        await tls.do_handshake()
        decoder = FrameDecoder()
        while not decoder.feed(bytes(await tls.receive_some(65536))):
            pass
        if reply is not None:
            await tls.send_all(encode_frame(reply.to_wire()))

    return behave


async def test_a_replica_that_is_down_or_broken_is_passed_over(authority: Authority) -> None:
    unavailable = Refused(code=RefusalCode.UNAVAILABLE, text="the database is gone", retry_after_s=5.0)
    behaviours = [closes, closes_after_the_request(authority), replies(authority, unavailable)]
    async with serving(authority) as port:
        own = await attested(authority, authority.client(port), "node-1")
        for behaviour in behaviours:
            async with broken(behaviour) as (broken_port, met):
                client = client_of(authority, broken_port, port)
                assert len((await sign(client, own, workload("web"))).certificates) == 1
                assert len(met) == 1


async def test_a_replica_that_hangs_costs_a_request_two_seconds_and_the_next_one_nothing(authority: Authority) -> None:
    async with serving(authority) as port, broken(hangs) as (stuck, met):
        own = await attested(authority, authority.client(port), "node-1")
        client = client_of(authority, stuck, port)
        for _ in range(5):
            assert len((await sign(client, own, workload("web"))).certificates) == 1
        assert len(met) == 1


async def test_an_address_where_nobody_listens_is_passed_over(authority: Authority) -> None:
    async with broken(closes) as (nobody, _met):
        pass
    async with serving(authority) as port:
        bundle = await client_of(authority, nobody, port).bundle()
    assert bundle.trust_domain == TRUST_DOMAIN


class Names(trio.abc.HostnameResolver):
    """A name server that knows one name, with two addresses."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]  # noqa: PLR0917
        assert host == b"ca.test"
        kind = (trio.socket.AF_INET, trio.socket.SOCK_STREAM, trio.socket.IPPROTO_TCP)
        return [(*kind, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.1")]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


async def test_every_address_of_a_name_counts(authority: Authority) -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    async with serving(authority) as port:  # on 127.0.0.1 only
        bundle = await client_of(authority, port, host="ca.test").bundle()
    assert bundle.trust_domain == TRUST_DOMAIN


async def test_a_name_that_can_not_be_resolved_does_not_hide_the_other_addresses(authority: Authority) -> None:
    async with serving(authority) as port:
        client = CaClient(
            addresses=[("ca.invalid", 1), ("127.0.0.1", port)],
            roots_pem=authority.config.bundle_file.read_bytes(),
            trust_domain=TRUST_DOMAIN,
        )
        assert (await client.bundle()).trust_domain == TRUST_DOMAIN


async def test_a_join_token_that_may_have_been_used_is_not_tried_at_another_replica(authority: Authority) -> None:
    async with serving(authority) as port, broken(closes_after_the_request(authority)) as (broken_port, _met):
        client = client_of(authority, broken_port, port)
        csr = build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, "node-1"))
        with pytest.raises(CaUnreachable, match=f"port {broken_port}"):
            await client.attest(authority.token("node-1"), "node-1", csr)
    assert [each for each in authority.journal() if each.node == "node-1"] == []


async def test_a_join_token_is_tried_at_another_replica_when_the_first_never_got_it(authority: Authority) -> None:
    async with serving(authority) as port, broken(closes) as (broken_port, _met):
        await attested(authority, client_of(authority, broken_port, port), "node-1")


async def test_a_refusal_is_an_answer(authority: Authority) -> None:
    async with serving(authority) as port:
        own = await attested(authority, authority.client(port), "node-1")
        refused = Refused(code=RefusalCode.UNAUTHENTICATED, text="go away")
        async with broken(replies(authority, refused)) as (broken_port, _met):
            with pytest.raises(CaRefused, match="go away"):
                await sign(client_of(authority, broken_port, port), own, workload("web"))


async def test_when_none_serves_all_are_named(authority: Authority) -> None:
    async with broken(closes) as (first, _), broken(closes) as (second, _):
        with pytest.raises(CaUnreachable) as caught:
            await client_of(authority, first, second).bundle()
    assert f"port {first}" in str(caught.value)
    assert f"port {second}" in str(caught.value)


async def test_a_watch_is_opened_at_whichever_serves(authority: Authority) -> None:
    async with serving(authority) as port, broken(closes) as (broken_port, _met):
        own = await attested(authority, authority.client(port), "node-1")
        connection = await client_of(authority, broken_port, port).connect(own)
        await connection.close()
