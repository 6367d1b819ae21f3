"""What would have to be written otherwise for a denied connection to be allowed: for people.

Sans-I/O.  Of each rule the fewest changes are named, and of all rules those that
need the fewest.  That a change is possible does not mean that it is wise.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ca.manifests.authorization import IDENTITY_ATTRIBUTES, Action, Attribute, Clause, Criterion, Rule
from ca.spiffe import SpiffeId
from node_agent.policy.compiled import Peer
from node_agent.policy.considered import Considered, Explanation
from node_agent.policy.matching import holds
from node_agent.policy.request import Request

_MOST: Final = 5
_NAMES: Final = {
    Attribute.PRINCIPAL: "principal",
    Attribute.NAMESPACE: "namespace",
    Attribute.SERVICE_ACCOUNT: "service account",
    Attribute.SOURCE_IP: "address",
    Attribute.DESTINATION_IP: "address",
    Attribute.PORT: "port",
}


def remedies(
    explanation: Explanation, request: Request, *, source: str, if_enrolled: SpiffeId | None = None
) -> list[str]:
    """One line for each way to allow what was denied, the smallest change first.

    ``source`` is its name for people; ``if_enrolled`` is the identity that it would have in the mesh.
    """
    decision = explanation.decision
    if decision.allowed:
        return []
    in_force = [each for each in explanation.considered if not each.policy.dry_run]
    if decision.policy is not None:
        denying = next(each for each in in_force if str(each.policy) == str(decision.policy))
        return list(_except_from(denying, decision.rule or 0, request))
    found: list[tuple[int, str]] = []
    for each in in_force:
        if each.policy.action is Action.ALLOW:
            found += _let_in(each, request, source, if_enrolled)
    found.sort(key=lambda one: one[0])
    return [text for _, text in found[:_MOST]]


def _except_from(denying: Considered, number: int, request: Request) -> Iterator[str]:
    """How not to be denied by the rule of a DENY (or CUSTOM) policy."""
    where = f"rule {number} of {denying.policy.action} policy {denying.policy}"
    yield f"remove {where}, or let it match less"
    rule = denying.policy.rules[number]
    account = _value(Attribute.SERVICE_ACCOUNT, request)
    if account and any(
        each.attribute is Attribute.SERVICE_ACCOUNT for clause in rule.sources for each in clause.criteria
    ):
        field, value = "notServiceAccounts", f"service account {account}"  # principals may not be beside them
    elif who := _value(Attribute.PRINCIPAL, request):
        field, value = "notPrincipals", f"principal {who}"
    else:
        field, value = "notIpBlocks", f"address {request.source_ip}"
    part = "each of its sources" if rule.sources else "a source of its own (from)"
    yield f"{where}: add {value} to {field} in {part}"


def _let_in(
    allowing: Considered, request: Request, source: str, if_enrolled: SpiffeId | None
) -> Iterator[tuple[int, str]]:
    """How each rule of an ALLOW policy could match, and how many changes that takes."""
    policy = allowing.policy
    if not policy.rules:
        yield 1, f"add a rule with {_who(request)} to ALLOW policy {policy}, which has none and so allows nothing"
    for number, rule in enumerate(policy.rules):
        where = f"rule {number} of ALLOW policy {policy}"
        if request.source_identity is None and if_enrolled is not None and _needs_identity(rule, request):
            enrolled = replace(request, source_identity=if_enrolled)
            enrol = f"enrol {source} in the mesh (label ringfence.io/mesh: enabled)"
            changes = [*_changes(rule, enrolled)]
            yield len(changes) + 1, f"{enrol}, for {where}" + "".join(f"; {change}" for change in changes)
            continue
        changes = [*_changes(rule, request)]
        yield len(changes), f"{where}: {'; '.join(changes)}"


def _needs_identity(rule: Rule, request: Request) -> bool:
    """Whether the rule fails for want of an identity."""
    failing = [_failing(clause, request) for clause in rule.sources]
    of_sources = [each.attribute for clause in failing for each in clause] if all(failing) else []
    of_conditions = [each.attribute for clause in rule.conditions for each in _failing(clause, request)]
    return any(each in IDENTITY_ATTRIBUTES for each in of_sources + of_conditions)


def _changes(rule: Rule, request: Request) -> Iterator[str]:
    for name in rule.unjudged:
        yield f"remove {name}, which a TCP connection does not show"
    for part, clauses in (("from", rule.sources), ("to", rule.operations)):
        failing = [_failing(clause, request) for clause in clauses]
        if clauses and all(failing):
            number = min(range(len(clauses)), key=lambda index: len(failing[index]))
            yield from (_change(f"{part}[{number}]", each, request) for each in failing[number])
    for number, clause in enumerate(rule.conditions):
        yield from (_change(f"when[{number}]", each, request) for each in _failing(clause, request))


def _failing(clause: Clause, request: Request) -> list[Criterion]:
    return [each for each in clause.criteria if not holds(each, request)]


def _change(where: str, criterion: Criterion, request: Request) -> str:
    value = _value(criterion.attribute, request)
    if criterion.negated:
        fitting = [each for each in criterion.values if not holds(criterion._replace(values=(each,)), request)]
        return f"take {', '.join(fitting)} out of {criterion.field} in {where}"
    if not value and criterion.attribute in IDENTITY_ATTRIBUTES:
        return f"take {criterion.field} out of {where}: who connects has no identity"
    return f"add {_NAMES[criterion.attribute]} {value} to {criterion.field} in {where}"


def _who(request: Request) -> str:
    identity = _value(Attribute.PRINCIPAL, request)
    return f"principal {identity}" if identity else f"address {request.source_ip}"


def _value(attribute: Attribute, request: Request) -> str:
    """What a connection has, as a policy would write it."""
    match attribute:
        case Attribute.PRINCIPAL | Attribute.NAMESPACE | Attribute.SERVICE_ACCOUNT:
            return Peer.of(request.source_identity).get(attribute) or ""
        case Attribute.SOURCE_IP:
            return request.source_ip
        case Attribute.DESTINATION_IP:
            return request.destination_address()
        case Attribute.PORT:
            return str(request.port)
        case Attribute.UNJUDGED:
            return ""
