"""An agent for the command line to ask: it answers what it is told, over a real unix socket."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATUS: dict[str, Any] = {
    "node": "node1",
    "trust_domain": "cluster.local",
    "version": "0.1.0",
    "pid": 42,
    "uptime_s": 3725.4,
    "ready": False,
    "reasons": ["CA is not reachable"],
    "draining": False,
    "registry": {
        "source": "/etc/ringfence/manifests",
        "digest": "0123456789abcdef",
        "revision": 7,
        "objects": {"Pod": 3, "Service": 1},
        "problems": [{"file": "bad.yaml", "document": 2, "line": 4, "path": "spec.ports[0]", "reason": "\x1b[2J?"}],
        "conflicts": ["address 10.0.0.1 is claimed twice"],
        "skipped": ["ConfigMap default/x"],
    },
    "connections": {"open": 2, "total": 90},
    "tunnels": {"idle": 4, "busy": 2},
    "ca": {"reachable": False, "last_error": "refused"},
}
ANSWERS: dict[str, Any] = {
    "/status": STATUS,
    "/workloads": [
        {
            "name": "web",
            "namespace": "default",
            "node": "node1",
            "identity": "spiffe://cluster.local/ns/default/sa/web",
            "addresses": ["10.0.0.1", "fd00::1"],
            "enrolled": True,
            "local": True,
            "state": "serving",
            "error": None,
        }
    ],
    "/services": [
        {
            "name": "web",
            "namespace": "default",
            "cluster_ips": ["10.248.0.1"],
            "ports": [{"name": "http", "port": 80}, {"name": "", "port": 90}],
            "load_balancing": "least-latency",
            "endpoints": 3,
            "ready": 2,
        }
    ],
    "/endpoints": [
        {
            "service": "default/web",
            "port": 80,
            "address": "10.0.0.1:8080",
            "workload": "default/web",
            "identity": None,
            "ready": True,
            "health": "ejected",
            "why": "consecutive connect failures",
            "ejected_for_s": 12.3,
            "weight": 1.0,
            "open_connections": 5,
            "latency_ms": 0.42,
        }
    ],
    "/connections": [
        {"id": "b", "direction": "outbound", "age_s": 1, "sent_bytes": 2048, "received_bytes": 5, "state": "open"},
        {"id": "a", "direction": "inbound", "age_s": 90, "sent_bytes": 0, "received_bytes": 5, "state": "opening"},
    ],
    "/certs": [],
}


class FakeAgent(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.answers: dict[str, Any] = dict(ANSWERS)
        self.raw: bytes | None = None
        super().__init__(path, Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeAgent

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.server.requests.append((self.command, self.path, body))
        if self.server.raw is not None:
            self.wfile.write(self.server.raw)
            return
        answer = json.loads(body) if body else self.server.answers.get(self.path.partition("?")[0])
        answer = answer() if callable(answer) else answer
        status = 200
        if "nope" in self.path:
            status, answer = 404, {"error": "no service default/nope"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_agent(directory: Path) -> Iterator[FakeAgent]:
    """One that runs, on ``agent.sock`` in ``directory``."""
    with FakeAgent(str(directory / "agent.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(60)
