"""Where a connection may go: the decision between resolve and connect.

Sans-I/O but for one wait: an address inside the cluster that the registry does
not know yet may be a pod whose manifest is on its way.  Sending to it in
plaintext would be the open reading, so the story waits a moment and then
refuses.
"""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ca.manifests import Traffic
from ca.manifests.traffic import DEFAULT
from node_agent.config import CAPTURE_PORTS
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import Endpoint, EndpointAddress, OriginalDestination, ServicePort
from node_agent.registry import Registry
from node_agent.registry.tcp_routes import Split

_REGISTRY_LAG_S: Final = 2.0
_REGISTRY_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a connection may go: the ``candidates`` of a service (the registry's own tuple, ready or
    not) and what its TrafficPolicy wants, or the one place that was asked for."""

    service: ServicePort | None
    candidates: tuple[Endpoint, ...]
    traffic: Traffic = DEFAULT


class NoBackend(ConnectionFailure):
    """A TCPRoute leads nowhere; ``service`` is what it leads to, whether there is one or not."""

    def __init__(self, detail: str, *, service: ServicePort) -> None:
        super().__init__(CloseReason.NO_SERVICE_ENDPOINTS, detail)
        self.service = service


class Router:
    """Asks the registry.

    ``is_node_address`` tells the node's own addresses inside the pod network;
    ``draw`` gives numbers in [0, 1), for splits.  ``registry_only``: what the
    registry does not know is refused.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        is_node_address: Callable[[str], bool],
        draw: Callable[[], float],
        registry_only: bool = False,
    ) -> None:
        self._registry = registry
        self._is_node_address = is_node_address
        self._draw = draw
        self._registry_only = registry_only

    async def route(self, destination: OriginalDestination) -> Route:
        """Return where a connection to ``destination`` may go; raises ConnectionFailure (NoBackend for a TCPRoute)."""
        route = self._known(destination)
        if route is None and self._is_missing_pod(destination.ip):
            with trio.move_on_after(_REGISTRY_LAG_S):
                while route is None:
                    await trio.sleep(_REGISTRY_LOOK_S)
                    route = self._known(destination)
            if route is None:
                raise _unknown(destination.ip)
        if route is None:
            if self._registry_only:
                raise ConnectionFailure(
                    CloseReason.DESTINATION_NOT_ALLOWED,
                    f"{destination} is no workload and no Service, and outbound_traffic_policy is registry-only",
                )
            route = Route(
                service=None,
                candidates=(Endpoint(address=EndpointAddress(destination.ip, destination.port), workload=None),),
            )
        return route

    def require_outside(self, address: EndpointAddress) -> None:
        """Refuse an endpoint that is in the pod network though no workload has it; raises ConnectionFailure.

        An EndpointSlice may arrive before its Pod does, and plaintext would be the open reading.  DNS may
        say of a name outside that it is a workload's or a Service's address.
        """
        if self._is_missing_pod(address.ip):
            raise _unknown(address.ip)
        if self._registry.workload_at(address.ip) is not None or self._registry.is_service_ip(address.ip):
            raise ConnectionFailure(
                CloseReason.UNKNOWN_DESTINATION,
                f"{address.ip} is the address of a workload or a Service, and not a place outside",
            )

    def _known(self, destination: OriginalDestination) -> Route | None:
        registry = self._registry
        ip, port = destination
        service = registry.service_at(ip, port)
        if service is not None:
            split = registry.split(service)
            if split is not None:
                service = self._backend(service, split)
            return Route(
                service=service,
                candidates=registry.endpoints(service, 6 if ":" in ip else 4),
                traffic=registry.traffic(service),
            )
        workload = registry.workload_at(ip)
        if workload is not None:
            if port in CAPTURE_PORTS and workload.enrolled:
                raise ConnectionFailure(
                    CloseReason.DESTINATION_NOT_ALLOWED, f"port {port} of {workload.name} is the agent's own listener"
                )
            return Route(service=None, candidates=(Endpoint(address=EndpointAddress(ip, port), workload=workload),))
        if registry.is_service_ip(ip):
            raise ConnectionFailure(CloseReason.UNKNOWN_DESTINATION, f"the service at {ip} has no port {port}")
        outside = registry.external_at(ip, port)
        if outside is not None:
            service, endpoints = outside
            return Route(service=service, candidates=endpoints, traffic=registry.traffic(service))
        return None

    def _backend(self, service: ServicePort, split: Split) -> ServicePort:
        """The backend of a TCPRoute that gets this connection.

        Gateway API: what falls to a backend that does not exist is refused, not given to the others.
        """
        chosen = split.backend(self._draw())
        if chosen is None:
            raise NoBackend(f"TCPRoute {split.route} gives every backend of {service} the weight 0", service=service)
        found = self._registry.service_port(*chosen)
        if found is None:
            raise NoBackend(
                f"TCPRoute {split.route} of {service} leads to {chosen[0]} port {chosen[1]}, which does not exist",
                service=ServicePort(service=chosen[0], port=chosen[1]),
            )
        return found

    def _is_missing_pod(self, ip: str) -> bool:
        return self._registry.in_pod_network(ip) and not self._is_node_address(ip)


def _unknown(ip: str) -> ConnectionFailure:
    return ConnectionFailure(
        CloseReason.UNKNOWN_DESTINATION,
        f"{ip} is in the pod network but no workload has it; refused, not sent in plaintext",
    )


def is_local_address(ip: str) -> bool:
    """Whether ``ip`` is an address of the namespace we are in: exactly those can be bound (bind(2))."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError as error:
            return error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL)
    return True
