"""Who is a node of the picture, and which counters are one edge of it.

Sans-I/O.  A node is a service, or the workloads of one owner (a Deployment, a
StatefulSet, a Job, a pod) that serve none, or whoever is outside.  An edge is all
connections from one node to another, whoever reports them.

Both agents of a connection report it.  The source's word is taken where there is
one, because it knows the service; the destination's where there is none: the
source is not in the mesh, or its agent is away.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from node_agent.dashboard.rates import NOTHING, Counters
from node_agent.dashboard.sights import Mesh, Row, number, text

OUTSIDE_IN: Final = "outside/clients"
OUTSIDE_OUT: Final = "outside/elsewhere"
_FINE: Final = frozenset({"-", "CUT"})  # what is cut when an agent is drained is nobody's failure
_DENIED: Final = "DENY"


@dataclass(slots=True, kw_only=True)
class Node:
    """One box of the picture."""

    id: str
    kind: str  # service, external, workload, outside
    namespace: str
    name: str
    service: Row | None = None
    workloads: list[Row] = field(default_factory=list)
    endpoints: list[Row] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Edge:
    """One line of the picture; ``rate`` is None while nothing is measured."""

    source: str
    target: str
    total: Counters = NOTHING
    rate: Counters | None = None
    open_now: int = 0
    secured: bool = False
    plaintext: bool = False
    lane: bool = False
    flags: dict[str, float] = field(default_factory=dict)
    identities: set[tuple[str | None, str | None]] = field(default_factory=set)

    @property
    def id(self) -> str:
        """Names it between two pictures."""
        return f"{self.source}>{self.target}"

    @property
    def security(self) -> str:
        """``none`` and ``mixed`` only where plaintext was seen; ``unknown`` where nothing was carried yet.

        ``lane``: within a node, some of it past the agent, judged by the kernel on both proven identities.
        """
        if self.plaintext:
            return "mixed" if self.secured or self.lane else "none"
        if self.lane:
            return "lane"
        return "mutual_tls" if self.secured else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one agent says of one pair, as read; ``key`` names it between two rounds."""

    node: str
    at: float
    fresh: bool
    row: Row
    key: tuple[str, ...]
    counters: Counters


class Places:
    """Which node of the picture a workload, or a service, is."""

    def __init__(self, mesh: Mesh) -> None:
        self.nodes: dict[str, Node] = {}
        self._by_owner: dict[str, str] = {}
        self._by_pod: dict[str, str] = {}
        for row in mesh.services:
            self._add_service(row)
        backing: dict[str, str] = {}
        for row in mesh.endpoints:
            service = text(row.get("service"))
            node = self.nodes.get(f"service/{service}")
            if node is not None:
                node.endpoints.append(row)
                pod = text(row.get("workload"))
                if pod is not None:
                    backing[pod] = min(node.id, backing.get(pod, node.id))
        for row in mesh.workloads:
            self._add_workload(row, backing)

    def of_pod(self, pod: str | None) -> str | None:
        """The node of ``namespace/pod``."""
        return None if pod is None else self._by_pod.get(pod)

    def of_owner(self, owner: str | None) -> str | None:
        """The node of ``namespace/owner``, made if it is not in the registry any more."""
        if owner is None:
            return None
        found = self._by_owner.get(owner)
        if found is None:
            namespace, _, name = owner.partition("/")
            found = self._by_owner[owner] = f"workload/{owner}"
            self.nodes.setdefault(found, Node(id=found, kind="workload", namespace=namespace, name=name))
        return found

    def of_service(self, service: str | None) -> str | None:
        """The node of ``namespace/service``, made if it is not in the registry any more."""
        if service is None:
            return None
        found = f"service/{service}"
        namespace, _, name = service.partition("/")
        self.nodes.setdefault(found, Node(id=found, kind="service", namespace=namespace, name=name))
        return found

    def outside(self, place: str) -> str:
        """One of the two nodes that stand for whoever is not known."""
        name = "unknown clients" if place == OUTSIDE_IN else "elsewhere"
        self.nodes.setdefault(place, Node(id=place, kind="outside", namespace="", name=name))
        return place

    def _add_service(self, row: Row) -> None:
        namespace, name = text(row.get("namespace")), text(row.get("name"))
        if namespace is None or name is None:
            return
        kind = "external" if row.get("kind") == "ServiceEntry" else "service"
        found = f"service/{namespace}/{name}"
        self.nodes.setdefault(found, Node(id=found, kind=kind, namespace=namespace, name=name, service=row))

    def _add_workload(self, row: Row, backing: Mapping[str, str]) -> None:
        namespace, name = text(row.get("namespace")), text(row.get("name"))
        if namespace is None or name is None:
            return
        pod, owner = f"{namespace}/{name}", f"{namespace}/{text(row.get('owner')) or name}"
        place = backing.get(pod)
        if place is not None:
            self._by_owner[owner] = min(place, self._by_owner.get(owner, place))
        else:
            place = self.of_owner(owner)
            assert place is not None
        self._by_pod[pod] = place
        self.nodes[place].workloads.append(row)


