"""Connect-time balancing: the agent tells the kernel where connections to a service may go (docs/bpf.md).

    something changes > what may no longer go without us is taken back at once > the rest is decided, service by service
    nothing changes   > it is said again that what is filed is in force; what time changes is decided again
    a connect failed  > the service goes to the agent for a while, which tries others, and ejects

The kernel goes on with what is filed while there is no agent, for ``_VALID_S``: after that connections go to the
agent, and are refused if there is none.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, ServicePort
from node_agent.proxy.connect_rules import ConnectRules, Decision, Sources
from node_agent.proxy.pod import Pod
from node_agent.registry import Changes, Registry
from node_agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from node_agent.capture.connect_balancing import KernelBalancing
    from node_agent.proxy.health_checks import HealthChecker

_log: Final = logging.getLogger("ringfence.balance")

_VALID_S: Final = 300.0
_LOOK_S: Final = 1.0  # how soon an ejection that is over is noticed
_SAY_AGAIN_S: Final = 10.0
_ALL_AGAIN_S: Final = 30.0
_SUSPECT_S: Final = 10.0  # for the agent to find out whether an endpoint is to be ejected
_FULL: Final = "the kernel's maps are full"
_COUNTERS: Final = {
    "ringfence_connect_balanced_total": "Connections that the kernel sent straight to an endpoint of a service.",
    "ringfence_connect_refused_total": "Connections that the kernel refused because nobody serves the service.",
    "ringfence_connect_missed_total": "Connections that went to the agent because their endpoints were being replaced.",
}


class _Outcome(NamedTuple):
    """What was decided for one cluster IP and port; ``why`` it is with the agent, empty if it is filed."""

    port: ServicePort
    why: str
    decision: Decision


class Connects:
    """Files, and takes back.  ``kernel`` stays the caller's.

    ``health`` and ``pods`` are there where this process checks endpoints.
    """

    def __init__(
        self,
        *,
        kernel: "KernelBalancing",
        rules: ConnectRules,
        registry: Registry,
        balancer: Balancer,
        is_trusted: Callable[[SpiffeId], bool],
        health: "HealthChecker | None",
        pods: Callable[[], Iterable[Pod]],
        metrics: Metrics,
        node: str,
    ) -> None:
        self._kernel = kernel
        self._rules = rules
        self._registry = registry
        self._is_trusted = is_trusted
        self._health = health
        self._pods = pods
        self._node = node
        self._outcomes: dict[ObjectName, dict[OriginalDestination, _Outcome]] = {}
        self._owners: dict[OriginalDestination, ObjectName] = {}
        self._dirty: set[ObjectName] = set()
        self._suspects: dict[EndpointAddress, float] = {}  # until when
        self._sources = Sources()
        self._is_loaded = False
        self._wake = trio.Event()
        self._problem: str | None = None  # what the kernel refused
        balancer.on_health_changed.append(self._health_changed)
        for name, help_text in _COUNTERS.items():
            metrics.counter(name, help_text, self._reading_of(name.split("_")[2]))
        metrics.gauge(
            "ringfence_connect_services",
            "Cluster IPs and ports whose connections the kernel balances.",
            lambda: float(len(self._kernel.filed)),
        )
        metrics.gauge(
            "ringfence_connect_services_left_out",
            "Cluster IPs and ports that are to be balanced by the kernel and are not, because its maps are full.",
            lambda: float(sum(each.why == _FULL for outcomes in self._outcomes.values() for each in outcomes.values())),
        )

    def _reading_of(self, counter: str) -> Callable[[], float]:
        return lambda: self._kernel.counters()[counter]

    def describe(self, port: ServicePort) -> tuple[bool, str]:
        """Whether connections to a service port do without the agent, and why not, for people, if that is asked for."""
        if port.is_external or not self._rules.is_wanted(port):
            return False, ""
        found = [each for each in self._outcomes.get(port.service, {}).values() if each.port == port]
        if not found:
            return False, "it has no cluster IP"
        why = next((each.why for each in found if each.why), "")
        return not why, why

    def problems(self) -> Iterator[str]:
        """What the kernel refused."""
        if self._problem is not None:
            yield f"services are not balanced at connect: {self._problem}"

    # -- what changes -----------------------------------------------------------------

    def follow(self, changes: Changes) -> None:
        """The registry has taken a step: take back what may no longer go without the agent, before it returns."""
        touched = {*changes.services_changed, *changes.services_removed}
        is_first, self._is_loaded = not self._is_loaded, True
        if self._look_at_sources() or changes.balance_changed or is_first:
            touched |= {ObjectName(each.namespace, each.name) for each in self._registry.services()}
            touched |= self._outcomes.keys()
        self._touch(touched)

    def trust_changed(self) -> None:
        """Somebody is revoked, or no longer."""
        if self._look_at_sources():
            self._touch(set(self._outcomes))

    def _look_at_sources(self) -> bool:
        before = self._sources
        self._sources = Sources.of(self._registry.workloads_on(self._node), self._is_trusted)
        return self._sources != before

    def _health_changed(self, address: EndpointAddress) -> None:
        for name, outcomes in self._outcomes.items():
            if any(address in each.decision.endpoints for each in outcomes.values()):
                self._dirty.add(name)
                self._wake.set()

    def _touch(self, names: set[ObjectName]) -> None:
        now = trio.current_time()
        for name in names & self._outcomes.keys():
            wanted = self._wanted(name)
            for destination, outcome in self._outcomes[name].items():
                if not outcome.why and (
                    destination not in wanted or self._decide(wanted[destination], destination, now).why
                ):
                    self._take_back(name, destination, now)
        if names:
            self._dirty |= names
            self._wake.set()

    # -- what is done about it --------------------------------------------------------

    async def run(self) -> None:
        """Keep the kernel in step, until cancelled."""
        say_at = all_at = -math.inf
        while True:
            self._wake = trio.Event()
            now = trio.current_time()
            self._look_at_failed(now)
            if now >= say_at:
                self._kernel.keep(valid_s=_VALID_S)
                say_at = now + _SAY_AGAIN_S
            if now >= all_at:
                self._look_at_sources()
                self._dirty |= self._outcomes.keys()
                all_at = now + _ALL_AGAIN_S
            self._dirty |= {
                name
                for name, outcomes in self._outcomes.items()
                if not all(each.decision.is_settled and each.why != _FULL for each in outcomes.values())
            }
            while self._dirty:
                self._bring_up_to_date(self._dirty.pop(), trio.current_time())
                await trio.lowlevel.checkpoint()
            if self._is_loaded:
                self._forget_unknown(trio.current_time())
            with trio.move_on_after(_LOOK_S if self._outcomes else _ALL_AGAIN_S):
                await self._wake.wait()

    def _wanted(self, name: ObjectName) -> dict[OriginalDestination, ServicePort]:
        """Every cluster IP and port of a service that is to be balanced at connect."""
        service = self._registry.service_named(name)
        if service is None:
            return {}
        ports = [each for each in self._registry.service_ports(name) if not each.is_external]
        return {
            OriginalDestination(ip, port.port): port
            for port in ports
            if self._rules.is_wanted(port)
            for ip in service.cluster_ips
        }

    def _decide(self, port: ServicePort, destination: OriginalDestination, now: float) -> Decision:
        decision = self._rules.decide(port, destination, self._sources, now)
        suspect = next((each for each, _ in decision.shares if each in self._suspects), None)
        if suspect is None:
            return decision
        return replace(decision, why=f"a connect to {suspect} failed, and the agent finds out more", is_settled=False)

    def _look_at_failed(self, now: float) -> None:
        for address in self._kernel.failed() if self._owners else ():
            self._suspects[address] = now + _SUSPECT_S
            self._health_changed(address)
        for address in [each for each, until in self._suspects.items() if until <= now]:
            del self._suspects[address]

    def _bring_up_to_date(self, name: ObjectName, now: float) -> None:
        wanted = self._wanted(name)
        for destination in self._outcomes.pop(name, {}).keys() - wanted.keys():
            self._take_back(name, destination, now)
        if not wanted:
            return
        outcomes = self._outcomes[name] = {}
        for destination, port in wanted.items():
            self._ask_for_checks(port, destination)
            decision = self._decide(port, destination, now)
            why = decision.why or self._file(name, destination, decision, now)
            if why:
                self._take_back(name, destination, now)
            outcomes[destination] = _Outcome(port, why, decision)

    def _file(self, name: ObjectName, destination: OriginalDestination, decision: Decision, now: float) -> str:
        """Returns why it is not filed."""
        try:
            has_room = self._kernel.file(destination, decision.shares, now)
        except OSError as error:
            why = f"the kernel takes no entry: {error.strerror}"
            if self._problem != why:
                _log.warning("connect-time balancing of %s: %s", destination, why)
            self._problem = why
            return why
        if has_room:
            self._owners[destination] = name
            self._problem = None
        return "" if has_room else _FULL

    def _take_back(self, name: ObjectName, destination: OriginalDestination, now: float) -> None:
        """Only what is its own: another service may have the address by now."""
        if self._owners.get(destination) == name:
            del self._owners[destination]
            self._kernel.withdraw(destination, now)

    def _forget_unknown(self, now: float) -> None:
        """What an agent before us has filed, and nobody wants any more."""
        for destination in self._kernel.filed - self._owners.keys():
            self._kernel.withdraw(destination, now)

    def _ask_for_checks(self, port: ServicePort, destination: OriginalDestination) -> None:
        """Let the endpoints be checked though no connection of theirs is seen here."""
        if self._health is not None and self._registry.traffic(port).health_check is not None:
            for pod in self._pods():
                self._health.used(pod, port, 6 if ":" in destination.ip else 4)
