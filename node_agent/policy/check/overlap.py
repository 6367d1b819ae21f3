"""Rules that change nothing, because of others: shadowed ones, and permissions of what is denied anyway."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action, Rule
from node_agent.model import ObjectName
from node_agent.policy.check.findings import Code, Finding, Severity
from node_agent.policy.check.implied import Cases, covers, is_about_all_of, never_matches
from node_agent.policy.decision import PolicyRule


class _Placed(NamedTuple):
    policy: AuthorizationPolicy
    ref: PolicyRule
    rule: Rule


_Label = tuple[str, str]


class Overlaps:
    """Every rule that is in force, found by the namespace and by a label that it is about."""

    def __init__(self, policies: Iterable[AuthorizationPolicy], *, root_namespace: str) -> None:
        self._root_namespace = root_namespace
        self._filed: dict[tuple[str, _Label | None], list[_Placed]] = {}
        for policy in policies:
            if not policy.dry_run:
                label = min(policy.selector.items(), default=None)
                self._filed.setdefault((policy.namespace, label), []).extend(_rules(policy))

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
        """A rule that decides on whatever this one matches, the first by name; a denial before others."""
        cases = Cases(placed.rule)
        found = [
            other
            for other in self._candidates(placed.policy)
            if _may_decide(other, placed) and self._decides(other, placed, cases)
        ]
        return min(found, key=lambda other: (other.policy.action is placed.policy.action, other.ref), default=None)

    def _candidates(self, policy: AuthorizationPolicy) -> Iterator[_Placed]:
        """Rules of policies that may be about all that this one is about."""
        for namespace in dict.fromkeys((self._root_namespace, policy.namespace)):
            for label in (None, *policy.selector.items()):
                yield from self._filed.get((namespace, label), ())

    def _decides(self, other: _Placed, placed: _Placed, cases: Cases) -> bool:
        if not is_about_all_of(other.policy, placed.policy, root_namespace=self._root_namespace):
            return False
        if not cases.are_covered_by(other.rule):
            return False
        # Of two that say the same the later one is superfluous.
        return (
            other.policy.action is not placed.policy.action
            or other.ref < placed.ref
            or not covers(placed.rule, other.rule)
            or not is_about_all_of(placed.policy, other.policy, root_namespace=self._root_namespace)
        )


def _may_decide(other: _Placed, placed: _Placed) -> bool:
    """Whether two rules do the same, or the one denies what the other allows."""
    denies = other.policy.action in (Action.DENY, Action.CUSTOM) and placed.policy.action is Action.ALLOW
    return other.ref != placed.ref and (denies or other.policy.action is placed.policy.action)


def _rules(policy: AuthorizationPolicy) -> Iterator[_Placed]:
    name = ObjectName(policy.namespace, policy.name)
    for number, rule in enumerate(policy.rules):
        if not never_matches(rule, policy.action):
            yield _Placed(policy, PolicyRule(name, number), rule)
