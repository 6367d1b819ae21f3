"""Every AuthorizationPolicy, and what they decide.

Sans-I/O: fed by the registry's steps, ``apply(changes.policies)``; asks nothing
and waits for nothing.  ``version`` grows with each change, so that whoever
judged a connection knows whether to judge it again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action
from node_agent.model import ObjectName, Workload
from node_agent.policy.decision import Decision, DryRun, PolicyRule
from node_agent.policy.matching import rule_mismatch
from node_agent.policy.request import Request
from node_agent.policy.scopes import ScopedPolicy, Scopes

DEFAULT_ROOT_NAMESPACE: Final = "istio-system"  # Istio's; the registry has the same


class PolicyEngine:
    """Judges connections at their destination.

    ``on_changed`` is called after each ``apply`` that changed a policy.
    """

    def __init__(self, *, root_namespace: str = DEFAULT_ROOT_NAMESPACE) -> None:
        self._scopes = Scopes(root_namespace)
        self._version = 0
        self.on_changed: list[Callable[[], None]] = []

    @property
    def version(self) -> int:
        """Grows whenever a policy comes, goes or changes."""
        return self._version

    def apply(self, policies: Mapping[ObjectName, AuthorizationPolicy | None]) -> None:
        """Take in policies that are new or changed; None for gone."""
        if not policies:
            return
        for name, policy in policies.items():
            self._scopes.put(name, policy)
        self._version += 1
        for tell in self.on_changed:
            tell()

    def policies(self) -> Iterator[AuthorizationPolicy]:
        """Every policy, in no order; not to be held across ``apply``."""
        return iter(self._scopes)

    def policies_for(self, workload: Workload) -> list[ScopedPolicy]:
        """Every policy that is about a workload, with its scope: AUDIT, CUSTOM, DENY, ALLOW, each by name."""
        return self._scopes.policies_for(workload)

    def decide(self, request: Request) -> Decision:
        """Judge a connection; cheap enough for each one, and for all live ones after a change."""
        every = [each.policy for each in self.policies_for(request.destination)]
        enforced = [policy for policy in every if not policy.dry_run]
        allowed, who, detail = _verdict(enforced, request)
        audited = tuple(
            found
            for policy in enforced
            if policy.action is Action.AUDIT and (found := _first_match([policy], request)) is not None
        )
        would_deny = would_allow = None
        if len(enforced) < len(every):
            would, by, why = _verdict(every, request)
            if would is not allowed:
                trial = DryRun(
                    policy=by.policy if by else _first_trial(every), rule=by.rule if by else None, detail=why
                )
                would_deny, would_allow = (None, trial) if would else (trial, None)
        return Decision(
            allowed=allowed,
            policy=who.policy if who else None,
            rule=who.rule if who else None,
            detail=detail,
            audited=audited,
            would_deny=would_deny,
            would_allow=would_allow,
        )


def _verdict(policies: list[AuthorizationPolicy], request: Request) -> tuple[bool, PolicyRule | None, str]:
    """Istio: "1. CUSTOM ... 2. If there are any DENY policies that match, deny.  3. If there are no ALLOW policies
    for the workload, allow.  4. If any of the ALLOW policies match, allow.  5. Deny."
    """
    for action in (Action.CUSTOM, Action.DENY):
        found = _first_match([each for each in policies if each.action is action], request)
        if found is not None:
            return False, found, f"denied by policy {found}"
    allowing = [each for each in policies if each.action is Action.ALLOW]
    if not allowing:
        return True, None, "allowed: no ALLOW policy is about it"
    found = _first_match(allowing, request)
    if found is not None:
        return True, found, f"allowed by policy {found}"
    return False, None, f"no ALLOW policy matches: {', '.join(map(str, allowing))}"


def _first_match(policies: list[AuthorizationPolicy], request: Request) -> PolicyRule | None:
    for policy in policies:
        for index, rule in enumerate(policy.rules):
            if rule_mismatch(rule, policy.action, request) is None:
                return PolicyRule(ObjectName(policy.namespace, policy.name), index)
    return None


def _first_trial(policies: list[AuthorizationPolicy]) -> ObjectName:
    return next(ObjectName(each.namespace, each.name) for each in policies if each.dry_run)
