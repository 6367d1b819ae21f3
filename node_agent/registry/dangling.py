"""What a TrafficPolicy or a TCPRoute names and nobody has: a typing mistake, or something that is still to come.

Not an error: Kubernetes lets objects arrive in any order.  But whoever wrote it
should not have to guess why it does nothing.
"""

from collections.abc import Callable, Iterable, Iterator

from ca.manifests import TCPRoute, TrafficPolicy
from node_agent.model import ObjectName, ServicePort

PortsOf = Callable[[str, ObjectName], tuple[ServicePort, ...] | None]
"""The ports of a Service or ServiceEntry (the first argument); None when there is no such one."""


def policies_without_service(policies: Iterable[TrafficPolicy], ports_of: PortsOf) -> Iterator[str]:
    """One line for each TrafficPolicy that is about nothing."""
    for policy in sorted(policies, key=lambda each: (each.namespace, each.name)):
        missing = _missing(policy.kind, ObjectName(policy.namespace, policy.service), policy.port, ports_of)
        if missing:
            yield f"TrafficPolicy {ObjectName(policy.namespace, policy.name)} has no effect: {missing}"


def routes_to_nowhere(routes: Iterable[TCPRoute], ports_of: PortsOf) -> Iterator[str]:
    """One line for each Service that a TCPRoute would split, and each backend with a share of it, that is not there."""
    for route in sorted(routes, key=lambda each: (each.namespace, each.name)):
        name = ObjectName(route.namespace, route.name)
        for parent in route.parents:
            missing = _missing("Service", ObjectName(route.namespace, parent.service), parent.port, ports_of)
            if missing:
                yield f"TCPRoute {name} splits nothing: {missing}"
        for backend in route.backends:
            missing = _missing("Service", ObjectName(route.namespace, backend.service), backend.port, ports_of)
            if missing and backend.weight:
                yield f"TCPRoute {name} has a share of the connections refused: {missing}"


def _missing(kind: str, service: ObjectName, port: int | None, ports_of: PortsOf) -> str:
    ports = ports_of(kind, service)
    if ports is None:
        return f"there is no {kind} {service}"
    if port is None or any(each.port == port for each in ports):
        return ""
    known = ", ".join(str(each.port) for each in ports) or "none"
    return f"{kind} {service} has no port {port}; its ports: {known}"
