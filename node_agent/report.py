"""What the operator's commands and the readiness probe are told about this agent.

The shapes are documented in docs/cli.md; telemetry/admin.py serves them.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import trio

from ca.manifests import DirectoryState, ExternalService, Service
from node_agent import __version__
from node_agent.balance import EndpointLoad
from node_agent.balance.tiers import weight_of
from node_agent.config import Config
from node_agent.drain import Drain
from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.model import Endpoint, ObjectName, ServicePort
from node_agent.proxy.pods import Pods
from node_agent.registry import Registry
from node_agent.telemetry.admin import AdminSources, Row
from node_agent.telemetry.log_levels import LogControl


class Loads(Protocol):
    """``Balancer``, or those of all workers."""

    def load_of(self, endpoint: Endpoint, now: float) -> EndpointLoad: ...


class TunnelCounts(Protocol):
    """``TunnelClient``, or those of all workers."""

    @property
    def idle_count(self) -> int: ...

    @property
    def busy_count(self) -> int: ...


class ConnectionCounts(Protocol):
    """``AccessLog``, or those of all workers."""

    @property
    def open_connections(self) -> int: ...

    @property
    def total_connections(self) -> int: ...

    def live(self) -> Iterable[Row]: ...

    def recent(self) -> Iterable[Row]: ...

    def archive(self) -> Iterable[bytes]: ...


class Report:
    """Reads the agent's parts; changes none but the log level."""

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        identities: Identities,
        trust: TrustStore,
        loads: Loads,
        pods: Pods,
        tunnels: TunnelCounts,
        connections: ConnectionCounts,
        drain: Drain,
        workers: Callable[[], Sequence[Row]],
        not_carrying: Callable[[], list[str]],
        log: LogControl,
        warnings: Callable[[], list[str]],
        at_connect: Callable[[ServicePort], tuple[bool, str]],
    ) -> None:
        """``workers`` are the rows of worker processes; ``not_carrying`` says why connections can not be served;
        ``at_connect`` whether the kernel balances a service."""
        self._config = config
        self._registry = registry
        self._identities = identities
        self._trust = trust
        self._loads = loads
        self._pods = pods
        self._tunnels = tunnels
        self._connections = connections
        self._drain = drain
        self._workers = workers
        self._not_carrying = not_carrying
        self._log = log
        self._warnings = warnings
        self._at_connect = at_connect
        self._started_at = time.monotonic()
        self.directory = DirectoryState()
        self.loaded_at: float | None = None

    def sources(self) -> AdminSources:
        """The callables that the HTTP routes ask."""
        return AdminSources(
            status=self.status,
            workloads=self.workloads,
            services=self.services,
            endpoints=self.endpoints,
            connections=self._connections.live,
            certs=self._identities.status,
            ready=self.ready,
            warnings=self._warnings,
            log_levels=self._log.describe,
            set_log_level=self._log.set,
        )

    def ready(self) -> tuple[bool, list[str]]:
        """Whether new connections of every local workload can be served, and what is in the way."""
        reasons = []
        if self._drain.begun.is_set():
            reasons.append("draining")
        if self.loaded_at is None:
            reasons.append("the manifests are not loaded yet")
        if self.directory.directory_problem is not None:
            # What was read last stays in force, but a new pod would not be noticed.
            problem = self.directory.directory_problem
            reasons.append(f"the manifests in {problem.file}: {problem.reason}")
        has_identities, why = self._identities.ready()
        if not has_identities:
            reasons.append(why)
        reasons += self._not_carrying()
        reasons += self._pods.pending()
        return not reasons, reasons

    def status(self) -> Row:
        ready, reasons = self.ready()
        kinds: dict[str, int] = {}
        for key in self.directory.objects:
            kinds[key.kind] = kinds.get(key.kind, 0) + 1
        return {
            "node": self._config.agent.node,
            "trust_domain": self._config.agent.trust_domain,
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started_at, 1),
            "ready": ready,
            "reasons": reasons,
            "warnings": self._warnings(),
            "draining": self._drain.begun.is_set(),
            "log_levels": self._log.describe(),
            "registry": {
                "source": str(self._config.registry.manifests_dir),
                "digest": self.directory.digest,
                "revision": self._registry.revision,
                "objects": kinds,
                "problems": [
                    {
                        "file": problem.file,
                        "document": problem.document,
                        "line": problem.line,
                        "path": problem.path,
                        "reason": problem.reason,
                    }
                    for problem in self.directory.problems
                ],
                "conflicts": list(self._registry.conflicts()),
                "skipped": list(self.directory.skipped),
            },
            "connections": {
                "open": self._connections.open_connections,
                "total": self._connections.total_connections,
            },
            "tunnels": {"idle": self._tunnels.idle_count, "busy": self._tunnels.busy_count},
            "workers": self._workers(),
            "trust": {
                "version": self._trust.version,
                "trust_domains": list(self._trust.bundles),
                "revocations": len(self._trust.trust.revocations),
            },
            "ca": {"reachable": self._identities.ca_error is None, "last_error": self._identities.ca_error},
        }

    def workloads(self) -> Iterator[Row]:
        node = self._config.agent.node
        for workload in list(self._registry.workloads()):
            state, error = "remote", None
            if not workload.enrolled:
                state = "not enrolled"
            elif workload.node == node:
                state, error = self._pods.state(workload.uid)
            yield {
                "name": workload.name.name,
                "namespace": workload.name.namespace,
                "uid": workload.uid,
                "node": workload.node,
                "identity": str(workload.identity),
                "labels": dict(workload.labels),
                "addresses": list(workload.addresses),
                "enrolled": workload.enrolled,
                "local": workload.node == node,
                "state": state,
                "error": error,
            }

    def services(self) -> Iterator[Row]:
        for service in self._every_service():
            kind, namespace, name = service.key
            is_external = isinstance(service, ExternalService)
            ports = [
                each
                for each in self._registry.service_ports(ObjectName(namespace, name))
                if (each.kind, each.is_external) == (kind, is_external)
            ]
            endpoints = {endpoint.key: endpoint for port in ports for endpoint in self._endpoints(port)}
            yield {
                "name": name,
                "namespace": namespace,
                "kind": kind,
                "cluster_ips": list(service.addresses if isinstance(service, ExternalService) else service.cluster_ips),
                "hosts": _hosts(service) if isinstance(service, ExternalService) else [],
                "egress_nodes": (
                    list(self._registry.egress_nodes(service)) if isinstance(service, ExternalService) else []
                ),
                "ports": [
                    {"name": port.name, "port": port.port, "at_connect": self._at_connect(port)[0]} for port in ports
                ],
                "load_balancing": str(self._registry.traffic(ports[0]).balancing.policy) if ports else None,
                "endpoints": len(endpoints),
                "ready": sum(endpoint.ready for endpoint in endpoints.values()),
            }

    def endpoints(self, service: str | None) -> Iterable[Row]:
        if service is None:
            names = list(dict.fromkeys(ObjectName(each.namespace, each.name) for each in self._every_service()))
        else:
            namespace, _, name = service.rpartition("/")
            names = [ObjectName(namespace or "default", name)]
            if not self._registry.is_service(names[0]):
                raise LookupError(f"no service {names[0]}{self._elsewhere(name)}; `ringfence services` lists them")
        return [row for name in names for port in self._registry.service_ports(name) for row in self._rows_of(port)]

    def _elsewhere(self, name: str) -> str:
        found = sorted(f"{each.namespace}/{each.name}" for each in self._every_service() if each.name == name)
        return f", but there is {' and '.join(found[:3])}" if found else ""

    def _every_service(self) -> list[Service | ExternalService]:
        return [*self._registry.services(), *self._registry.external_services()]

    def _rows_of(self, port: ServicePort) -> Iterator[Row]:
        traffic = self._registry.traffic(port)
        for endpoint in self._endpoints(port):
            workload, agent_of = endpoint.workload, endpoint.agent_of
            load = self._loads.load_of(endpoint, trio.current_time())
            yield {
                "service": str(port.service),
                "port": port.port,
                "address": str(endpoint.address),
                "workload": str(workload.name) if workload else None,
                "egress": str(endpoint.egress.name) if endpoint.egress else None,
                "identity": str(agent_of.identity) if agent_of and agent_of.enrolled else None,
                "ready": endpoint.ready,
                "health": load.health,
                "why": load.why,
                "ejected_for_s": None if load.ejected_for_s is None else round(load.ejected_for_s, 1),
                "weight": weight_of(endpoint, traffic),
                "open_connections": load.open_connections,
                "latency_ms": None if load.latency_s is None else round(load.latency_s * 1000, 3),
            }

    def _endpoints(self, port: ServicePort) -> Iterator[Endpoint]:
        yield from self._registry.endpoints(port, 4)
        yield from self._registry.endpoints(port, 6)


def _hosts(service: ExternalService) -> list[str]:
    """Every name and address that was declared, for people."""
    return list(dict.fromkeys((*service.hosts, *(each.host for each in service.endpoints))))
