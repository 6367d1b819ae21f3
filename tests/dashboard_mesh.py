"""A mesh that does not exist, told as an agent would tell it: for tests of the dashboard without a lab.

    mesh = FakeMesh()
    mesh.service("shop/web", pods=2)
    mesh.talks("shop/cart", "shop/web", opened=5.0)
    with FakeAgent(mesh) as agent:
        ...  # `ringfence dashboard --agent agent.socket`

Counters grow with the time that passes, so that there are rates.
"""

import json
import random
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

TRUST_DOMAIN: Final = "cluster.local"


@dataclass(slots=True)
class Talk:
    """Connections a second from one workload to one service, of which ``denied`` are."""

    source: str
    target: str
    opened: float
    denied: float
    failed: float
    bytes_each: float
    security: str
    node: str


@dataclass(slots=True)
class FakeMesh:
    """Two nodes; pods of a service are spread over both."""

    clock: Callable[[], float] = time.time
    services: dict[str, int] = field(default_factory=dict)
    not_ready: set[str] = field(default_factory=set)
    clients: dict[str, bool] = field(default_factory=dict)
    talks_: list[Talk] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    records: list[Json] = field(default_factory=list)
    began: float = field(default_factory=time.time)

    def service(self, name: str, *, pods: int = 2, ready: bool = True) -> None:
        self.services[name] = pods
        if not ready:
            self.not_ready.add(name)

    def client(self, name: str, *, enrolled: bool = True) -> None:
        self.clients[name] = enrolled

    def talks(
        self,
        source: str,
        target: str,
        *,
        opened: float = 1.0,
        denied: float = 0.0,
        failed: float = 0.0,
        bytes_each: float = 1000.0,
        security: str = "mutual_tls",
        node: str = "node-1",
    ) -> None:
        self.talks_.append(Talk(source, target, opened, denied, failed, bytes_each, security, node))

    def record(self, source: str, service: str, *, close_reason: str = "ok", flag: str = "-", detail: str = "") -> None:
        at = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.records.append(
            {
                "time": at,
                "id": f"node-1-aaaaaa-{len(self.records)}",
                "direction": "outbound",
                "source_address": "10.0.1.9:41234",
                "source_workload": f"{source}-0",
                "source_identity": identity(source),
                "original_destination": "10.1.0.1:80",
                "service": f"{service}:80",
                "endpoint": "10.0.2.7:8080",
                "destination_workload": f"{service}-0",
                "destination_identity": identity(service),
                "connection_security_policy": "mutual_tls",
                "sent_bytes": 1200,
                "received_bytes": 300,
                "duration_ms": 12.5,
                "connect_ms": 1.5,
                "attempts": 1,
                "policy": None if flag == "-" else f"{service.partition('/')[0]}/callers",
                "close_reason": close_reason,
                "response_flags": flag,
                "detail": detail,
            }
        )

    def document(self) -> Json:
        """The answer to ``GET /mesh`` at this moment."""
        nodes = ["node-1", "node-2"]
        return {
            "node": "node-1",
            "services": [self._service(name, pods) for name, pods in self.services.items()],
            "endpoints": [row for name, pods in self.services.items() for row in self._endpoints(name, pods)],
            "workloads": list(self._workloads()),
            "agents": [
                {"node": node, "error": self.missing.get(node), "sight": None}
                if node in self.missing
                else {"node": node, "error": None, "sight": json.dumps(self.sight(node))}
                for node in nodes
            ],
        }

    def sight(self, node: str) -> Json:
        """What one agent sees."""
        return {
            "node": node,
            "at": self.clock(),
            "status": {
                "node": node,
                "ready": True,
                "draining": False,
                "reasons": [],
                "warnings": [],
                "version": "0.1.0",
                "uptime_s": self.clock() - self.began,
                "connections": {"open": 3, "total": 4000},
                "ca": {"reachable": True, "last_error": None},
            },
            "workloads": [{**row, "state": "serving"} for row in self._workloads() if row["node"] == node],
            "certs": [_cert(f"spiffe://{TRUST_DOMAIN}/ringfence/node/{node}")]
            + [_cert(each) for each in sorted({row["identity"] for row in self._workloads() if row["node"] == node})],
            "edges": [self._edge(talk) for talk in self.talks_ if talk.node == node],
            "connections": [],
            "recent": self.records if node == "node-1" else [],
            "unhealthy": [],
        }

    def _service(self, name: str, pods: int) -> Json:
        namespace, _, short = name.partition("/")
        ready = 0 if name in self.not_ready else pods
        return {
            "name": short,
            "namespace": namespace,
            "kind": "Service",
            "cluster_ips": ["10.1.0.1"],
            "hosts": [],
            "ports": [{"name": "http", "port": 80}],
            "load_balancing": "least-latency",
            "endpoints": pods,
            "ready": ready,
        }

    def _endpoints(self, name: str, pods: int) -> list[Json]:
        return [
            {
                "service": name,
                "port": 80,
                "address": f"10.0.{number % 2 + 1}.{number + 2}:8080",
                "workload": f"{name}-{number}",
                "identity": identity(name),
                "ready": name not in self.not_ready,
                "health": "healthy",
                "why": None,
                "ejected_for_s": None,
                "weight": 1.0,
                "open_connections": 1,
                "latency_ms": 1.25,
            }
            for number in range(pods)
        ]

    def _workloads(self) -> list[Json]:
        rows = [
            _workload(name, number, enrolled=True) for name, pods in self.services.items() for number in range(pods)
        ]
        return rows + [_workload(name, 0, enrolled=enrolled) for name, enrolled in self.clients.items()]

    def _edge(self, talk: Talk) -> Json:
        passed = self.clock() - self.began + 10
        # Fractions of a connection, so that rates are exact however often somebody looks.
        opened, denied, failed = talk.opened * passed, talk.denied * passed, talk.failed * passed
        plain = talk.security == "none"
        return {
            "reporter": "destination" if plain else "source",
            "source": talk.source,
            "source_identity": None if plain else identity(talk.source),
            "destination": talk.target,
            "destination_identity": identity(talk.target),
            "service": None if plain else talk.target,
            "security": "none" if talk.security == "lane" else talk.security,
            "opened": opened,
            "closed": opened,
            "sent_bytes": talk.bytes_each * max(0, opened - denied - failed),
            "received_bytes": 120 * opened,
            "flags": {"-": opened - denied - failed, "DENY": denied, "CONNECT": failed},
        }