def reports_of(mesh: Mesh) -> list[Report]:
    """What all agents say of all pairs, each pair by one reporter."""
    found: list[Report] = []
    for agent in mesh.agents:
        if agent.sight is not None:
            for row in agent.sight.lists["edges"]:
                found.append(_report(agent.node, agent.sight.at, agent.error is None, row))
    by_source = {_pair(each.row) for each in found if each.row.get("reporter") == "source"}
    return [each for each in found if each.row.get("reporter") == "source" or _pair(each.row) not in by_source]


def edges_of(places: Places, reports: Iterable[tuple[Report, Counters | None]]) -> dict[str, Edge]:
    """Put the reports together, each with its rate, by the nodes that they lead from and to."""
    edges: dict[str, Edge] = {}
    for report, rate in reports:
        row = report.row
        source = places.of_owner(text(row.get("source"))) or places.outside(OUTSIDE_IN)
        target = (
            places.of_service(text(row.get("service")))
            or places.of_owner(text(row.get("destination")))
            or places.outside(OUTSIDE_OUT)
        )
        edge = edges.setdefault(f"{source}>{target}", Edge(source=source, target=target))
        edge.total = edge.total.plus(report.counters)
        if report.fresh:
            edge.open_now += max(0, int(number(row.get("opened")) - number(row.get("closed"))))
            if rate is not None:
                edge.rate = rate if edge.rate is None else edge.rate.plus(rate)
        for flag, count in _flags(row):
            edge.flags[flag] = edge.flags.get(flag, 0) + count
        if row.get("security") == "mutual_tls":
            edge.secured = True
        elif _is_lane(row):
            edge.lane = True
        elif row.get("reporter") == "destination" or _carried(row):
            edge.plaintext = True
        edge.identities.add((text(row.get("source_identity")), text(row.get("destination_identity"))))
    return edges


def _report(node: str, at: float, fresh: bool, row: Row) -> Report:
    names = ("reporter", "source", "source_identity", "destination", "destination_identity", "service", "security")
    flags = dict(_flags(row))
    denied = flags.get(_DENIED, 0)
    counters = Counters(
        opened=number(row.get("opened")),
        sent_bytes=number(row.get("sent_bytes")),
        received_bytes=number(row.get("received_bytes")),
        denied=denied,
        failed=sum(count for flag, count in flags.items() if flag not in _FINE) - denied,
    )
    key = (node, *(text(row.get(name)) or "" for name in names))
    return Report(node=node, at=at, fresh=fresh, row=row, key=key, counters=counters)


def _pair(row: Row) -> tuple[object, ...]:
    return (*(text(row.get(name)) for name in ("source", "destination", "security")), _is_lane(row))


def _is_lane(row: Row) -> bool:
    """Whether connections went by the same-node lane: nothing else has both identities without mutual TLS."""
    both = text(row.get("source_identity")) and text(row.get("destination_identity"))
    return row.get("security") != "mutual_tls" and bool(both) and _carried(row)


def _flags(row: Row) -> Iterator[tuple[str, float]]:
    flags = row.get("flags")
    for flag, count in flags.items() if isinstance(flags, Mapping) else ():
        yield flag, number(count)


def _carried(row: Row) -> bool:
    """Whether connections of this row came about: those that failed before say nothing of how they would have gone."""
    closed_well = dict(_flags(row)).get("-", 0)
    return closed_well > 0 or number(row.get("opened")) > number(row.get("closed"))
