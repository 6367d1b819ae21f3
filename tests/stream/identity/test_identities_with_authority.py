"""The identity part of an agent against a real authority, over real TLS."""

import random
import ssl
from pathlib import Path

import pytest
import trio

from ca.client import CaClient
from ca.errors import CaUnreachable
from ca.messages import ALPN
from ca.spiffe import SpiffeId
from ca.tls import strict_context
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Identities, NodeCredentials, NodeKeyStore, join_token_from, peer_identity
from node_agent.identity.identities import utc_now
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, serving, workload
from tests.certificates import make_root, pem
from tests.handshakes import shake_hands, trusting


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


def identities(directory: Path, client: CaClient, *, token: str, wait_s: float = 5.0) -> Identities:
    (directory / "token").write_text(token)
    (directory / "node-passphrase").write_text("correct horse")
    rng = random.Random(7)
    node = NodeCredentials(
        node="node-1",
        trust_domain=TRUST_DOMAIN,
        ca=client,
        key_store=NodeKeyStore(directory=directory / "node", passphrase_file=directory / "node-passphrase"),
        proof=join_token_from(directory / "token"),
        utc_now=utc_now,
        rng=rng,
    )
    return Identities(ca=client, node=node, identity_wait_s=wait_s, rng=rng)


async def test_a_join_token_becomes_svids_and_svids_become_a_tunnel(tmp_path: Path, authority: Authority) -> None:
    authority.pod("web", node="node-1", account="web")
    authority.pod("cart", node="node-1", account="cart")
    web, cart = workload("web"), workload("cart")
    async with serving(authority) as port, trio.open_nursery() as nursery:
        agent = identities(tmp_path, authority.client(port), token=authority.token("node-1"))
        await nursery.start(agent.run)
        agent.set_wanted(frozenset({web, cart}))
        ours, theirs = await agent.wait_for(web), await agent.wait_for(cart)
        client, server = shake_hands(ours.client_context, theirs.server_context)
        assert (client.error, server.error) == (None, None)
        assert peer_identity(client.tls, bundles=trusting(*authority.hierarchy.roots), at=utc_now()).identity == cart
        assert peer_identity(server.tls, bundles=trusting(*authority.hierarchy.roots), at=utc_now()).identity == web
        assert agent.ready() == (True, "")
        assert [entry["state"] for entry in agent.status()] == ["valid"] * 3
        assert {record.identity for record in authority.journal()} >= {
            str(web),
            str(cart),
            str(SpiffeId.node(TRUST_DOMAIN, "node-1")),
        }
        nursery.cancel_scope.cancel()


async def test_an_agent_that_restarts_needs_no_second_token(tmp_path: Path, authority: Authority) -> None:
    authority.pod("web", node="node-1", account="web")
    async with serving(authority) as port:
        for token in (authority.token("node-1"), "used up"):
            async with trio.open_nursery() as nursery:
                agent = identities(tmp_path, authority.client(port), token=token)
                await nursery.start(agent.run)
                agent.set_wanted(frozenset({workload("web")}))
                await agent.wait_for(workload("web"))
                while not (tmp_path / "node" / "node.pem").exists():
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


async def test_an_agent_that_starts_before_its_authority_catches_up(tmp_path: Path, authority: Authority) -> None:
    authority.pod("web", node="node-1", account="web")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    async with trio.open_nursery() as nursery:
        agent = identities(tmp_path, authority.client(port), token=authority.token("node-1"), wait_s=0.5)
        await nursery.start(agent.run)
        agent.set_wanted(frozenset({workload("web")}))
        while f"port {port}: Connection refused" not in agent.ready()[1]:
            await trio.sleep(0.01)
        with pytest.raises(ConnectionFailure) as caught:
            await agent.wait_for(workload("web"))
        assert caught.value.reason is CloseReason.IDENTITY_UNAVAILABLE
        assert f"port {port}: Connection refused" in caught.value.detail
        config_file = authority.config_file
        config_file.write_text(config_file.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        fixed = Authority(
            config=type(authority.config).load(config_file), config_file=config_file, hierarchy=authority.hierarchy
        )
        async with serving(fixed):
            with trio.fail_after(30):
                while not agent.ready()[0]:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


async def test_a_workload_that_is_not_placed_here_is_refused_and_the_others_are_not(
    tmp_path: Path, authority: Authority
) -> None:
    authority.pod("web", node="node-1", account="web")
    authority.pod("cart", node="node-2", account="cart")
    async with serving(authority) as port, trio.open_nursery() as nursery:
        agent = identities(tmp_path, authority.client(port), token=authority.token("node-1"), wait_s=0.8)
        await nursery.start(agent.run)
        agent.set_wanted(frozenset({workload("web"), workload("cart")}))
        while agent.current(workload("web")) is None:
            await trio.sleep(0.01)
        assert (await agent.wait_for(workload("web"))).identity == workload("web")
        with pytest.raises(ConnectionFailure, match="not_scheduled"):
            await agent.wait_for(workload("cart"))
        assert "not_scheduled" in agent.ready()[1]

        authority.pod("cart", node="node-1", account="cart")
        with trio.fail_after(30):
            while not agent.ready()[0]:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_a_ca_that_our_bundle_does_not_vouch_for_is_never_told_the_token(
    tmp_path: Path, authority: Authority
) -> None:
    async with serving(authority) as port:
        client = CaClient(
            addresses=[("127.0.0.1", port)], roots_pem=pem(make_root().certificate), trust_domain=TRUST_DOMAIN
        )
        with pytest.raises(CaUnreachable, match="not to be trusted"):
            await client.bundle()


async def test_a_workload_that_poses_as_the_ca_is_found_out(tmp_path: Path, authority: Authority) -> None:
    """Its certificate is from the right root; only the identity tells."""
    context = strict_context(
        server_side=True,
        roots=authority.hierarchy.roots,
        alpn=ALPN,
        own=authority.credentials(workload("web")),
    )
    context.verify_mode = ssl.CERT_NONE
    seen: list[bytes] = []

    async def pose(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        try:
            await tls.do_handshake()
            seen.append(bytes(await tls.receive_some()))
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, pose, [listener])
        client = authority.client(listener.socket.getsockname()[1])
        with pytest.raises(CaUnreachable, match="has not a CA's certificate"):
            await client.attest("secret", "node-1", b"x")
        nursery.cancel_scope.cancel()
    assert not any(seen)


async def test_a_ca_that_accepts_and_never_answers_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.client._DEADLINE_S", 0.2)

    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, say_nothing, [listener])
        client = authority.client(listener.socket.getsockname()[1])
        with pytest.raises(CaUnreachable, match=r"did not answer within 0\.2 s"):
            await client.bundle()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_ca_that_speaks_something_else_is_unreachable(authority: Authority, answer: bytes) -> None:
    async def speak(stream: trio.SocketStream) -> None:
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, speak, [listener])
        client = authority.client(listener.socket.getsockname()[1])
        with pytest.raises(CaUnreachable):
            await client.bundle()
        nursery.cancel_scope.cancel()
