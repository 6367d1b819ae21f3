"""What is compared: for each peer, where its clients run and connect, and which processes it consists of."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from bench import envoy, haproxy
from bench.certificates import Certificates
from bench.testbed import APPLICATIONS, BenchError, Pod, Testbed

PEERS: Final = ("direct", "ringfence", "envoy", "haproxy")
# Below ip_local_port_range, so that no connection has one of them as its source port.
_FIRST_PORT: Final = {"envoy": 10100, "haproxy": 10200}


class Configuration(Protocol):
    """Writes a proxy's configuration."""

    def __call__(self, *, listen: dict[str, int], to: dict[str, tuple[str, int]]) -> str: ...


class Peer(Protocol):
    """One way from a client to the application."""

    name: str
    client: Pod
    server: Pod
    tls_port: int | None

    def target(self, application: str) -> tuple[str, int]:
        """Where the client connects to reach ``http``, ``echo`` or ``bulk``."""

    def processes(self) -> dict[str, int]:
        """Process numbers, by what the process does (``outbound``, ``inbound``)."""

    def restart(self) -> None:
        """Start its processes anew, for an account of memory that nothing came before."""


class Direct:
    """No proxy: the client connects to the application."""

    def __init__(self, testbed: Testbed) -> None:
        self.name = "direct"
        self.client, self.server = testbed.pods["plain-client"], testbed.pods["plain-server"]
        self.tls_port: int | None = None

    def target(self, application: str) -> tuple[str, int]:
        return self.server.ipv4, APPLICATIONS[application]

    def processes(self) -> dict[str, int]:
        return {}

    def restart(self) -> None:
        pass


class Ringfence:
    """The client connects to the application and is captured; agents on both nodes.

    ``server`` may be a pod outside of the mesh, which the agent relays to in plaintext.
    """

    def __init__(self, testbed: Testbed, *, server: str = "rf-server") -> None:
        self.name = "ringfence"
        self.client, self.server = testbed.pods["rf-client"], testbed.pods[server]
        self.tls_port: int | None = 15008
        self._testbed = testbed
        self._pids = self._find()

    def target(self, application: str) -> tuple[str, int]:
        return self.server.ipv4, APPLICATIONS[application]

    def processes(self) -> dict[str, int]:
        return self._pids

    def restart(self) -> None:
        for node in sorted({self.client.node, self.server.node}):
            self._testbed.lab("restart", f"agent-{node}")
        self._pids = self._find()

    def _find(self) -> dict[str, int]:
        agents = {each["node"]: each["pid"] for each in self._testbed.status()["agents"]}
        return {"outbound": agents[self.client.node], "inbound": agents[self.server.node]}


class ProxyPair:
    """Two proxies: one on loopback in the client's pod, one in the server's, mutual TLS between them."""

    def __init__(
        self,
        testbed: Testbed,
        name: str,
        *,
        outbound: Configuration,
        inbound: Configuration,
        command: Callable[[Path], list[str]],
        suffix: str,
    ) -> None:
        self.name = name
        self.client, self.server = testbed.pods["plain-client"], testbed.pods["plain-server"]
        self._testbed = testbed
        self._command = command
        first = _FIRST_PORT[name]
        self._listen = {application: first + number for number, application in enumerate(APPLICATIONS)}
        mutual_tls = {application: first + 10 + number for number, application in enumerate(APPLICATIONS)}
        self.tls_port: int | None = mutual_tls["http"]
        self._inbound_ports = list(mutual_tls.values())
        self._files = [testbed.directory / f"{name}-{side}{suffix}" for side in ("outbound", "inbound")]
        texts = (
            outbound(listen=self._listen, to={each: (self.server.ipv4, port) for each, port in mutual_tls.items()}),
            inbound(listen=mutual_tls, to={each: ("127.0.0.1", port) for each, port in APPLICATIONS.items()}),
        )
        for path, text in zip(self._files, texts, strict=True):
            path.write_text(text)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._start()

    def target(self, application: str) -> tuple[str, int]:
        return "127.0.0.1", self._listen[application]

    def processes(self) -> dict[str, int]:
        return {side: process.pid for side, process in self._running.items()}

    def restart(self) -> None:
        for process in self._running.values():
            self._testbed.stop(process)
        self._start()

    def _start(self) -> None:
        outbound, inbound = map(self._command, self._files)
        self._running = {
            "inbound": self._testbed.start(self.server, inbound, ports=self._inbound_ports),
            "outbound": self._testbed.start(self.client, outbound, ports=list(self._listen.values())),
        }


def start(testbed: Testbed, name: str, certificates: Certificates, *, envoy_binary: Path | None) -> Peer:
    """Start a peer by name."""
    if name == "direct":
        return Direct(testbed)
    if name == "ringfence":
        return Ringfence(testbed)
    if name == "envoy":
        assert envoy_binary is not None
        return ProxyPair(
            testbed,
            name,
            outbound=partial(envoy.outbound_config, certificates),
            inbound=partial(envoy.inbound_config, certificates),
            command=lambda config: envoy.command(envoy_binary, config),
            suffix=".json",
        )
    if name == "haproxy":
        return ProxyPair(
            testbed,
            name,
            outbound=partial(haproxy.outbound_config, certificates, testbed.max_connections),
            inbound=partial(haproxy.inbound_config, certificates, testbed.max_connections),
            command=haproxy.command,
            suffix=".cfg",
        )
    raise BenchError(f"no peer {name!r}; there are {', '.join(PEERS)}")


def require(peer: Peer, what: str, good: bool, told: object) -> None:
    """Raises: BenchError: not ``good``: a run with failures has no figures."""
    if not good:
        raise BenchError(f"{peer.name}: {what} failed: {told}")
