"""Every policy that is about a connection, with what each of its rules says: the ground of an explanation."""

from dataclasses import dataclass
from typing import NamedTuple

from ca.manifests import AuthorizationPolicy
from node_agent.policy.decision import Decision
from node_agent.policy.matching import Mismatch, mismatches
from node_agent.policy.request import Request
from node_agent.policy.scopes import Scope, ScopedPolicy


class ConsideredRule(NamedTuple):
    """A rule by its place in the manifest, and what keeps it from matching: nothing if it matches."""

    number: int
    mismatches: tuple[Mismatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A policy that is about the destination; ``rules`` is empty for one that has none, which never matches."""

    policy: AuthorizationPolicy
    scope: Scope
    rules: tuple[ConsideredRule, ...]

    @property
    def matched(self) -> int | None:
        """The first rule that matches."""
        return next((each.number for each in self.rules if not each.mismatches), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The decision, and every policy that was looked at: AUDIT, CUSTOM, DENY, ALLOW, each by name."""

    decision: Decision
    considered: tuple[Considered, ...]


def consider(scoped: ScopedPolicy, request: Request) -> Considered:
    """Hold one policy against a connection, rule by rule; slow, and for people."""
    policy = scoped.policy
    return Considered(
        policy=policy,
        scope=scoped.scope,
        rules=tuple(
            ConsideredRule(number, mismatches(rule, policy.action, request)) for number, rule in enumerate(policy.rules)
        ),
    )
