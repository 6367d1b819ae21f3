"""Rules that change nothing, because of others: shadowed ones, and permissions of what is denied anyway."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action, Rule
from node_agent.model import ObjectName
from node_agent.policy.check.findings import Code, Finding, Severity
from node_agent.policy.check.implied import covers, is_about_all_of, never_matches
from node_agent.policy.decision import PolicyRule


class _Placed(NamedTuple):
    policy: AuthorizationPolicy
    ref: PolicyRule
    rule: Rule


class Overlaps:
    """Every rule that is in force, found by the namespace that it is about."""

    def __init__(self, policies: Iterable[AuthorizationPolicy], *, root_namespace: str) -> None:
        self._root_namespace = root_namespace
        self._by_namespace: dict[str, list[_Placed]] = {}
        for policy in sorted(policies, key=lambda each: (each.namespace, each.name)):
            if not policy.dry_run:
                self._by_namespace.setdefault(policy.namespace, []).extend(_rules(policy))

    def findings(self, policy: AuthorizationPolicy) -> Iterator[Finding]:
        """What others, or its own other rules, make superfluous of a policy."""
        if policy.action is Action.AUDIT:
            return  # each rule that matches is noted
        for placed in _rules(policy):
            other = self._deciding(placed)
            if other is None:
                continue
            denied = placed.policy.action is Action.ALLOW and other.policy.action is not Action.ALLOW
            by = f"rule {other.ref.rule}" if other.ref.policy == placed.ref.policy else f"policy {other.ref}"
            yield Finding(
                severity=Severity.ERROR if denied else Severity.WARNING,
                code=Code.DENIED_ANYWAY if denied else Code.SHADOWED,
                policy=placed.ref.policy,
                path=("spec", "rules", placed.ref.rule),
                message=(
                    f"never takes effect: whatever it allows is denied by {by}; correct one of them"
                    if denied
                    else f"shadowed: whatever it matches is matched by {by}; remove it, or make it say something else"
                ),
            )

    def _deciding(self, placed: _Placed) -> _Placed | None:
        """A rule that decides on whatever this one matches; a denial first."""
        found = None
        for namespace in dict.fromkeys((self._root_namespace, placed.policy.namespace)):
            for other in self._by_namespace.get(namespace, ()):
                if self._decides(other, placed):
                    if other.policy.action is not placed.policy.action:
                        return other
                    found = found or other
        return found

    def _decides(self, other: _Placed, placed: _Placed) -> bool:
        denies = other.policy.action in (Action.DENY, Action.CUSTOM)
        if other.policy.action is not placed.policy.action and not (denies and placed.policy.action is Action.ALLOW):
            return False
        if other.ref == placed.ref or not is_about_all_of(
            other.policy, placed.policy, root_namespace=self._root_namespace
        ):
            return False
        if not covers(other.rule, placed.rule):
            return False
        # Of two that say the same the later one is superfluous.
        return (
            other.policy.action is not placed.policy.action or other.ref < placed.ref or not self._same(other, placed)
        )

    def _same(self, other: _Placed, placed: _Placed) -> bool:
        return covers(placed.rule, other.rule) and is_about_all_of(
            placed.policy, other.policy, root_namespace=self._root_namespace
        )


def _rules(policy: AuthorizationPolicy) -> Iterator[_Placed]:
    name = ObjectName(policy.namespace, policy.name)
    for number, rule in enumerate(policy.rules):
        if not never_matches(rule, policy.action):
            yield _Placed(policy, PolicyRule(name, number), rule)
