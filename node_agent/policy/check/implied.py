"""Does one rule match whatever another one matches: a sure yes, or "not known".

Sound and not complete: what is said to be implied is, but not all that is
implied is found.  Rules are compared field by field; an identity is also
compared with namespaces and accounts, which are parts of it.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import IDENTITY_ATTRIBUTES, Action, Attribute, Clause, Criterion, Rule

_ADDRESSES = (Attribute.SOURCE_IP, Attribute.DESTINATION_IP)


def is_about_all_of(wide: AuthorizationPolicy, narrow: AuthorizationPolicy, *, root_namespace: str) -> bool:
    """Whether every workload that the one policy is about is one that the other is about."""
    if wide.namespace not in (root_namespace, narrow.namespace):
        return False
    return wide.selector.items() <= narrow.selector.items()


def never_matches(rule: Rule, action: Action) -> bool:
    """Whether a rule is known to match nothing, because of what TCP does not show."""
    return action is Action.ALLOW and bool(rule.unjudged)


class Cases:
    """A rule as what it asks for in each case: of each source, and of each operation, with all conditions."""

    def __init__(self, rule: Rule) -> None:
        conditions = [each for clause in rule.conditions for each in clause.criteria]
        self.sources = [[*clause.criteria, *conditions] for clause in rule.sources] or [conditions]
        self.operations = [[*clause.criteria, *conditions] for clause in rule.operations] or [conditions]

    def are_covered_by(self, wide: Rule) -> bool:
        """Whether another rule matches whatever this one does; neither may be one that ``never_matches``."""
        return (
            _one_of(wide.sources, self.sources)
            and _one_of(wide.operations, self.operations)
            and all(
                _follows(condition.criteria, [*source, *operation])
                for condition in wide.conditions
                for source in self.sources
                for operation in self.operations
            )
        )


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether a rule matches whatever another one does."""
    return Cases(narrow).are_covered_by(wide)


def _one_of(alternatives: Sequence[Clause], known: Iterable[Sequence[Criterion]]) -> bool:
    """Whether in each case one of the alternatives holds."""
    return not alternatives or all(any(_follows(each.criteria, case) for each in alternatives) for case in known)


def _follows(wanted: Iterable[Criterion], known: Sequence[Criterion]) -> bool:
    """Whether all of ``wanted`` hold where all of ``known`` do."""
    return all(each.attribute is Attribute.UNJUDGED or any(_implies(other, each) for other in known) for each in wanted)


def _implies(known: Criterion, wanted: Criterion) -> bool:
    if not wanted.negated:
        return not known.negated and all(
            any(_within(known.attribute, value, wanted.attribute, other) for other in wanted.values)
            for value in known.values
        )
    if known.negated:
        return known.attribute is wanted.attribute and all(
            any(_within(wanted.attribute, value, known.attribute, other) for other in known.values)
            for value in wanted.values
        )
    return known.attribute is wanted.attribute and all(
        _apart(known.attribute, value, other) for value in known.values for other in wanted.values
    )


def excludes_all(clause: Clause) -> Iterator[tuple[Criterion, Criterion]]:
    """Pairs of criteria of a clause that can not both hold: what one asks for, the other excludes."""
    for wanted in clause.criteria:
        for excluded in clause.criteria:
            if (
                not wanted.negated
                and excluded.negated
                and wanted.attribute is not Attribute.UNJUDGED
                and all(
                    any(_within(wanted.attribute, value, excluded.attribute, other) for other in excluded.values)
                    for value in wanted.values
                )
            ):
                yield wanted, excluded


def _within(attribute: Attribute, value: str, of: Attribute, other: str) -> bool:
    """Whether whatever fits ``value`` fits ``other`` as well."""
    if attribute is of:
        return _same_attribute_within(attribute, value, other)
    if attribute not in IDENTITY_ATTRIBUTES or of not in IDENTITY_ATTRIBUTES:
        return False
    if of is Attribute.PRINCIPAL:
        return other == "*"  # whoever is in a namespace has an identity
    held = _parts(attribute, value)
    if held is None:
        return False
    namespace, account = held
    if of is Attribute.NAMESPACE:
        return _pattern_within(namespace, other)
    return account is not None and f"{namespace}/{account}" == other


def _parts(attribute: Attribute, value: str) -> tuple[str, str | None] | None:
    """Namespace, a pattern perhaps, and account of whoever fits; None where they are not known.

    A pattern of identities fits some that are no workload's, and so in no namespace.
    """
    if attribute is Attribute.SERVICE_ACCOUNT:
        namespace, _, account = value.partition("/")
        return namespace, account
    if attribute is Attribute.NAMESPACE:
        return value, None
    parts = value.split("/")
    if "*" in value or len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
        return None
    return parts[2], parts[4]


def _same_attribute_within(attribute: Attribute, value: str, other: str) -> bool:
    if attribute in _ADDRESSES:
        inner, outer = _network(value), _network(other)
        return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
    if attribute in (Attribute.PRINCIPAL, Attribute.NAMESPACE):
        return _pattern_within(value, other)
    return value == other


def _pattern_within(value: str, other: str) -> bool:
    if other in ("*", value):
        return True
    if value == "*":
        return False
    if value.startswith("*"):
        return other.startswith("*") and value[1:].endswith(other[1:])
    if value.endswith("*"):
        return other.endswith("*") and not other.startswith("*") and value[:-1].startswith(other[:-1])
    return _fits(other, value)


def _fits(pattern: str, text: str) -> bool:
    """Whether a text without wildcards fits a pattern."""
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


@lru_cache(maxsize=65536)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


def _apart(attribute: Attribute, value: str, other: str) -> bool:
    """Whether nothing fits both."""
    if attribute in _ADDRESSES:
        return not _network(value).overlaps(_network(other))
    if attribute not in (Attribute.PRINCIPAL, Attribute.NAMESPACE):
        return value != other
    if "*" not in value:
        return not _fits(other, value)
    if "*" not in other:
        return not _fits(value, other)
    if value.endswith("*") and other.endswith("*") and not value.startswith("*") and not other.startswith("*"):
        return not value[:-1].startswith(other[:-1]) and not other[:-1].startswith(value[:-1])
    return False
