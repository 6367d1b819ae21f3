"""The documents that the page asks for, made of what the agents said.

Sans-I/O.  Everything in them is data: names come from users, and partly from
other agents.  They leave as JSON, and the page writes them as text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from node_agent.dashboard.graph import Edge, Node, Places, edges_of, reports_of
from node_agent.dashboard.rates import Counters, Rates
from node_agent.dashboard.sights import Agent, Mesh, Row, number, text

Json = dict[str, Any]
Wanted = Callable[[str | None, str | None], bool]

_MAX_CONNECTIONS: Final = 100  # of one node or edge, live and ended each
_MAX_IDENTITIES: Final = 8  # of one node, for those who search; nearly all have one
_LATEST_DENIALS: Final = 20


class Picture:
    """The mesh at one moment; made anew for every answer of the agent."""

    def __init__(self, mesh: Mesh, rates: Rates) -> None:
        """``rates`` takes note of this moment."""
        self._mesh = mesh
        self._places = Places(mesh)
        rates.begin()
        reports = reports_of(mesh)
        read = [(each, rates.read(each.key, each.at, each.counters) if each.fresh else None) for each in reports]
        self._edges = edges_of(self._places, read)
        rates.record({name: edge.rate for name, edge in self._edges.items() if edge.rate is not None})
        self._rates = rates
        self._fresh = {each.node for each in mesh.agents if each.error is None and each.sight is not None}
        self._nodes_of_pods = {_pod(row): text(row.get("node")) for row in mesh.workloads}
        self._records = self._all_records()
        self._workload_errors = _errors_of(mesh.agents)
        self._unhealthy = _unhealthy_of(mesh.agents)

    def overview(self) -> Json:
        """The whole graph, without what is shown only when somebody asks."""
        return {
            "node": self._mesh.node,
            "agents": [{**_agent(each), "needed": self._is_needed(each)} for each in self._mesh.agents],
            "nodes": [self._node(each) for each in sorted(self._places.nodes.values(), key=lambda each: each.id)],
            "edges": [self._edge(each) for each in sorted(self._edges.values(), key=lambda each: each.id)],
            "denials": list(self._denials()),
        }

    def node(self, name: str) -> Json | None:
        """One node in detail; None if there is none of that id."""
        found = self._places.nodes.get(name)
        if found is None:
            return None
        identities = _identities(found)
        workloads = [
            {**each, "agent": self._workload_errors.get(_pod(each), {"state": None, "error": None})}
            for each in found.workloads
        ]
        return {
            **self._node(found),
            "service": found.service,
            "endpoint_rows": [{**each, "unhealthy_at": self._complaints(each)} for each in found.endpoints],
            "workload_rows": workloads,
            "certificates": self._certificates(identities),
            "edges": [self._edge(each) for each in self._edges.values() if name in (each.source, each.target)],
            "live": list(self._live(lambda source, target: name in (source, target))),
            "recent": list(self._recent(lambda source, target: name in (source, target))),
        }

    def edge(self, name: str) -> Json | None:
        """One edge in detail; None if there is none of that id."""
        found = self._edges.get(name)
        if found is None:
            return None
        ends = (found.source, found.target)
        identities = {each for pair in found.identities for each in pair if each is not None}
        return {
            **self._edge(found),
            "identities": [
                {"source": source, "destination": target} for source, target in sorted(found.identities, key=repr)
            ],
            "flags": found.flags,
            "history": [_rate(each) for each in self._rates.history(name)],
            "certificates": self._certificates(identities),
            "live": list(self._live(lambda source, target: (source, target) == ends)),
            "recent": list(self._recent(lambda source, target: (source, target) == ends)),
        }

    def _node(self, node: Node) -> Json:
        enrolled = [row.get("enrolled") is True for row in node.workloads]
        ready = sum(row.get("ready") is True for row in node.endpoints)
        return {
            "id": node.id,
            "kind": node.kind,
            "namespace": node.namespace,
            "name": node.name,
            "endpoints": len(node.endpoints),
            "ready": ready,
            "workloads": len(node.workloads),
            "mesh": "all" if enrolled and all(enrolled) else "some" if any(enrolled) else "none",
            "health": self._health(node, ready),
            "identities": sorted(_identities(node))[:_MAX_IDENTITIES],
        }

    def _is_needed(self, agent: Agent) -> bool:
        """A node without an agent, and without anybody who would need one, is no gap in the picture."""
        return agent.sight is not None or any(
            row.get("node") == agent.node and row.get("enrolled") is True for row in self._mesh.workloads
        )

    def _health(self, node: Node, ready: int) -> str:
        """``unknown``: there is nothing that could be well or ill."""
        if any(self._workload_errors.get(_pod(row), {}).get("error") for row in node.workloads):
            return "degraded"
        if node.kind != "service" or node.service is None:
            return "unknown"
        if ready == 0:
            return "down"
        ill = ready < len(node.endpoints) or any(self._complaints(row) for row in node.endpoints)
        return "degraded" if ill else "ok"

    def _edge(self, edge: Edge) -> Json:
        history = self._rates.history(edge.id)
        return {
            "id": edge.id,
            "source": edge.source,
            "target": edge.target,
            "security": edge.security,
            "open": edge.open_now,
            "total": _rate(edge.total),
            "rate": None if edge.rate is None else _rate(edge.rate),
            # A denial of a moment ago is what people open this page for.
            "denied_lately": any(each.denied > 0 for each in history),
            "failed_lately": any(each.failed > 0 for each in history),
        }

    def _complaints(self, endpoint: Row) -> list[str]:
        return self._unhealthy.get((text(endpoint.get("service")), text(endpoint.get("address"))), [])

    def _certificates(self, identities: Iterable[str]) -> list[Json]:
        wanted = set(identities)
        found: list[Json] = []
        for agent in self._mesh.agents:
            for row in agent.sight.lists["certs"] if agent.sight is not None else ():
                if text(row.get("identity")) in wanted:
                    found.append({**row, "agent": agent.node})
        return sorted(found, key=lambda row: (str(row.get("identity")), row["agent"]))

    def _live(self, wanted: Wanted) -> Iterator[Json]:
        rows = [
            {**row, "agent": agent.node}
            for agent in self._mesh.agents
            if agent.sight is not None and agent.error is None
            for row in agent.sight.lists["connections"]
            if wanted(*self._ends_of_live(row)) and not self._is_told_by_source(row, text(row.get("source")))
        ]
        rows.sort(key=lambda row: number(row.get("age_s")))
        yield from rows[:_MAX_CONNECTIONS]

    def _ends_of_live(self, row: Row) -> tuple[str | None, str | None]:
        source = self._places.of_pod(text(row.get("source")))
        service = text(row.get("service"))
        if service is not None:
            return source, f"service/{service.rpartition(':')[0]}"
        return source, self._by_address(text(row.get("endpoint")) or text(row.get("original_destination")))

    def _by_address(self, address: str | None) -> str | None:
        ip = (address or "").rpartition(":")[0].strip("[]")
        return next(
            (
                self._places.of_pod(_pod(row))
                for row in self._mesh.workloads
                if isinstance(addresses := row.get("addresses"), list) and ip in addresses
            ),
            None,
        )

    def _recent(self, wanted: Wanted) -> Iterator[Json]:
        rows = [row for row in self._records if wanted(*self._ends_of_record(row))]
        yield from rows[:_MAX_CONNECTIONS]

    def _denials(self) -> Iterator[Json]:
        rows = [row for row in self._records if row.get("response_flags") == "DENY"]
        for row in rows[:_LATEST_DENIALS]:
            source, target = self._ends_of_record(row)
            yield {**row, "source": source, "target": target}

    def _all_records(self) -> list[Json]:
        """Newest first, one a connection."""
        found = [
            {**row, "agent": agent.node}
            for agent in self._mesh.agents
            if agent.sight is not None
            for row in agent.sight.lists["recent"]
            if not self._is_told_by_source(row, text(row.get("source_workload")))
        ]
        return sorted(found, key=lambda row: str(row.get("time")), reverse=True)

    def _is_told_by_source(self, row: Row, pod: str | None) -> bool:
        """Both agents of a tunnel have its connections; the source's knows the service."""
        if row.get("direction") != "inbound" or row.get("source_identity") is None:
            return False
        return pod is not None and self._nodes_of_pods.get(pod) in self._fresh

    def _ends_of_record(self, row: Row) -> tuple[str | None, str | None]:
        source = self._places.of_pod(text(row.get("source_workload")))
        service = text(row.get("service"))
        target = (
            f"service/{service.rpartition(':')[0]}"
            if service is not None
            else self._places.of_pod(text(row.get("destination_workload")))
        )
        return source, target


