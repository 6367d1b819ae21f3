"""Rules, made ready to decide: in two steps, by what of a connection hardly varies and by what does.

Who connects and to which port takes few values at one destination, the source's
address many.  So a rule is first reduced by identity and port, which the index
remembers, to one of

* never: not for this peer and port;
* always: whatever the addresses;
* a ``Remainder``: what addresses it takes.
"""

from typing import Final, NamedTuple

from ca.manifests.authorization import Action, Attribute, AuthorizationPolicy, Clause, Criterion, Rule
from ca.spiffe import SpiffeId
from node_agent.model import ObjectName
from node_agent.policy.decision import PolicyRule
from node_agent.policy.prefixes import Address, NetworkSet


class Peer(NamedTuple):
    """Who connects, as policies call it; all None for plaintext, and the last two for who is no workload."""

    principal: str | None
    namespace: str | None
    account: str | None

    @classmethod
    def of(cls, identity: SpiffeId | None) -> "Peer":
        if identity is None:
            return _NOBODY
        namespace, account = identity.namespace, identity.service_account
        return cls(f"{identity.trust_domain}{identity.path}", namespace, account and f"{namespace}/{account}")

    def get(self, attribute: Attribute) -> str | None:
        if attribute is Attribute.PRINCIPAL:
            return self.principal
        return self.namespace if attribute is Attribute.NAMESPACE else self.account


_NOBODY: Final = Peer(None, None, None)


class Patterns:
    """Istio's string match: presence ``*``, suffix ``*x``, prefix ``x*``, or the very text."""

    __slots__ = ("exact", "prefixes", "presence", "suffixes")

    def __init__(self, values: tuple[str, ...]) -> None:
        rest = [each for each in values if each != "*"]
        self.presence = len(rest) < len(values)
        self.suffixes = tuple(each[1:] for each in rest if each.startswith("*"))
        self.prefixes = tuple(each[:-1] for each in rest if each.endswith("*") and not each.startswith("*"))
        self.exact = frozenset(each for each in rest if not each.startswith("*") and not each.endswith("*"))

    def fit(self, text: str | None) -> bool:
        """Whether one of them fits; who has no identity fits none."""
        if text is None:
            return False
        return text in self.exact or self.presence or text.startswith(self.prefixes) or text.endswith(self.suffixes)


class IdentityTest(NamedTuple):
    attribute: Attribute
    negated: bool
    patterns: Patterns


class AddressTest(NamedTuple):
    """Of the source's address, or of the destination's."""

    of_source: bool
    negated: bool
    networks: NetworkSet


Remainder = tuple[tuple[tuple[AddressTest, ...], ...], ...]
"""What addresses a rule takes: each of the groups, of which one alternative must hold, which is all of its tests."""

ALWAYS: Final[Remainder] = ()


class CompiledClause:
    """A source, operation or condition; what TCP does not show is taken to hold."""

    __slots__ = ("addresses", "identity", "ports")

    def __init__(self, clause: Clause) -> None:
        identity: list[IdentityTest] = []
        ports: list[tuple[bool, frozenset[int]]] = []
        addresses: list[AddressTest] = []
        for each in clause.criteria:
            match each.attribute:
                case Attribute.PORT:
                    ports.append((each.negated, frozenset(map(int, each.values))))
                case Attribute.SOURCE_IP | Attribute.DESTINATION_IP:
                    addresses.append(_address_test(each))
                case Attribute.UNJUDGED:
                    pass
                case _:
                    identity.append(IdentityTest(each.attribute, each.negated, Patterns(each.values)))
        self.identity = tuple(identity)
        self.ports = tuple(ports)
        self.addresses = tuple(addresses)

    def names(self) -> IdentityTest | None:
        """The first list that names somebody."""
        return next((each for each in self.identity if not each.negated and not each.patterns.presence), None)

    def may(self, peer: Peer, port: int) -> bool:
        """Whether it holds for this peer and port, as far as that goes."""
        return all(
            patterns.fit(peer.get(attribute)) is not negated for attribute, negated, patterns in self.identity
        ) and all((port in ports) is not negated for negated, ports in self.ports)


def _address_test(criterion: Criterion) -> AddressTest:
    of_source = criterion.attribute is Attribute.SOURCE_IP
    return AddressTest(of_source, criterion.negated, NetworkSet(criterion.values))


class CompiledRule:
    """One rule of one policy.

    ``naming`` are patterns of which one fits whenever the rule matches, ``ports``
    those with one of which it then goes to; None where there are none to find it by.
    """

    __slots__ = (
        "_remainder",
        "asks_destination",
        "asks_identity",
        "asks_port",
        "conditions",
        "naming",
        "operations",
        "ports",
        "ref",
        "sources",
    )

    def __init__(self, ref: PolicyRule, rule: Rule) -> None:
        self.ref = ref
        self.sources = tuple(map(CompiledClause, rule.sources))
        self.operations = tuple(map(CompiledClause, rule.operations))
        self.conditions = tuple(map(CompiledClause, rule.conditions))
        clauses = (*self.sources, *self.operations, *self.conditions)
        self.asks_identity = any(each.identity for each in clauses)
        self.asks_port = any(each.ports for each in clauses)
        self.asks_destination = any(not test.of_source for each in clauses for test in each.addresses)
        self._remainder = self._reduced(Peer.of(None), 0) if not (self.asks_identity or self.asks_port) else None
        self.naming = self._naming()
        self.ports = self._ports()

    def _naming(self) -> tuple[IdentityTest, ...] | None:
        for alternatives in (*((each,) for each in self.conditions), self.sources):
            tests = tuple(test for each in alternatives if (test := each.names()) is not None)
            if tests and len(tests) == len(alternatives):
                return tests
        return None

    def _ports(self) -> frozenset[int] | None:
        for alternatives in (self.operations, *((each,) for each in self.conditions)):
            named = [next((ports for negated, ports in each.ports if not negated), None) for each in alternatives]
            if named and None not in named:
                return frozenset(port for ports in named for port in ports or ())
        return None

    def reduce(self, peer: Peer, port: int) -> Remainder | None:
        """What is left to ask of the addresses; None for never, ``ALWAYS`` for nothing."""
        return self._remainder if self._remainder is not None else self._reduced(peer, port)

    def _reduced(self, peer: Peer, port: int) -> Remainder | None:
        for condition in self.conditions:
            if not condition.may(peer, port):
                return None
        remainder: list[tuple[tuple[AddressTest, ...], ...]] = []
        for alternatives in (self.operations, self.sources):
            if alternatives:
                left = tuple(each.addresses for each in alternatives if each.may(peer, port))
                if not left:
                    return None
                if all(left):
                    remainder.append(left)
        remainder += ((each.addresses,) for each in self.conditions if each.addresses)
        return tuple(remainder) or ALWAYS


def holds(remainder: Remainder, source: Address, destination: Address) -> bool:
    """Whether the addresses are what is left of a rule."""
    for alternatives in remainder:
        for tests in alternatives:
            for of_source, negated, networks in tests:
                if ((source if of_source else destination) in networks) is negated:
                    break
            else:
                break
        else:
            return False
    return True


def compile_policy(name: ObjectName, policy: AuthorizationPolicy) -> tuple[CompiledRule, ...]:
    """The rules of a policy that can match at all, in order.

    Istio: "L7 policies never match for ALLOW.  For DENY they will always match,
    so it is more restrictive."
    """
    return tuple(
        CompiledRule(PolicyRule(name, number), rule)
        for number, rule in enumerate(policy.rules)
        if not (policy.action is Action.ALLOW and rule.unjudged)
    )
