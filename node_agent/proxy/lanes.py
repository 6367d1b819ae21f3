"""The same-node lane: the agent decides once, the kernel repeats it (docs/bpf.md).

    a connection went through the agent > may the next one go without? > filed, for this generation
    something changes that may matter   > the next generation (nothing is filed) > what is open is judged again

A generation also ends by itself, every ``_GENERATION_S``: then one connection
of each pair goes through the agent again, with its certificates and its
balancer.  Whatever goes wrong here means "no lane".
"""

import logging
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Final

import trio

from node_agent.capture.lane_end import LaneEndpoint
from node_agent.capture.netns import NetworkNamespace
from node_agent.drain import Drain
from node_agent.model import EndpointAddress, OriginalDestination, Workload
from node_agent.proxy.lane_grants import LaneRules
from node_agent.proxy.lane_table import Grant, LaneTable
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Pod
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.routes import Route
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Changes, Registry
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from node_agent.capture.lane import KernelLane

_log: Final = logging.getLogger("ringfence.lane")

_GENERATION_S: Final = 30.0
_LOOK_S: Final = 0.5  # live ones are found, and what was connecting during a change is judged, within this
_LOOK_AGAIN_S: Final = 0.05  # a SYN that was allowed just before a change has been sent by then
_IDLE_LOOK_S: Final = 2.0  # nothing has been filed yet
_COLLECT_S: Final = 1.0  # what was spilled wakes nobody
_TIDY_S: Final = 5.0  # the veth of a pod goes some time after the pod
_GATHER_S: Final = 0.05  # ends that come close together wake us once; the ring has room for 7,000
_MOST_GRANTS: Final = 65_536
_NOBODY: Final[tuple[str, ...]] = ()
_COUNTERS: Final = {
    "ringfence_lane_taken_total": "Connections that went straight to the application of another pod of the node.",
    "ringfence_lane_full_total": "Connections that went through the agent because the lane had no room for another.",
    "ringfence_lane_refused_total": "Connections refused because what had allowed them changed before their SYN.",
    "ringfence_lane_spilled_total": "Ends of connections that the ring had no room for; they are told nevertheless.",
    "ringfence_lane_lost_total": "Ends of connections that were not told; they have no access record.",
}


