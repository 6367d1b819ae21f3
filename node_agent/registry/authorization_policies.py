"""Every AuthorizationPolicy that is in force, and what of them can not be judged.

The policy engine (node_agent/policy) decides by them; it is told of each change.
"""

from collections.abc import Iterator, Mapping

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action
from ca.manifests.fields import shown
from node_agent.model import ObjectName


class AuthorizationPolicies:
    """Changed only through ``apply``."""

    def __init__(self) -> None:
        self._policies: dict[ObjectName, AuthorizationPolicy] = {}

    def __iter__(self) -> Iterator[AuthorizationPolicy]:
        return iter(self._policies.values())

    def apply(
        self, policies: Mapping[ObjectName, AuthorizationPolicy | None]
    ) -> dict[ObjectName, AuthorizationPolicy | None]:
        """Take in what is new (or None for gone); returns those that changed."""
        changed: dict[ObjectName, AuthorizationPolicy | None] = {}
        for name, policy in policies.items():
            if self._policies.get(name) == policy:
                continue
            changed[name] = policy
            if policy is None:
                del self._policies[name]
            else:
                self._policies[name] = policy
        return changed

    def faults(self) -> Iterator[str]:
        """One line for each policy that does something else than it says."""
        for name, policy in sorted(self._policies.items()):
            unjudged = tuple(dict.fromkeys(field for rule in policy.rules for field in rule.unjudged))
            if policy.action is Action.CUSTOM:
                yield (
                    f"AuthorizationPolicy {name}: action CUSTOM asks another program, which is not supported; "
                    "what it matches is denied"
                )
            if unjudged:
                what = "allow nothing" if policy.action is Action.ALLOW else "match as if these were not there"
                yield (
                    f"AuthorizationPolicy {name}: {', '.join(unjudged)} can not be judged in a TCP connection; "
                    f"the rules that use it {what}"
                )
            for field, values in _impossible(policy).items():
                yield (
                    f"AuthorizationPolicy {name}: {field} {' and '.join(map(shown, values))} fit nobody; "
                    "write identities without spiffe://, with * at one end at most"
                )


def _impossible(policy: AuthorizationPolicy) -> dict[str, tuple[str, ...]]:
    """Patterns that fit nobody, by their field."""
    found: dict[str, tuple[str, ...]] = {}
    for rule in policy.rules:
        for clause in rule.clauses():
            for each in clause.criteria:
                if each.impossible:
                    found[each.field] = (*found.get(each.field, ()), *each.impossible)
    return found
