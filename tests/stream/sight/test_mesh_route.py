"""``GET /mesh``: what this agent sees and what the others said, in one document that nobody's words can break."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import h11
import trio

from ca.http_client import exchange
from ca.http_server import HttpServer, Request, Response, json_response
from ca.manifests import Node
from node_agent.registry import Registry
from node_agent.report import Report
from node_agent.sight.collector import Collector
from node_agent.sight.own import OwnSight
from node_agent.sight.peers import NodePeers
from node_agent.sight.routes import mesh_routes
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.metrics import Metrics
from tests.certificates import TRUST_DOMAIN

NAME = 'a"b\\c\n\u202e</script>\x00'


class FakeReport:
    """What ``OwnSight`` asks of a Report."""

    def status(self) -> dict[str, object]:
        return {"node": "node-1", "source": NAME}

    def workloads(self) -> Iterator[dict[str, object]]:
        yield {"name": NAME, "namespace": "default", "local": True}
        yield {"name": "far", "namespace": "default", "local": False}

    def services(self) -> Iterator[dict[str, object]]:
        yield {"name": "web", "namespace": "default"}
        yield {"name": "gone", "namespace": "default"}

    def endpoints(self, service: str | None) -> list[dict[str, object]]:
        if service == "default/gone":
            raise LookupError
        return [{"service": service, "health": "healthy"}, {"service": service, "health": "ejected"}]


def sight(**changes: Any) -> OwnSight:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="node-1")
    for _ in range(3):
        with log.connection("outbound"):
            pass
    parts: dict[str, Any] = {
        "node": "node-1",
        "report": cast(Report, FakeReport()),
        "registry": Registry(TRUST_DOMAIN),
        "connections": lambda: [{"id": str(number)} for number in range(1000)],
        "recent": lambda: [{"id": "r", "detail": NAME}],
        "families": metrics.read,
        "certs": lambda: [{"identity": "spiffe://x/y"}],
        "utc_now": lambda: datetime(2026, 11, 22, tzinfo=UTC),
    }
    return OwnSight(**(parts | changes))


async def ask(server: HttpServer, target: str = "/mesh", **headers: str) -> tuple[int, dict[str, str], bytes]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, listeners)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            wanted = [("Host", "agent"), ("Connection", "close"), *headers.items()]
            request = h11.Request(method="GET", target=target, headers=wanted)
            answer = await exchange(stream, request, max_body_bytes=1 << 24)
        nursery.cancel_scope.cancel()
    return answer.status, dict(answer.headers), answer.body


async def test_the_document_is_whole_whatever_names_there_are() -> None:
    collector = Collector(
        node="node-1",
        trust_domain=TRUST_DOMAIN,
        port=None,
        nodes=lambda: [Node(name="node-2")],
        peers=cast(NodePeers, SimpleNamespace()),
    )
    await collector.collect()
    _, _, body = await ask(HttpServer(mesh_routes(node="node-1", own=sight(), collector=collector)))

    document = json.loads(body)
    assert [row["name"] for row in document["services"]] == ["web", "gone"]
    assert [row["service"] for row in document["endpoints"]] == ["default/web", "default/web"]
    assert [row["owner"] for row in document["workloads"]] == [NAME, "far"]
    assert [each["node"] for each in document["agents"]] == ["node-1", "node-2"]
    assert document["agents"][1]["sight"] is None
    own = json.loads(document["agents"][0]["sight"])
    assert own["status"]["source"] == NAME
    assert [row["name"] for row in own["workloads"]] == [NAME]
    assert [row["detail"] for row in own["recent"]] == [NAME]
    assert [row["health"] for row in own["unhealthy"]] == ["ejected"]
    assert sum(row["closed"] for row in own["edges"]) == 3
    assert len(own["connections"]) == 256  # bounded, as every list is


async def test_a_guard_sees_every_request_first_and_its_headers_go_with_every_answer() -> None:
    seen: list[str] = []

    def guard(request: Request) -> Response | None:
        seen.append(f"{request.path} {request.headers['host']} {request.headers.get('x-who')}")
        return json_response(403, {}) if request.path == "/closed" else None

    server = HttpServer(
        {"/open": {"GET": lambda _: json_response(200, {})}}, guard=guard, headers=(("X-Always", "here"),)
    )
    answers = [await ask(server, target, **{"X-Who": "me"}) for target in ("/open", "/closed", "/nowhere")]

    assert [status for status, _, _ in answers] == [200, 403, 404]
    assert [headers["x-always"] for _, headers, _ in answers] == ["here"] * 3
    assert seen == ["/open agent me", "/closed agent me", "/nowhere agent me"]