class Lanes:
    """Files, takes back, collects.  ``kernel`` stays the caller's."""

    def __init__(
        self,
        *,
        kernel: "KernelLane",
        rules: LaneRules,
        access_log: AccessLog,
        live: LiveConnections,
        registry: Registry,
        policies: PolicyGate,
        trust: TrustGate,
        drain: Drain,
        metrics: Metrics,
        pods: Callable[[], Iterable[Pod]],
        netns_path: Callable[[Workload], Path],
        node: str,
    ) -> None:
        self._kernel = kernel
        self._rules = rules
        self._registry = registry
        self._drain = drain
        self._pods = pods
        self._netns_path = netns_path
        self._node = node
        self._grants: dict[int, Grant] = {}
        self._numbers = count(time_ns())  # also not those of an agent before us
        self._filed_services: set[str] = set()
        self._filed_uids: set[str] = set()
        self._filed_addresses: set[EndpointAddress] = set()
        self._until = 0.0
        self._guarded: dict[str, tuple[str, ...]] = {}  # addresses, by uid
        self._guarded_at = -1
        self._tidy_at = 0.0
        self._active = trio.Event()
        self._look_again = trio.Event()
        self.problem: str | None = None  # why there are no lanes
        self.table = LaneTable(
            kernel=kernel,
            access_log=access_log,
            live=live,
            registry=registry,
            policies=policies,
            trust=trust,
            grant_of=self._grants.get,
            namespace_of=self._namespace_of,
            on_unreachable=self.take_back,
        )
        for name, help_text in _COUNTERS.items():
            metrics.counter(name, help_text, self._reading_of(name.split("_")[2]))

    def _reading_of(self, counter: str) -> Callable[[], float]:
        return lambda: self._kernel.counters()[counter]

    # -- filing -----------------------------------------------------------------------

    def learn(self, pod: Pod, source_ip: str, destination: OriginalDestination, route: Route, now: float) -> None:
        """A connection of ``pod`` got through: let the next ones go without us, if nothing speaks against it."""
        cookie = getattr(pod.network, "netns_cookie", None)
        if cookie is None or self._drain.begun.is_set() or self.problem is not None:
            return
        if self._kernel.is_filed(cookie, destination):
            return  # it went through us because the lane was full
        found = self._rules.endpoints(
            pod.workload,
            source_ip,
            destination,
            route,
            now,
            is_served=self._is_served,
        )
        if not 0 < len(found) <= self._kernel.max_endpoints or not self._is_ready(pod):
            return
        if now >= self._until:
            self._begin_generation(now)
        endpoints = []
        for endpoint, weight in found:
            assert endpoint.workload is not None
            number = next(self._numbers)
            self._grants[number] = Grant(source=pod.workload, destination=endpoint.workload, service=route.service)
            endpoints.append(LaneEndpoint(endpoint.address, number, weight))
            self._filed_uids.add(endpoint.workload.uid)
            self._filed_addresses.add(endpoint.address)
        self._filed_uids.add(pod.workload.uid)
        if route.service is not None:
            self._filed_services.add(str(route.service.service))
        try:
            self._kernel.file(cookie, destination, endpoints)
        except OSError as error:
            self._is_off(f"the same-node lane is off: the kernel takes no entry: {error.strerror}")

    def _is_served(self, workload: Workload) -> bool:
        return any(each.workload.uid == workload.uid and hasattr(each.network, "netns_cookie") for each in self._pods())

    def _is_ready(self, pod: Pod) -> bool:
        """Whether the programs are at work, and no pod of the node can send with the address of another."""
        try:
            self._kernel.link(pod.network.namespace)
        except OSError as error:
            self._is_off(f"the same-node lane is off: {error.strerror}")
            return False
        if self._guarded_at != self._registry.revision:
            self._guard_all()
        self._active.set()
        return self.problem is None

    def _guard_all(self) -> None:
        self._guarded_at = self._registry.revision
        here = {each.uid: each for each in self._registry.workloads_on(self._node) if each.cgroup is None}
        for uid in self._guarded.keys() - here.keys():
            del self._guarded[uid]
        for uid, workload in here.items():
            if self._guarded.get(uid, _NOBODY) != workload.addresses and workload.addresses:
                self._guard(workload)
        self._tidy_up()

    def _tidy_up(self) -> None:
        self._kernel.sources.tidy_up()
        self._tidy_at = trio.current_time() + _TIDY_S

    def _guard(self, workload: Workload) -> None:
        try:
            namespace = NetworkNamespace.open(self._netns_path(workload))
        except OSError:
            self._guarded_at = -1  # not there yet, so it sends nothing; looked for again
            return
        try:
            self._kernel.sources.guard(namespace, workload.addresses)
        except OSError as error:
            self._is_off(
                f"the same-node lane is off: pod {workload.name} can not be kept from sending with the addresses of "
                f"others: {error.strerror}"
            )
        else:
            self._guarded[workload.uid] = workload.addresses
        finally:
            namespace.close()

    def _is_off(self, why: str) -> None:
        if self.problem != why:
            _log.warning("%s", why)
        self.problem = why
        self.take_back()

    def _begin_generation(self, now: float) -> None:
        self._kernel.begin_generation(valid_s=_GENERATION_S + _LOOK_S)
        self._until = now + _GENERATION_S
        self._filed_services.clear()
        self._filed_uids.clear()
        self._filed_addresses.clear()
        if len(self._grants) > _MOST_GRANTS:
            self._grants.clear()  # what is still open is known by its addresses

    # -- taking back --------------------------------------------------------------------

    def take_back(self) -> None:
        """Nothing goes without us until it has gone through us again."""
        if self._kernel.has_lanes:
            self._begin_generation(trio.current_time())

    def revoke(self) -> None:
        """Something that is asked for every connection has changed: take back first, then judge what is open."""
        if self._active.is_set():
            self.take_back()
            self.table.adopt()
            self._look_again.set()

    def follow(self, changes: Changes) -> None:
        """The registry, and the policy engine, have taken a step; who is live is judged by the gates after this."""
        local = [each for each in (*changes.workloads_added, *changes.workloads_removed) if each.node == self._node]
        if local:
            self.problem = None  # to be found out anew
        if changes.policies or changes.mtls_changed or changes.same_node_changed or local or self._concerns(changes):
            self.revoke()

    def _concerns(self, changes: Changes) -> bool:
        uids = {each.uid for each in (*changes.workloads_changed, *changes.workloads_removed)}
        services = {str(each) for each in (*changes.services_changed, *changes.services_removed)}
        return bool(uids & self._filed_uids or services & self._filed_services)

    def health_changed(self, address: EndpointAddress) -> None:
        """Who may be chosen has changed."""
        if address in self._filed_addresses:
            self.take_back()

    # -- living -------------------------------------------------------------------------

    async def run(self) -> None:
        """Collect the ends, and look after what is open, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_draining)
            nursery.start_soon(self._collect)
            nursery.start_soon(self._look)

    async def _stop_when_draining(self) -> None:
        await self._drain.begun.wait()
        self._kernel.end_generation()

    async def _collect(self) -> None:
        while True:
            for ends in self._kernel.ends():
                self.table.ended(ends)
                await trio.lowlevel.checkpoint()
            await trio.sleep(_GATHER_S)
            with trio.move_on_after(_COLLECT_S):
                await trio.lowlevel.wait_readable(self._kernel.ring_fd)

    async def _look(self) -> None:
        """Also after an agent before us, whose connections go on."""
        while True:
            self.table.adopt()
            if self._kernel.has_lanes and trio.current_time() >= self._until:
                self.take_back()
            if self._active.is_set() and self._guarded_at != self._registry.revision:
                self._guard_all()
            if self._active.is_set() and trio.current_time() >= self._tidy_at:
                self._tidy_up()
            self._look_again = trio.Event()
            with trio.move_on_after(_LOOK_S if self._active.is_set() or len(self.table) else _IDLE_LOOK_S):
                await self._look_again.wait()
                await trio.sleep(_LOOK_AGAIN_S)

    def _namespace_of(self, netns_cookie: int) -> NetworkNamespace | None:
        for pod in self._pods():
            if getattr(pod.network, "netns_cookie", None) == netns_cookie:
                return pod.network.namespace
        return None
