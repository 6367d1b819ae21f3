"""Every AuthorizationPolicy, and what they decide.

Sans-I/O: fed by the registry's steps, ``apply(changes.policies)``; asks nothing
and waits for nothing.  ``version`` grows with each change, so that whoever
judged a connection knows whether to judge it again.

What is compiled is found by destination, is made when a connection first asks
for it, and is shared by all workloads that the same policies are about.  A
change of one policy forgets what was compiled for its namespace, one in the
root namespace everything.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from ca.manifests import AuthorizationPolicy
from node_agent.model import ObjectName, Workload
from node_agent.policy.compiled import CompiledRule, compile_policy
from node_agent.policy.considered import Explanation, consider
from node_agent.policy.decision import Decision
from node_agent.policy.destination import Destination
from node_agent.policy.request import Request
from node_agent.policy.scopes import ScopedPolicy, Scopes

DEFAULT_ROOT_NAMESPACE: Final = "istio-system"  # Istio's; the registry has the same
_MAX_WORKLOADS: Final = 100_000  # of one namespace, whose destinations are remembered


class _Known(NamedTuple):
    """The destination that a workload is, as long as it has these labels."""

    labels: Mapping[str, str]
    destination: Destination


class _Compiled:
    """What was compiled for one namespace."""

    __slots__ = ("by_policies", "of_workload")

    def __init__(self) -> None:
        self.by_policies: dict[tuple[ObjectName, ...], Destination] = {}
        self.of_workload: dict[str, _Known] = {}


class PolicyEngine:
    """Judges connections at their destination.

    ``on_changed`` is called after each ``apply`` that changed a policy.
    """

    def __init__(self, *, root_namespace: str = DEFAULT_ROOT_NAMESPACE) -> None:
        self._scopes = Scopes(root_namespace)
        self._rules: dict[ObjectName, tuple[CompiledRule, ...]] = {}
        self._compiled: dict[str, _Compiled] = {}
        self._version = 0
        self.on_changed: list[Callable[[], None]] = []

    @property
    def version(self) -> int:
        """Grows whenever a policy comes, goes or changes."""
        return self._version

    def apply(
        self, policies: Mapping[ObjectName, AuthorizationPolicy | None], *, gone: Iterable[Workload] = ()
    ) -> None:
        """Take in policies that are new or changed, None for gone; and forget workloads that are ``gone``."""
        for workload in gone:
            if (compiled := self._compiled.get(workload.name.namespace)) is not None:
                compiled.of_workload.pop(workload.name.name, None)
        if not policies:
            return
        for name, policy in policies.items():
            self._scopes.put(name, policy)
            self._rules.pop(name, None)
            if name.namespace == self._scopes.root_namespace:
                self._compiled.clear()
            else:
                self._compiled.pop(name.namespace, None)
        self._version += 1
        for tell in self.on_changed:
            tell()

    def __len__(self) -> int:
        return len(self._scopes)

    def policies(self) -> Iterator[AuthorizationPolicy]:
        """Every policy, in no order; not to be held across ``apply``."""
        return iter(self._scopes)

    def policies_for(self, workload: Workload) -> list[ScopedPolicy]:
        """Every policy that is about a workload, with its scope: AUDIT, CUSTOM, DENY, ALLOW, each by name."""
        return self._scopes.policies_for(workload)

    def decide(self, request: Request) -> Decision:
        """Judge a connection; cheap enough for each one, and for all live ones after a change."""
        workload = request.destination
        compiled = self._compiled.get(workload.name.namespace)
        if compiled is None:
            compiled = self._compiled[workload.name.namespace] = _Compiled()
        known = compiled.of_workload.get(workload.name.name)
        if known is None or (known.labels is not workload.labels and known.labels != workload.labels):
            known = self._known(compiled, workload)
        return known.destination.decide(request)

    def explain(self, request: Request) -> Explanation:
        """The decision on a connection, and what every policy that is about its destination says to it."""
        return Explanation(
            decision=self.decide(request),
            considered=tuple(consider(each, request) for each in self.policies_for(request.destination)),
        )

    def _known(self, compiled: _Compiled, workload: Workload) -> _Known:
        policies = self._scopes.policies_for(workload)
        names = tuple([each.name for each in policies])
        destination = compiled.by_policies.get(names)
        if destination is None:
            held = zip(names, (each.policy for each in policies), strict=True)
            destination = compiled.by_policies[names] = Destination(held, self._compile)
        if len(compiled.of_workload) >= _MAX_WORKLOADS:
            compiled.of_workload.clear()
        known = compiled.of_workload[workload.name.name] = _Known(workload.labels, destination)
        return known

    def _compile(self, name: ObjectName, policy: AuthorizationPolicy) -> tuple[CompiledRule, ...]:
        rules = self._rules.get(name)
        if rules is None:
            rules = self._rules[name] = compile_policy(name, policy)
        return rules
