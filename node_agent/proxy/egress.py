"""What an egress pod's agent may be asked: to connect to a place outside for a workload of the mesh.

Never an open proxy.  The source names the service outside and the address that
it has chosen; both are looked up here, in this agent's own registry and by its
own DNS, and nothing that the source says is believed.  Who may ask is for the
egress pod's AuthorizationPolicies to say, as for any connection to a pod.
"""

from ca.manifests.egress import EGRESS_LABEL
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Outside
from node_agent.model import Endpoint, EndpointAddress, OriginalDestination, ServicePort, Workload
from node_agent.proxy.routes import Router
from node_agent.registry import Registry


class Egress:
    """Judges what sources ask of local egress pods."""

    def __init__(self, *, registry: Registry, router: Router) -> None:
        self._registry = registry
        self._router = router

    def require(self, workload: Workload, outside: Outside, destination: OriginalDestination) -> ServicePort:
        """Return the service outside that ``workload`` is to connect to; raises ConnectionFailure."""
        port = self._registry.external_port(outside.kind, outside.service, outside.port)
        if port is None:
            raise _refused(f"this node knows no {outside.kind} {outside.service} with port {outside.port}")
        if not self._registry.is_egress_for(workload, port):
            raise _refused(
                f"{workload.name} is no egress of {port.kind} {port.service}: "
                f"its node, its label {EGRESS_LABEL} or its namespace is another"
            )
        address = EndpointAddress(*destination)
        self._router.require_outside(address)
        if not self._registry.is_address_of(port, address):
            raise _refused(f"{address} is no address of {port.kind} {port.service} by this node's DNS")
        return port


def outside_of(service: ServicePort | None, endpoint: Endpoint) -> Outside | None:
    """What an egress is asked for; None where there is none between."""
    if endpoint.egress is None:
        return None
    assert service is not None, "only services outside have an egress"
    return Outside(kind=service.kind, service=service.service, port=service.port)


def tunnel_ip(endpoint: Endpoint) -> str:
    """Where the tunnel to an endpoint leads: to itself, or to its egress by the same IP version."""
    ip = endpoint.address.ip
    if endpoint.egress is None:
        return ip
    return next(own for own in endpoint.egress.addresses if (":" in own) is (":" in ip))


def _refused(detail: str) -> ConnectionFailure:
    """Another egress may do it: what the source knows may be older, or newer, than what we do."""
    return ConnectionFailure(CloseReason.UNKNOWN_DESTINATION, detail)