def _agent(agent: Agent) -> Json:
    status: Mapping[str, Any] = agent.sight.status if agent.sight is not None else {}
    connections = status.get("connections")
    return {
        "node": agent.node,
        "error": agent.error,
        "heard": agent.sight is not None,
        "ready": status.get("ready"),
        "draining": status.get("draining"),
        "version": status.get("version"),
        "uptime_s": status.get("uptime_s"),
        "reasons": status.get("reasons") or [],
        "warnings": status.get("warnings") or [],
        "ca": status.get("ca") or {},
        "open": number(connections.get("open")) if isinstance(connections, Mapping) else 0,
        "certificates": agent.sight.lists["certs"] if agent.sight is not None else [],
    }


def _errors_of(agents: Iterable[Agent]) -> dict[str, Json]:
    """State and error of each pod, as the agent of its node has it."""
    return {
        _pod(row): {"state": row.get("state"), "error": row.get("error")}
        for agent in agents
        if agent.sight is not None
        for row in agent.sight.lists["workloads"]
    }


def _unhealthy_of(agents: Iterable[Agent]) -> dict[tuple[str | None, str | None], list[str]]:
    """Which agents think ill of an endpoint, and what."""
    found: dict[tuple[str | None, str | None], list[str]] = {}
    for agent in agents:
        for row in agent.sight.lists["unhealthy"] if agent.sight is not None and agent.error is None else ():
            key = (text(row.get("service")), text(row.get("address")))
            why = text(row.get("why"))
            said = f"{agent.node}: {text(row.get('health')) or 'unhealthy'}"
            found.setdefault(key, []).append(f"{said} ({why})" if why else said)
    return found


def _identities(node: Node) -> set[str]:
    return {identity for row in (*node.endpoints, *node.workloads) if (identity := text(row.get("identity")))}


def _pod(row: Row) -> str:
    return f"{row.get('namespace')}/{row.get('name')}"


def _rate(counters: Counters) -> Json:
    return {name: round(value, 3) for name, value in counters._asdict().items()}
