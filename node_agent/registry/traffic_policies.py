"""Which TrafficPolicy is in force for a port of a Service.

One that names the port wins over one that does not; of several the oldest
counts, then the first by name, as everywhere in Kubernetes.  A Service without
one gets the defaults, and the load balancing of its annotation.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ca.manifests import Traffic, TrafficPolicy
from ca.manifests.traffic import default_for
from node_agent.model import ObjectName, ServicePort


class _Target(NamedTuple):
    """A Service and a ServiceEntry may have the same name."""

    kind: str
    service: ObjectName


def _target(policy: TrafficPolicy) -> _Target:
    return _Target(policy.kind, ObjectName(policy.namespace, policy.service))


class TrafficPolicies:
    """Every TrafficPolicy; changed only through ``apply``."""

    def __init__(self) -> None:
        self._policies: dict[ObjectName, TrafficPolicy] = {}
        self._of_service: dict[_Target, list[TrafficPolicy]] = {}

    def apply(self, policies: Mapping[ObjectName, TrafficPolicy | None]) -> frozenset[ObjectName]:
        """Take in what is new (or None for gone); returns the services that it is about.

        Costs what it touches, not what there is.
        """
        touched = set()
        for name, policy in policies.items():
            before = self._policies.pop(name, None)
            if before is not None:
                touched.add(_target(before))
                self._of_service[_target(before)].remove(before)
            if policy is not None:
                touched.add(_target(policy))
                self._policies[name] = policy
                self._of_service.setdefault(_target(policy), []).append(policy)
        for target in touched:
            if self._of_service[target]:
                self._of_service[target].sort(key=lambda policy: (policy.created, policy.name))
            else:
                del self._of_service[target]
        return frozenset(target.service for target in touched)

    def policy(self, port: ServicePort) -> TrafficPolicy | None:
        """The policy that is in force, None if there is none."""
        if not self._of_service:
            return None
        wide = None
        for each in self._of_service.get(_Target(port.kind, port.service), ()):
            if each.port == port.port:
                return each
            if each.port is None and wide is None:
                wide = each
        return wide

    def traffic(self, port: ServicePort) -> Traffic:
        """What is in force; the very same value until a policy of the service changes."""
        policy = self.policy(port)
        return policy.traffic if policy is not None else default_for(port.load_balancing)

    def __iter__(self) -> Iterator[TrafficPolicy]:
        return iter(self._policies.values())

    def in_force(self) -> Iterator[TrafficPolicy]:
        """Every policy that no other one keeps out of force."""
        for policies in self._of_service.values():
            seen = set()
            for each in policies:
                if each.port not in seen:
                    seen.add(each.port)
                    yield each

    def conflicts(self) -> Iterator[str]:
        """One line for each policy that another one keeps out of force."""
        for (_, service), policies in sorted(self._of_service.items()):
            holders: dict[int | None, TrafficPolicy] = {}
            for each in policies:
                holder = holders.setdefault(each.port, each)
                if holder is not each:
                    port = "" if each.port is None else f" port {each.port}"
                    yield (
                        f"TrafficPolicies {holder.name} and {each.name} are both about service {service}{port}; "
                        f"{holder.name} is in force"
                    )
