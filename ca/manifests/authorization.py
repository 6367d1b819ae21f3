"""What an AuthorizationPolicy says, as values: who may open which connections to which workloads.

A rule is what Istio calls one: ``from`` (any of its sources), ``to`` (any of
its operations) and ``when`` (each of its conditions), all of which a connection
must match.  Each of those is a clause: criteria that must all hold.  Everything
that reads policies (engine, explanation, linter) sees only criteria.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from ca.manifests.fields import NO_LABELS, shown
from ca.manifests.names import ObjectKey

_LITERALS: Final = {  # what may stand in an identity (SPIFFE-ID 2), and in a namespace (RFC 1123 label)
    "principal": re.compile(r"[A-Za-z0-9._/-]*", re.ASCII),
    "namespace": re.compile(r"[a-z0-9-]{0,63}", re.ASCII),
}
_MAX_LISTED: Final = 5  # values in a line
_MAX_LEGIBLE: Final = 200  # characters: identities are long


class Action(StrEnum):
    """What happens to the connections that a policy matches.

    CUSTOM asks a program that speaks Envoy's protocol, which Ringfence does not: who can not be
    asked has not agreed, so what it matches is denied.
    """

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


class Attribute(StrEnum):
    """What of a connection a test looks at; ``UNJUDGED`` is what nobody sees in a TCP connection."""

    PRINCIPAL = "principal"
    NAMESPACE = "namespace"
    SERVICE_ACCOUNT = "service account"
    SOURCE_IP = "source address"
    DESTINATION_IP = "destination address"
    PORT = "port"
    UNJUDGED = "not in TCP"


IDENTITY_ATTRIBUTES: Final = (Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT)


class Criterion(NamedTuple):
    """One list of values: one of them must fit, or with ``negated`` none may.

    ``field`` is what the manifest calls it: ``principals``, ``notPorts``, ``when source.ip``.
    ``values`` are patterns as written (principals, namespaces), ``namespace/name`` (service
    accounts), canonical networks (addresses), or numbers (ports).
    """

    field: str
    attribute: Attribute
    negated: bool
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.field}: {self.listed()}"

    @property
    def impossible(self) -> tuple[str, ...]:
        """The patterns that fit nobody, whoever there is: no identity has such characters."""
        allowed = _LITERALS.get(self.attribute)
        return () if allowed is None else tuple(each for each in self.values if not allowed.fullmatch(_literal(each)))

    def listed(self, separator: str = ", ") -> str:
        """The values for a line of text: the first few, without control characters."""
        more = [f"{len(self.values) - _MAX_LISTED} more"] if len(self.values) > _MAX_LISTED else []
        return separator.join([*map(_legible, self.values[:_MAX_LISTED]), *more])


def _legible(value: str) -> str:
    return value if value.isprintable() and len(value) <= _MAX_LEGIBLE else shown(value)


def _literal(pattern: str) -> str:
    """What a pattern wants to be there, without its wildcard (Istio: at one end, the beginning counts first)."""
    return pattern[1:] if pattern.startswith("*") else pattern.removesuffix("*")


class Clause(NamedTuple):
    """One source, operation or condition: all of its criteria must hold."""

    criteria: tuple[Criterion, ...]

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The fields that need a look into the application's protocol."""
        return tuple(each.field for each in self.criteria if each.attribute is Attribute.UNJUDGED)

    def __str__(self) -> str:
        return "; ".join(str(each) for each in self.criteria)


class Rule(NamedTuple):
    """Any of ``sources``, any of ``operations``, and all of ``conditions``; what is empty matches everything."""

    sources: tuple[Clause, ...] = ()
    operations: tuple[Clause, ...] = ()
    conditions: tuple[Clause, ...] = ()

    def clauses(self) -> Iterator[Clause]:
        yield from self.sources
        yield from self.operations
        yield from self.conditions

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The fields of the rule that need a look into the application's protocol, each once."""
        return tuple(dict.fromkeys(name for clause in self.clauses() for name in clause.unjudged))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy:
    """``selector`` is empty where the policy is about every workload of its scope."""

    namespace: str
    name: str
    created: str = ""
    selector: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    action: Action = Action.ALLOW
    dry_run: bool = False
    rules: tuple[Rule, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("AuthorizationPolicy", self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
