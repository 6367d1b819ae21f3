"""What an agent sees, asked by the agent of another node over real TLS, and by whom it is refused."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
import trio

from ca.manifests import Node
from ca.tls import KeyAndChain
from ca.trust import Revocation, RevocationKind
from node_agent.identity.trust import TrustStore
from node_agent.sight import collector as collecting
from node_agent.sight.collector import Collector
from node_agent.sight.endpoint import SightEndpoint
from node_agent.sight.peers import NodePeers
from node_agent.telemetry.metrics import Metrics
from tests.certificates import START, TRUST_DOMAIN, Leaf, make_root

AT = START + timedelta(minutes=10)
ROOT = make_root()
NODE_1 = ROOT.leaf(f"spiffe://{TRUST_DOMAIN}/ringfence/node/node-1")
NODE_2 = ROOT.leaf(f"spiffe://{TRUST_DOMAIN}/ringfence/node/node-2")
POD = ROOT.leaf(f"spiffe://{TRUST_DOMAIN}/ns/default/sa/web")


class Agent:
    """The parts of one agent that tell and ask."""

    def __init__(self, own: Leaf | None, *, node: str = "node-2", answer: Sequence[bytes] = (b'{"node":"node-2"}',)):
        self.own: KeyAndChain | None = None if own is None else own.own
        self.node = node
        self.answer = answer
        self.trust = TrustStore(trust_domain=TRUST_DOMAIN, roots=[ROOT.certificate])
        self.peers = NodePeers(own=lambda: self.own, trust=self.trust, utc_now=lambda: AT)
        self.metrics = Metrics()
        self.endpoint = SightEndpoint(
            peers=self.peers, trust=self.trust, document=self._document, prepare=None, metrics=self.metrics
        )

    def _document(self) -> Iterator[bytes]:
        yield from self.answer

    def refused(self) -> float:
        family = next(each for each in self.metrics.read() if each.name == "ringfence_sight_refused_total")
        return next(iter(family.samples)).value

    def revoke(self, node: str, serial: int) -> None:
        revocation = Revocation(
            kind=RevocationKind.NODE, value=node, at=AT, until=None, why="stolen", serials=(serial,)
        )
        trust = self.trust.trust
        self.trust.take(replace(trust, version=trust.version + 1, revocations=(revocation,)))

    def collector(self, *others: Node, port: int | None) -> Collector:
        return Collector(node=self.node, trust_domain=TRUST_DOMAIN, port=port, nodes=lambda: others, peers=self.peers)

    async def ask(self, *others: Node, port: int | None) -> list[dict[str, str | None]]:
        collector = self.collector(*others, port=port)
        await collector.collect()
        rows: list[dict[str, str | None]] = json.loads(b"[" + b"".join(collector.rows()) + b"]")
        return rows


def manifest(name: str, *addresses: str, trust_domain: str = "") -> Node:
    return Node(name=name, addresses=addresses or ("127.0.0.1",), trust_domain=trust_domain)


@asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[int]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.endpoint.run, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_the_agent_of_another_node_is_answered() -> None:
    async with serving(Agent(NODE_2)) as port:
        rows = await Agent(NODE_1, node="node-1").ask(manifest("node-2"), manifest("node-1"), port=port)

    assert rows == [{"node": "node-2", "sight": '{"node":"node-2"}', "error": None}]


@pytest.mark.parametrize(
    "asking",
    [
        pytest.param(POD, id="the certificate of a workload"),
        pytest.param(ROOT.leaf(f"spiffe://{TRUST_DOMAIN}/ringfence/ca"), id="the certificate of the CA"),
        pytest.param(make_root().leaf(f"spiffe://{TRUST_DOMAIN}/ringfence/node/node-1"), id="another root"),
        pytest.param(
            ROOT.leaf(f"spiffe://{TRUST_DOMAIN}/ringfence/node/node-1", not_after=AT - timedelta(minutes=5)),
            id="expired",
        ),
        pytest.param(ROOT.leaf("spiffe://other.example/ringfence/node/node-1"), id="a node of another trust domain"),
    ],
)
async def test_nobody_else_is_answered(asking: Leaf) -> None:
    server = Agent(NODE_2)
    async with serving(server) as port:
        rows = await Agent(asking, node="node-1").ask(manifest("node-2"), port=port)

    assert rows[0]["sight"] is None
    assert rows[0]["error"] is not None
    assert server.refused() == 1


async def test_plain_http_is_not_answered() -> None:
    server = Agent(NODE_2)
    async with serving(server) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"GET /sight HTTP/1.1\r\nHost: node-2\r\n\r\n")
            answer = b""
            try:
                while part := await stream.receive_some(1024):
                    answer += part
            except trio.BrokenResourceError:
                pass

    assert b"HTTP" not in answer
    assert b"node-2" not in answer
    assert server.refused() == 1


async def test_a_revoked_node_neither_asks_nor_is_believed() -> None:
    server, client = Agent(NODE_2), Agent(NODE_1, node="node-1")
    server.revoke("node-1", NODE_1.certificate.serial_number)
    async with serving(server) as port:
        assert (await client.ask(manifest("node-2"), port=port))[0]["sight"] is None

    server, client = Agent(NODE_2), Agent(NODE_1, node="node-1")
    client.revoke("node-2", NODE_2.certificate.serial_number)
    async with serving(server) as port:
        row = (await client.ask(manifest("node-2"), port=port))[0]
    assert row["sight"] is None
    assert "issued to node node-2, which is revoked" in str(row["error"])


async def test_revocation_ends_a_conversation_that_has_begun() -> None:
    server, client = Agent(NODE_2), Agent(NODE_1, node="node-1")
    async with serving(server) as port:
        transport = await trio.open_tcp_stream("127.0.0.1", port)
        tls = await client.peers.dial(transport, node="node-2")
        await tls.send_all(b"GET /sight HTTP/1.1\r\nHost: node-2\r\n\r\n")
        assert await tls.receive_some(1 << 16)

        server.revoke("node-1", NODE_1.certificate.serial_number)
        try:
            while await tls.receive_some(1 << 16):
                pass
        except trio.BrokenResourceError:
            pass
        assert server.refused() == 0
        await trio.aclose_forcefully(tls)


async def test_who_answers_for_another_node_is_not_believed() -> None:
    async with serving(Agent(NODE_2)) as port:
        row = (await Agent(NODE_1, node="node-1").ask(manifest("node-3"), port=port))[0]

    assert row["sight"] is None
    assert "it is spiffe://cluster.local/ringfence/node/node-2, not " in str(row["error"])


async def test_without_a_certificate_of_our_own_nothing_is_asked_or_told() -> None:
    server = Agent(None)
    async with serving(server) as port:
        row = (await Agent(NODE_1, node="node-1").ask(manifest("node-2"), port=port))[0]
        assert row["sight"] is None
        row = (await Agent(None, node="node-1").ask(manifest("node-2"), port=port))[0]
    assert row["error"] == f"127.0.0.1:{port}: this node has no valid certificate"


async def test_each_agent_that_can_not_be_asked_says_why_and_the_others_are_shown() -> None:
    client = Agent(NODE_1, node="node-1")
    async with serving(Agent(NODE_2)) as port:
        rows = await client.ask(
            manifest("node-2"),
            manifest("node-3", "127.0.0.9"),
            Node(name="node-4"),
            manifest("node-5", trust_domain="other.example"),
            port=port,
        )
    errors = {row["node"]: row["error"] for row in rows}

    assert errors["node-2"] is None
    assert errors["node-3"] == f"127.0.0.9:{port}: can not connect: Connection refused"
    assert errors["node-4"] == "its Node manifest has no InternalIP in status.addresses"
    assert "node-5" not in errors  # of another mesh
    assert (await client.ask(manifest("node-2"), port=None))[0]["error"] == (
        "agents are not asked: [listen] sight is off at this agent"
    )


async def test_an_answer_that_is_too_long_or_not_text_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Agent(NODE_1, node="node-1")
    async with serving(Agent(NODE_2, answer=(b"\xff\xfe",))) as port:
        assert "something else than UTF-8" in str((await client.ask(manifest("node-2"), port=port))[0]["error"])
    monkeypatch.setattr(collecting, "_MAX_BYTES", 1000)
    async with serving(Agent(NODE_2, answer=[b"x" * 100] * 11)) as port:
        assert "more than 1000 bytes" in str((await client.ask(manifest("node-2"), port=port))[0]["error"])


async def test_all_answers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_MAX_ALL_BYTES", 10)
    async with serving(Agent(NODE_2)) as port:
        row = (await Agent(NODE_1, node="node-1").ask(manifest("node-2"), port=port))[0]

    assert row["error"] == "left out: all answers together are longer than 10 bytes"


async def test_an_agent_that_says_nothing_does_not_hold_up_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_AGENT_S", 0.2)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with listeners[0]:
        row = (await Agent(NODE_1, node="node-1").ask(manifest("node-2"), port=port))[0]

    assert row["error"] == "no answer within 0.2 s"


async def test_who_asks_twice_within_a_second_gets_the_same() -> None:
    client = Agent(NODE_1, node="node-1")
    server = Agent(NODE_2)
    async with serving(server) as port:
        collector = client.collector(manifest("node-2"), port=port)
        await collector.collect()
        server.answer = (b'"later"',)
        await collector.collect()

    assert b"later" not in b"".join(collector.rows())
