"""Which services the kernel balances at connect, without a proxy: those that need none.

Sans-I/O.  Between workloads of the mesh there is always a tunnel, whatever anybody asks for: so a service is fit
only if none of its endpoints is in the mesh.  Whatever only the agent can do keeps it with the agent.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from ca.manifests.traffic import LocalityMode
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.balance.tiers import Near, weight_of
from node_agent.errors import ConnectionFailure
from node_agent.model import Endpoint, EndpointAddress, OriginalDestination, ServicePort, Workload
from node_agent.proxy.only_the_agent import what_only_the_agent_does
from node_agent.registry import Registry

_CONNECT: Final = "connect"
_AGENT: Final = "agent"


class Sources(NamedTuple):
    """Who connects: the workloads of this node that are in the mesh, as far as the choice depends on them."""

    nears: frozenset[Near] = frozenset()
    untrusted: str = ""  # one of them that may have no connections at all

    @classmethod
    def of(cls, workloads: Iterable[Workload], is_trusted: Callable[[SpiffeId], bool]) -> Self:
        enrolled = [each for each in workloads if each.enrolled]
        untrusted = next((str(each.name) for each in enrolled if not is_trusted(each.identity)), "")
        return cls(frozenset(map(Near.of, enrolled)), untrusted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``why`` the agent has to carry connections; if it is empty, the endpoints with their shares, none of them: they
    are refused.  ``is_settled``: nothing of it changes by the mere passing of time."""

    why: str = ""
    shares: tuple[tuple[EndpointAddress, float], ...] = ()
    is_settled: bool = True
    endpoints: frozenset[EndpointAddress] = frozenset()


class ConnectRules:
    """Decides.

    ``require_outside`` raises ConnectionFailure for an endpoint without a workload that may be one's; ``is_default``:
    services are balanced at connect where neither they nor their namespaces say; ``may_check_health``: by this process.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        balancer: Balancer,
        require_outside: Callable[[EndpointAddress], None],
        is_default: bool,
        may_check_health: bool,
    ) -> None:
        self._registry = registry
        self._balancer = balancer
        self._require_outside = require_outside
        self._default = _CONNECT if is_default else _AGENT
        self._may_check_health = may_check_health

    def is_wanted(self, port: ServicePort) -> bool:
        """Whether it is asked for."""
        return (self._registry.balance(port.service) or self._default) == _CONNECT

    def decide(self, port: ServicePort, destination: OriginalDestination, sources: Sources, now: float) -> Decision:
        """What becomes of connections to a port of a service that is wanted, at one of its cluster IPs."""
        registry = self._registry
        if registry.service_at(*destination) != port:
            return Decision(why=f"{destination.ip} is another Service's address, too", is_settled=False)
        if not sources.nears:
            return Decision(why="no workload of this node is in the mesh")
        if sources.untrusted:
            return Decision(why=f"the identity of {sources.untrusted}, on this node, is not to be trusted")
        if registry.split(port) is not None:
            return Decision(why="a TCPRoute splits it")
        traffic = registry.traffic(port)
        if only := what_only_the_agent_does(traffic, may_check_health=self._may_check_health):
            return Decision(why=f"its TrafficPolicy wants {only}")
        if len(sources.nears) > 1 and traffic.locality.mode is not LocalityMode.OFF:
            return Decision(why="its TrafficPolicy prefers near endpoints, and not all workloads here are at one place")
        candidates = registry.endpoints(port, 6 if ":" in destination.ip else 4)
        if why := next(filter(None, map(self._why_not, candidates)), ""):
            return Decision(why=why)
        near = min(sources.nears)
        found = self._balancer.shares(port, candidates, now, traffic=traffic, near=near) if candidates else []
        known = frozenset(each.address for each in candidates)
        usable = sum(each.ready and weight_of(each, traffic) > 0 for each in candidates)
        if not found and usable and (traffic.panic_threshold_percent or self._is_one_healthy(candidates, now)):
            why = "too few of its endpoints are healthy, or one of them is being tried"
            return Decision(why=why, is_settled=False, endpoints=known)
        shares = tuple((endpoint.address, share) for endpoint, share in found)
        return Decision(shares=shares, is_settled=len(shares) == usable, endpoints=known)

    def _why_not(self, endpoint: Endpoint) -> str:
        """Why an endpoint may not be connected to directly; empty if it may."""
        workload = endpoint.agent_of
        if workload is not None and (workload.enrolled or endpoint.egress is not None):
            return f"its endpoint {workload.name} is in the mesh"
        if endpoint.workload is None:
            try:
                self._require_outside(endpoint.address)
            except ConnectionFailure as failure:
                return failure.detail
        return ""

    def _is_one_healthy(self, candidates: Iterable[Endpoint], now: float) -> bool:
        return any(
            self._balancer.load_of(each, now).health not in ("unhealthy", "ejected")
            for each in candidates
            if each.ready
        )