def identity(name: str) -> str:
    namespace, _, account = name.partition("/")
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}"


def _workload(name: str, number: int, *, enrolled: bool) -> Json:
    namespace, _, short = name.partition("/")
    return {
        "name": f"{short}-{number}",
        "owner": short,
        "namespace": namespace,
        "node": f"node-{number % 2 + 1}",
        "identity": identity(name),
        "addresses": [f"10.0.{number % 2 + 1}.{number + 2}"],
        "enrolled": enrolled,
        "local": False,
        "state": "remote",
        "error": None,
    }


def _cert(name: str) -> Json:
    at = datetime.now(UTC)
    return {
        "identity": name,
        "serial": "3f2a99c0d17e",
        "not_before": at.isoformat(),
        "not_after": (at + timedelta(minutes=52)).isoformat(),
        "state": "valid",
        "last_error": None,
    }


def big_mesh(services: int, *, namespaces: int = 10, seed: int = 6) -> FakeMesh:
    """A mesh of tiers: each service asks a few of those below it, most of them in its own namespace."""
    rng = random.Random(seed)
    mesh = FakeMesh()
    names = [f"team-{number % namespaces:02d}/service-{number:03d}" for number in range(services)]
    for name in names:
        mesh.service(name, pods=rng.choice((1, 2, 2, 3)), ready=rng.random() > 0.02)
    for number, name in enumerate(names):
        team = name.partition("/")[0]
        below = names[number + 1 : number + 60]
        own = [each for each in below if each.partition("/")[0] == team]
        # Others are asked through their front door only, and teams stand in an order, as in most companies.
        doors = [each for each in names[:namespaces] if each.partition("/")[0] > team]
        for _ in range(rng.choice((0, 1, 2, 3))):
            choices = own if rng.random() < 0.75 else doors[:3]
            if choices:
                denied = 2.0 if rng.random() < 0.02 else 0.0
                opened = max(denied, round(rng.paretovariate(1.2), 2))
                target, size = rng.choice(choices), rng.choice((300, 3000, 30000))
                mesh.talks(name, target, opened=opened, denied=denied, bytes_each=size)
    return mesh


class FakeAgent:
    """Answers ``GET /mesh`` on a unix socket; use as a context manager.  ``answer`` may be replaced at any time."""

    def __init__(self, mesh: FakeMesh, socket: Path) -> None:
        self.socket = socket
        self.answer: Callable[[], object] = mesh.document
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(agent.answer()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = socketserver.ThreadingUnixStreamServer(str(socket), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> "FakeAgent":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
