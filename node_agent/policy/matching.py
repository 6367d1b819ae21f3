"""Does a rule match a connection, and if not, for which reason: the plain reading, for explanations.

What decides connections is compiled (``compiled``); tests hold the two, and an
oracle of their own, against each other.
"""

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from ca.manifests.authorization import Action, Attribute, Clause, Criterion, Rule
from node_agent.policy.compiled import Patterns, Peer
from node_agent.policy.request import Request


class Mismatch(NamedTuple):
    """One clause of a rule that keeps it from matching.

    ``part`` is from, to or when, ``number`` its place there; ``criterion`` the first that does not hold, and
    ``observed`` what the connection has instead.
    """

    part: str
    number: int
    criterion: Criterion
    observed: str

    def __str__(self) -> str:
        where = f"{self.part}[{self.number}]"
        if self.criterion.attribute is Attribute.UNJUDGED:
            return f"{where} {self.criterion.field} can not be judged in a TCP connection"
        is_address = self.criterion.attribute in (Attribute.SOURCE_IP, Attribute.DESTINATION_IP)
        relation = f"is {'' if self.criterion.negated else 'not '}{'in ' if is_address else ''}"
        return f"{where} {self.criterion.field}: {self.observed} {relation}{self.criterion.listed(' or ')}"


def mismatches(rule: Rule, action: Action, request: Request) -> tuple[Mismatch, ...]:
    """What keeps a rule from matching, nothing if it matches.

    Of ``from`` and ``to`` each clause is named, because one that fits would do; of
    ``when`` each that does not fit.

    Istio: "L7 policies never match for ALLOW.  For DENY they will always match,
    so it is more restrictive."
    """
    if action is Action.ALLOW and rule.unjudged:
        return tuple(_unjudged(rule))
    found: list[Mismatch] = []
    for part, clauses in (("from", rule.sources), ("to", rule.operations)):
        failed = [_failed(part, number, clause, request) for number, clause in enumerate(clauses)]
        if clauses and None not in failed:
            found += filter(None, failed)
    found += filter(None, (_failed("when", number, each, request) for number, each in enumerate(rule.conditions)))
    return tuple(found)


def _unjudged(rule: Rule) -> Iterator[Mismatch]:
    for part, clauses in (("from", rule.sources), ("to", rule.operations), ("when", rule.conditions)):
        for number, clause in enumerate(clauses):
            for each in clause.criteria:
                if each.attribute is Attribute.UNJUDGED:
                    yield Mismatch(part, number, each, "")


def _failed(part: str, number: int, clause: Clause, request: Request) -> Mismatch | None:
    for each in clause.criteria:
        if not holds(each, request):
            return Mismatch(part, number, each, _observed(each, request))
    return None


def holds(criterion: Criterion, request: Request) -> bool:
    """Whether a criterion holds; what can not be judged is taken to."""
    if criterion.attribute is Attribute.UNJUDGED:
        return True
    return any(_fits(criterion.attribute, value, request) for value in criterion.values) is not criterion.negated


def _fits(attribute: Attribute, value: str, request: Request) -> bool:
    match attribute:
        case Attribute.PRINCIPAL | Attribute.NAMESPACE | Attribute.SERVICE_ACCOUNT:
            return Patterns((value,)).fit(Peer.of(request.source_identity).get(attribute))
        case Attribute.SOURCE_IP:
            return in_network(request.source_ip, value)
        case Attribute.DESTINATION_IP:
            return in_network(request.destination_address(), value)
        case Attribute.PORT:
            return value == str(request.port)
        case Attribute.UNJUDGED:
            return True


def in_network(ip: str, network: str) -> bool:
    """Whether an address, which may be empty, is in a network."""
    return ip != "" and ipaddress.ip_address(ip) in ipaddress.ip_network(network)


def _observed(criterion: Criterion, request: Request) -> str:
    """What the connection has instead."""
    match criterion.attribute:
        case Attribute.PRINCIPAL | Attribute.NAMESPACE | Attribute.SERVICE_ACCOUNT:
            text = Peer.of(request.source_identity).get(criterion.attribute)
            return text or ("plaintext, without an identity" if request.source_identity is None else "none")
        case Attribute.SOURCE_IP:
            return request.source_ip
        case Attribute.DESTINATION_IP:
            return request.destination_address() or "none"
        case Attribute.PORT:
            return str(request.port)
        case Attribute.UNJUDGED:
            return "nothing that TCP shows"
