"""Whom a pod may connect to without the agent: what makes a connection fit for the same-node lane.

Sans-I/O.  Asked after a connection has gone through the agent's ordinary path,
and answered for every endpoint that the next one might get: the kernel will
choose among them, and repeat nothing but that.  ``no`` is the default; whatever
only the agent can do keeps a connection with the agent.
"""

from collections.abc import Callable
from typing import Final

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.balance.tiers import Near
from node_agent.config import CAPTURE_PORTS
from node_agent.model import Endpoint, MtlsMode, OriginalDestination, ServicePort, Workload
from node_agent.policy import Request
from node_agent.proxy.only_the_agent import what_only_the_agent_does
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.routes import Route
from node_agent.registry import Registry

_LANE: Final = "lane"
_WEIGHT_OF_ALL: Final = 1 << 20


class LaneRules:
    """Judges.  ``is_trusted``: an identity is in use here and may have connections; ``default``: of the mesh."""

    def __init__(
        self,
        *,
        registry: Registry,
        balancer: Balancer,
        policies: PolicyGate,
        is_trusted: Callable[[SpiffeId], bool],
        node: str,
        default: str,
    ) -> None:
        self._registry = registry
        self._balancer = balancer
        self._policies = policies
        self._is_trusted = is_trusted
        self._node = node
        self._default = default

    def endpoints(
        self,
        source: Workload,
        source_ip: str,
        destination: OriginalDestination,
        route: Route,
        now: float,
        *,
        is_served: Callable[[Workload], bool],
    ) -> list[tuple[Endpoint, int]]:
        """Every endpoint that may be had without the agent, with its weight; none if one of them may not.

        ``is_served``: we serve the workload, in a network that has the lane.
        """
        if not self._is_wanted(route) or not self._is_trusted(source.identity):
            return []
        if what_only_the_agent_does(route.traffic, may_check_health=False):
            return []
        if route.service is not None and self._is_split(destination):
            return []
        shares = self._shares(source, route, route.service, now)
        for endpoint, _ in shares:
            workload = endpoint.workload
            if workload is None or endpoint.egress is not None or not is_served(workload):
                return []
            if not self._may_have(source, source_ip, workload, endpoint):
                return []
        return [(endpoint, max(1, round(share * _WEIGHT_OF_ALL))) for endpoint, share in shares]

    def _is_wanted(self, route: Route) -> bool:
        service = route.service
        if service is not None:
            if service.is_external:
                return False
            asked = self._registry.same_node(service.service.namespace, service.service)
        else:
            workload = route.candidates[0].workload
            asked = "" if workload is None else self._registry.same_node(workload.name.namespace, None)
        return (asked or self._default) == _LANE

    def _is_split(self, destination: OriginalDestination) -> bool:
        asked_for = self._registry.service_at(*destination)
        return asked_for is None or self._registry.split(asked_for) is not None

    def _shares(
        self, source: Workload, route: Route, service: ServicePort | None, now: float
    ) -> list[tuple[Endpoint, float]]:
        if service is None:
            return [(route.candidates[0], 1.0)]
        return self._balancer.shares(service, route.candidates, now, traffic=route.traffic, near=Near.of(source))

    def _may_have(self, source: Workload, source_ip: str, workload: Workload, endpoint: Endpoint) -> bool:
        ip, port = endpoint.address
        if workload.node != self._node or not workload.enrolled or ip not in workload.addresses:
            return False
        if port in CAPTURE_PORTS or port in workload.proxy_protocol_ports:
            return False
        if self._registry.mtls_mode(workload, port) is MtlsMode.STRICT:
            return False  # encryption is asked for
        request = Request(
            source_identity=source.identity, source_ip=source_ip, destination=workload, port=port, destination_ip=ip
        )
        return self._is_trusted(workload.identity) and self._policies.allows(request)
