"""Does a rule match a connection, and if not, for which reason: the plain reading, for explanations.

What decides connections is compiled (``compiled``); tests hold the two, and an
oracle of their own, against each other.
"""

import ipaddress
from typing import NamedTuple

from ca.manifests.authorization import Action, Attribute, Clause, Criterion, Rule
from node_agent.policy.request import Request


class Mismatch(NamedTuple):
    """Why a rule does not match: in its ``part`` (from, to, when) no clause fits, and ``why`` for each."""

    part: str
    why: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.part}: {'; '.join(self.why)}"


def rule_mismatch(rule: Rule, action: Action, request: Request) -> Mismatch | None:
    """Return why a rule does not match, None if it does.

    Istio: "L7 policies never match for ALLOW.  For DENY they will always match,
    so it is more restrictive."
    """
    if action is Action.ALLOW and rule.unjudged:
        return Mismatch(
            "rule", tuple(f"{field} is not in a TCP connection, so it allows nothing" for field in rule.unjudged)
        )
    for part, clauses in (("from", rule.sources), ("to", rule.operations)):
        if clauses and not any(_failed(clause, request) is None for clause in clauses):
            return Mismatch(part, tuple(why for clause in clauses if (why := _failed(clause, request))))
    for clause in rule.conditions:
        if (why := _failed(clause, request)) is not None:
            return Mismatch("when", (why,))
    return None


def _failed(clause: Clause, request: Request) -> str | None:
    """The first criterion that does not hold, in words."""
    for each in clause.criteria:
        if not holds(each, request):
            has = "has" if each.negated else "has not"
            return f"{each.field} {', '.join(each.values)} {has} {_observed(each, request)}"
    return None


def holds(criterion: Criterion, request: Request) -> bool:
    """Whether a criterion holds; what can not be judged is taken to."""
    if criterion.attribute is Attribute.UNJUDGED:
        return True
    return any(_fits(criterion.attribute, value, request) for value in criterion.values) is not criterion.negated


def _fits(attribute: Attribute, value: str, request: Request) -> bool:
    identity = request.source_identity
    match attribute:
        case Attribute.PRINCIPAL:
            return identity is not None and fits_pattern(value, str(identity).removeprefix("spiffe://"))
        case Attribute.NAMESPACE:
            return identity is not None and identity.namespace is not None and fits_pattern(value, identity.namespace)
        case Attribute.SERVICE_ACCOUNT:
            return identity is not None and value == f"{identity.namespace}/{identity.service_account}"
        case Attribute.SOURCE_IP:
            return in_network(request.source_ip, value)
        case Attribute.DESTINATION_IP:
            return in_network(request.destination_address(), value)
        case Attribute.PORT:
            return value == str(request.port)
        case Attribute.UNJUDGED:
            return True


def fits_pattern(pattern: str, text: str) -> bool:
    """Istio's string match: presence ``*``, suffix ``*x``, prefix ``x*``, or the very text."""
    if pattern == "*":
        return text != ""
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern


def in_network(ip: str, network: str) -> bool:
    """Whether an address, which may be empty, is in a network."""
    return ip != "" and ipaddress.ip_address(ip) in ipaddress.ip_network(network)


def _observed(criterion: Criterion, request: Request) -> str:
    """What the connection has instead."""
    identity = request.source_identity
    match criterion.attribute:
        case Attribute.PRINCIPAL | Attribute.NAMESPACE | Attribute.SERVICE_ACCOUNT:
            return "no identity: plaintext" if identity is None else str(identity).removeprefix("spiffe://")
        case Attribute.SOURCE_IP:
            return request.source_ip
        case Attribute.DESTINATION_IP:
            return request.destination_address() or "no address"
        case Attribute.PORT:
            return str(request.port)
        case Attribute.UNJUDGED:
            return "nothing that TCP shows"
