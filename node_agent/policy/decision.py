"""What was decided, by whom, and what a dry run would have changed."""

from dataclasses import dataclass
from typing import NamedTuple

from node_agent.model import ObjectName


class PolicyRule(NamedTuple):
    """A rule of a policy, by its place in the manifest, from 0."""

    policy: ObjectName
    rule: int

    def __str__(self) -> str:
        return f"{self.policy}, rule {self.rule}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a policy on dry run would have done; ``rule`` is None if it is for want of a rule that matches."""

    policy: ObjectName
    rule: int | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a connection may be.

    ``policy`` and ``rule`` are who decided: the DENY (or CUSTOM) or ALLOW rule
    that matched.  None: no ALLOW policy selects the destination (allowed), or
    several do and none of their rules matches (denied).  ``detail`` is one
    sentence for people.

    ``audited`` are the rules of AUDIT policies that match.  ``would_deny`` and
    ``would_allow`` say what would be otherwise if the policies on dry run were
    in force; at most one of them is set.
    """

    allowed: bool
    policy: ObjectName | None
    rule: int | None
    detail: str
    audited: tuple[PolicyRule, ...] = ()
    would_deny: DryRun | None = None
    would_allow: DryRun | None = None
