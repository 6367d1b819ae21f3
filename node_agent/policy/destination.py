"""What one set of policies decides: compiled once for all workloads that it is about.

Istio's order (AuthorizationPolicy): "1. If there are any CUSTOM policies that
match the request, evaluate and deny the request if the evaluation result is
deny.  2. If there are any DENY policies that match the request, deny the
request.  3. If there are no ALLOW policies for the workload, allow the request.
4. If any of the ALLOW policies match the request, allow the request.  5. Deny
the request."
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action
from ca.spiffe import SpiffeId
from node_agent.model import ObjectName
from node_agent.policy.compiled import CompiledRule, Peer
from node_agent.policy.decision import Decision, DryRun, PolicyRule
from node_agent.policy.prefixes import NO_ADDRESS, Address, read_address
from node_agent.policy.request import Request
from node_agent.policy.rule_index import NOTHING, Reduced, RuleIndex

_MAX_REMEMBERED: Final = 16_384  # peers and ports of one destination: more than that is somebody who tries all
_MAX_NAMED: Final = 5  # policies in a sentence

_KINDS: Final[tuple[tuple[Action, bool], ...]] = (
    (Action.DENY, False),
    (Action.ALLOW, False),
    (Action.DENY, True),
    (Action.ALLOW, True),
    (Action.AUDIT, False),
)  # action and whether it is a dry run; the order of ``_decision``'s arguments

Compile = Callable[[ObjectName, AuthorizationPolicy], tuple[CompiledRule, ...]]


class Destination:
    """Policies in order; ``decide`` is for the workloads that all of them are about."""

    def __init__(self, policies: Iterable[tuple[ObjectName, AuthorizationPolicy]], compiled: Compile) -> None:
        rules: dict[tuple[Action, bool], list[CompiledRule]] = {}
        allowing: dict[bool, list[ObjectName]] = {True: [], False: []}
        for name, policy in policies:
            # Of CUSTOM and DENY the former come first, and both deny.
            action = Action.DENY if policy.action is Action.CUSTOM else policy.action
            rules.setdefault((action, policy.dry_run), []).extend(compiled(name, policy))
            if action is Action.ALLOW:
                allowing[policy.dry_run].append(name)
        self._indexes = tuple(
            RuleIndex(found, every=kind[0] is Action.AUDIT) if (found := rules.get(kind)) else None for kind in _KINDS
        )
        self._asks_destination = any(rule.asks_destination for found in rules.values() for rule in found)
        self._allowing, self._trials = tuple(allowing[False]), tuple(allowing[True])
        self._settled: dict[tuple[SpiffeId | None, int], Decision | tuple[Reduced, ...]] = {}
        self._decisions: dict[tuple[tuple[PolicyRule, ...], ...], Decision] = {}

    def decide(self, request: Request) -> Decision:
        """Judge a connection."""
        key = (request.source_identity, request.port)
        found = self._settled.get(key)
        if found is None:
            found = self._settle(*key)
        if isinstance(found, Decision):
            return found
        destination = read_address(request.destination_address()) if self._asks_destination else NO_ADDRESS
        return self._judge(found, read_address(request.source_ip), destination)

    def _settle(self, identity: SpiffeId | None, port: int) -> Decision | tuple[Reduced, ...]:
        """Work out what is left to ask of a peer and port, mostly nothing, and remember it."""
        if len(self._settled) >= _MAX_REMEMBERED:
            self._settled.clear()
        peer = Peer.of(identity)
        left = tuple(NOTHING if each is None else each.reduced(peer, port) for each in self._indexes)
        settled = self._judge(left, NO_ADDRESS, NO_ADDRESS) if all(each.is_settled for each in left) else left
        self._settled[identity, port] = settled
        return settled

    def _judge(self, left: tuple[Reduced, ...], source: Address, destination: Address) -> Decision:
        *firsts, auditing = left
        matched = (
            *[() if each is NOTHING else each.first(source, destination) for each in firsts],
            () if auditing is NOTHING else auditing.every(source, destination),
        )
        decision = self._decisions.get(matched)
        if decision is None:
            if len(self._decisions) >= _MAX_REMEMBERED:
                self._decisions.clear()
            decision = self._decisions[matched] = self._decision(*matched)
        return decision

    def _decision(
        self,
        denying: tuple[PolicyRule, ...],
        allowing: tuple[PolicyRule, ...],
        trial_denying: tuple[PolicyRule, ...],
        trial_allowing: tuple[PolicyRule, ...],
        auditing: tuple[PolicyRule, ...],
    ) -> Decision:
        """What follows from the rules that match: the first of each action."""
        by = denying or allowing
        allowed = not denying and bool(allowing or not self._allowing)
        would_deny = would_allow = None
        if allowed and trial_denying:
            would_deny = DryRun(
                policy=trial_denying[0].policy,
                rule=trial_denying[0].rule,
                detail=f"would be denied by policy {trial_denying[0]} (dry run)",
            )
        elif allowed and self._trials and not (self._allowing or trial_allowing):
            would_deny = DryRun(
                policy=self._trials[0], rule=None, detail=f"would be denied: {_unmatched(self._trials)} (dry run)"
            )
        elif not allowed and not denying and trial_allowing and not trial_denying:
            would_allow = DryRun(
                policy=trial_allowing[0].policy,
                rule=trial_allowing[0].rule,
                detail=f"would be allowed by policy {trial_allowing[0]} (dry run)",
            )
        return Decision(
            allowed=allowed,
            policy=by[0].policy if by else None,
            rule=by[0].rule if by else None,
            detail=self._detail(denying, allowing),
            audited=auditing,
            would_deny=would_deny,
            would_allow=would_allow,
        )

    def _detail(self, denying: tuple[PolicyRule, ...], allowing: tuple[PolicyRule, ...]) -> str:
        if denying:
            return f"denied by policy {denying[0]}"
        if allowing:
            return f"allowed by policy {allowing[0]}"
        return f"denied: {_unmatched(self._allowing)}" if self._allowing else "allowed: no ALLOW policy is about it"


def _unmatched(allowing: Sequence[ObjectName]) -> str:
    named = ", ".join(map(str, allowing[:_MAX_NAMED]))
    more = f" and {len(allowing) - _MAX_NAMED} more" if len(allowing) > _MAX_NAMED else ""
    return f"no rule of the ALLOW policies matches: {named}{more}"
