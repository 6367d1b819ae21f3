"""The answer to "may this source connect to this destination, and why?" """

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from ca.manifests import AuthorizationPolicy, DirectoryState, Traffic
from ca.manifests.traffic import Limits, RateLimit
from node_agent.explanation.places import Places, Share, Source, Target
from node_agent.explanation.ways import Row, Way, Ways, describe
from node_agent.identity.trust import TrustStore
from node_agent.model import ServicePort
from node_agent.policy import PolicyEngine
from node_agent.registry import Registry

AtConnect = Callable[[ServicePort], tuple[bool, str]]
EndpointRows = Callable[[str | None], Iterable[Mapping[str, Any]]]

_ALLOWED: Final = "allowed"
_DENIED: Final = "denied"
_DEPENDS: Final = "depends"


class Explainer:
    """Reads what the data path reads.

    ``endpoint_rows`` are those of ``ringfence endpoints``; ``directory`` is what was read of the manifests;
    ``at_connect`` says whether the kernel balances a service on this node, and why not if it is asked to.
    """

    def __init__(
        self,
        *,
        node: str,
        registry: Registry,
        engine: PolicyEngine,
        trust: TrustStore,
        endpoint_rows: EndpointRows,
        directory: Callable[[], DirectoryState],
        registry_only: bool,
        at_connect: AtConnect = lambda _port: (False, ""),
    ) -> None:
        self._node = node
        self._registry = registry
        self._endpoint_rows = endpoint_rows
        self._directory = directory
        self._at_connect = at_connect
        self.places = Places(registry, registry_only=registry_only)
        self.ways = Ways(registry=registry, engine=engine, trust=trust)

    def explain(self, source_text: str, destination_text: str) -> Iterator[Row | None]:
        """The answer as JSON-able data (docs/cli.md), and before it None for each endpoint: others may have a turn.

        Raises UnknownPlace before that.
        """
        source = self.places.source(source_text)
        return self._explain(source, self.places.target(destination_text, source))

    def _explain(self, source: Source, target: Target) -> Iterator[Row | None]:
        versions = {":" in each for each in source.addresses}
        # A program that has no IPv6 address does not try: what would come of it is not asked either.
        reachable = [each for each in target.endpoints if (":" in each.address.ip) in versions] or target.endpoints
        ways: list[Way] = []
        for each in reachable:
            ways.append(self.ways.to(source, each))
            yield None
        yield self.answer(source, target, ways)

    def answer(self, source: Source, target: Target, ways: list[Way]) -> Row:
        """Put together what is known of a connection that may go these ways."""
        allowed = sum(way.reason is None for way in ways)
        verdict = _DENIED if not allowed else _ALLOWED if allowed == len(ways) else _DEPENDS
        rows = [row for share in target.shares for row in self._rows_of(share)]
        nodes = sorted({way.judge.node for way in ways if way.judge is not None})
        return {
            "verdict": verdict,
            "summary": _summary(verdict, source, target, ways, allowed),
            "node": self._node,
            "binding": all(each == self._node for each in nodes),
            "decided_on": nodes,
            "source": _source(source),
            "destination": {
                "asked": target.asked,
                "service": None if target.service is None else str(target.service),
                "kind": None if target.service is None else target.service.kind,
                "address": None if target.address is None else str(target.address),
                "port": target.port,
                "tcp_route": None if target.route is None else str(target.route),
                "backends": [{"service": str(each.service), "percent": each.percent} for each in target.shares],
            },
            "decisions": self._decisions(ways),
            "endpoints": rows,
            "traffic": [self._traffic(share, target.service or share.service) for share in target.shares],
            "problems": list(_problems(target, rows, ways)),
        }

    def _decisions(self, ways: list[Way]) -> list[Row]:
        """What is decided, with the endpoints where it is: the same once."""
        grouped: dict[str, dict[str, Any]] = {}
        file_of = self.file_of()
        for way in ways:
            row = describe(way, file_of=file_of)
            workload = way.endpoint.workload
            entry = grouped.setdefault(json.dumps(row), {**row, "endpoints": [], "workloads": []})
            entry["endpoints"].append(str(way.endpoint.address))
            if workload is not None and str(workload.name) not in entry["workloads"]:
                entry["workloads"].append(str(workload.name))
        return list(grouped.values())

    def _rows_of(self, share: Share) -> Iterable[Row]:
        service = share.service
        return [row for row in self._endpoint_rows(str(service.service)) if row["port"] == service.port]

    def _traffic(self, share: Share, asked: ServicePort) -> Row:
        """What restrains connections to a service port, when ``asked`` is connected to."""
        traffic: Traffic = self._registry.traffic(share.service)
        policy = self._registry.traffic_policy(share.service)
        is_balanced, why_not = self._at_connect(asked)
        return {
            "service": str(share.service),
            "policy": None if policy is None else f"{policy.namespace}/{policy.name}",
            "load_balancing": str(traffic.balancing.policy),
            "at_connect": {"balanced": is_balanced, "why_not": why_not or None} if is_balanced or why_not else None,
            "locality": str(traffic.locality.mode),
            "limits": _set(traffic.limits, Limits()),
            "rate_limit": _set(traffic.rate_limit, RateLimit()),
            "faults": [dataclasses.asdict(each) for each in traffic.faults],
            "health_check": None if traffic.health_check is None else dataclasses.asdict(traffic.health_check),
        }

    def file_of(self) -> Callable[[str], str | None]:
        """Where policies are written, by their names; looked up once for one answer."""
        files: dict[str, str] = {}
        for name, file in self._directory().files.items():
            for each in file.objects:
                if isinstance(each, AuthorizationPolicy):
                    files.setdefault(str(each), name)
        return files.get


def _set(value: Any, default: Any) -> Row:
    """The fields that are not the default's."""
    plain = dataclasses.asdict(default)
    return {key: each for key, each in dataclasses.asdict(value).items() if each != plain[key]}


def _source(source: Source) -> Row:
    workload = source.workload
    return {
        "workload": None if workload is None else str(workload.name),
        "addresses": list(source.addresses),
        "node": None if workload is None else workload.node,
        "enrolled": workload is not None and workload.enrolled,
        "identity": None if workload is None else str(workload.identity),
    }


def _summary(verdict: str, source: Source, target: Target, ways: list[Way], allowed: int) -> str:
    name = target.asked if target.service is None else str(target.service)
    if not ways:
        return f"{source.name} can not connect to {name}: {target.problem}"
    if verdict == _DEPENDS:
        return f"{source.name} may connect to {name} at {allowed} of {len(ways)} endpoints"
    may = "may" if verdict == _ALLOWED else "may not"
    return f"{source.name} {may} connect to {name}: {ways[0].detail.removeprefix(f'{verdict}: ')}"


def _problems(target: Target, rows: list[Row], ways: list[Way]) -> Iterable[str]:
    """What is in the way besides policies."""
    if target.problem is not None:
        yield target.problem
    if ways and rows and not any(row["ready"] for row in rows):
        yield "no endpoint is ready"
    elif ways and rows and not any(row["health"] == "healthy" for row in rows if row["ready"]):
        yield "no ready endpoint is healthy"
