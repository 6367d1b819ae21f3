"""AuthorizationPolicy manifests of Istio's API to values, strictly.

Accepted is what Istio's own admission accepts ("ValidateAuthorizationPolicy"),
so that a policy that works there works here; a field that nobody knows is an
error, because a policy that is misunderstood protects nobody.  Fields that
Istio knows but that are not in a TCP connection are read and marked: the engine
lets them allow nothing.
"""

import ipaddress
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from ca.manifests.authorization import Action, Attribute, AuthorizationPolicy, Clause, Criterion, Rule
from ca.manifests.documents import Path
from ca.manifests.fields import FieldError, Fields, printable, shown
from ca.manifests.skipped import Skipped

DRY_RUN_ANNOTATION: Final = "istio.io/dry-run"
_MAX_VALUES: Final = 4096  # of one field: more is a mistake, and each value is memory in every agent
_MAX_RULES: Final = 512  # Istio's API: "MaxItems: 512"
_MAX_CLAUSES: Final = 512  # Istio's API, of from and of to
_SPEC_FIELDS: Final = ("selector", "targetRef", "targetRefs", "rules", "action", "provider")
_GATEWAYS: Final = ("Gateway", "GatewayClass")


class _Known(NamedTuple):
    """A list field: what it looks at, and how one of its values is read."""

    attribute: Attribute
    negated: bool
    read: Callable[[str, Path, str], str]


def parse_authorization_policy(top: Fields) -> AuthorizationPolicy | Skipped:
    """Read one object.

    Raises:
        FieldError: which field is wrong, and what to write instead.
    """
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace = sys.intern(metadata.name("namespace", "default", label=True))
    name = metadata.name("name")
    _only(top, ("apiVersion", "kind", "metadata", "spec", "status"), "an AuthorizationPolicy")
    _only(spec, _SPEC_FIELDS, "spec")
    if (skipped := _for_a_gateway(spec, f"AuthorizationPolicy {namespace}/{name}")) is not None:
        return skipped
    action = Action(spec.choice("action", [each.value for each in Action], Action.ALLOW.value))
    rules = _items(spec, "rules", _MAX_RULES)
    if not rules and action in (Action.DENY, Action.CUSTOM):
        raise spec.error("rules", f"is missing: a {action} policy without rules never matches; write `- {{}}` for all")
    _check_provider(spec, action)
    return AuthorizationPolicy(
        namespace=namespace,
        name=name,
        created=metadata.moment("creationTimestamp"),
        selector=_selector(spec),
        action=action,
        dry_run=_dry_run(metadata.fields("annotations")),
        rules=tuple(_rule(each, namespace) for each in rules),
    )


def _for_a_gateway(spec: Fields, what: str) -> Skipped | None:
    """Policies that are attached to something else than workloads."""
    references = [spec.fields("targetRef")] if spec.has("targetRef") else spec.list_of_fields("targetRefs")
    if not references:
        return None
    if spec.has("selector"):
        raise spec.error("selector", "can not be with targetRefs; remove one of them")
    if all(each.text("kind") in _GATEWAYS for each in references):
        return Skipped(f"{what} is for a gateway (targetRefs): gateways are other programs")
    key = "targetRef" if spec.has("targetRef") else "targetRefs"
    raise spec.error(key, "is not supported; write the labels of the workloads into spec.selector.matchLabels")


def _check_provider(spec: Fields, action: Action) -> None:
    provider = spec.fields("provider")
    _only(provider, ("name",), "provider")
    if action is Action.CUSTOM and not provider.text("name", ""):
        raise spec.error("provider", "is missing; a CUSTOM policy needs provider.name")
    if action is not Action.CUSTOM and spec.has("provider"):
        raise spec.error("provider", f"is for CUSTOM policies, this one is {action}; remove it")


def _selector(spec: Fields) -> Mapping[str, str]:
    selector = spec.fields("selector")
    _only(selector, ("matchLabels",), "selector")
    labels = selector.labels("matchLabels")
    for key, value in labels.items():
        if not key or "*" in key + value:
            raise selector.fields("matchLabels").error(key, "must be a label and its value, without wildcards")
    return labels


def _dry_run(annotations: Fields) -> bool:
    text = annotations.text(DRY_RUN_ANNOTATION, "false")
    if text not in ("true", "false"):
        raise annotations.error(DRY_RUN_ANNOTATION, f'must be "true" or "false", not {shown(text)}')
    return text == "true"


def _rule(rule: Fields, namespace: str) -> Rule:
    _only(rule, ("from", "to", "when"), "a rule")
    return Rule(
        sources=_clauses(rule, "from", "source", _SOURCE, namespace),
        operations=_clauses(rule, "to", "operation", _OPERATION, namespace),
        conditions=tuple(_condition(each, namespace) for each in _items(rule, "when", _MAX_CLAUSES)),
    )


def _clauses(rule: Fields, key: str, inner: str, known: Mapping[str, _Known], namespace: str) -> tuple[Clause, ...]:
    items = _items(rule, key, _MAX_CLAUSES)
    if rule.has(key) and not items:
        raise rule.error(key, f"must not be empty; remove it to match every {inner}")
    clauses = []
    for item in items:
        _only(item, (inner,), key)
        below = item.fields(inner)
        _only(below, tuple(known), inner)
        criteria = [_criterion(below, name, name, known[name], namespace) for name in known if _nonempty(below, name)]
        clause = Clause(tuple(criteria))
        if not clause.criteria:
            raise item.error(inner, f"must not be empty; remove `{key}` to match every {inner}")
        if any(below.has(name) for name in _ACCOUNTS) and any(below.has(name) for name in _NOT_WITH_ACCOUNTS):
            raise item.error(inner, "serviceAccounts can not be with principals or namespaces; write two sources")
        clauses.append(clause)
    return tuple(clauses)


def _condition(condition: Fields, namespace: str) -> Clause:
    _only(condition, ("key", "values", "notValues"), "a condition")
    key = condition.text("key")
    known = _CONDITIONS.get(key)
    if known is None and not _OTHER_CONDITION.fullmatch(key):
        raise condition.error("key", f"{shown(key)} is not known; known are {', '.join(sorted(_CONDITIONS))}")
    attribute, read = known or (Attribute.UNJUDGED, _text)
    name = f"when {printable(key)}"
    criteria = tuple(
        _criterion(condition, at, f"{name} notValues" if negated else name, _Known(attribute, negated, read), namespace)
        for at, negated in (("values", False), ("notValues", True))
        if _nonempty(condition, at)
    )
    if not criteria:
        raise condition.error("values", "is missing; write values or notValues")
    return Clause(criteria)


def _criterion(fields: Fields, key: str, name: str, known: _Known, namespace: str) -> Criterion:
    values = fields.texts(key)
    path = (*fields.path, key)
    if len(values) > _MAX_VALUES:
        raise fields.error(key, f"must hold at most {_MAX_VALUES} values, not {len(values)}; write several policies")
    for index, value in enumerate(values):
        if not value:
            raise FieldError((*path, index), "must not be empty; remove it")
    read = tuple(sys.intern(known.read(value, (*path, index), namespace)) for index, value in enumerate(values))
    return Criterion(sys.intern(name), known.attribute, known.negated, tuple(dict.fromkeys(read)))


def _nonempty(fields: Fields, key: str) -> bool:
    value = fields.raw(key)
    return value is not None and value != []


def _items(fields: Fields, key: str, at_most: int) -> list[Fields]:
    items = fields.list_of_fields(key)
    if len(items) > at_most:
        raise fields.error(key, f"must hold at most {at_most} items, not {len(items)}; write several policies")
    return items


def _only(fields: Fields, known: Collection[str], what: str) -> None:
    for key in fields:
        if key not in known:
            raise fields.error(key, f"is not a field of {what}; it has {', '.join(known)}")


def _text(value: str, _path: Path, _namespace: str) -> str:
    return value


def _port(value: str, path: Path, _namespace: str) -> str:
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:6]) <= 65535):
        raise FieldError(path, f"must be a port number from 1 to 65535, not {shown(value)}")
    return str(int(value))


def _service_account(value: str, path: Path, namespace: str) -> str:
    """Istio: "<service account>" means one of the policy's namespace; no wildcards."""
    before, slash, after = value.partition("/")
    held, name = (before, after) if slash else (namespace, value)
    if "*" in value or "/" in name or not held or not name:
        raise FieldError(
            path, f"must be ACCOUNT or NAMESPACE/ACCOUNT without wildcards, not {shown(value)}; or use principals"
        )
    return f"{held}/{name}"


def _block(value: str, path: Path, _namespace: str) -> str:
    """An address or a network; bits behind its prefix are ignored, as Istio does."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise FieldError(path, f"must be an address or a network such as 10.1.0.0/16, not {shown(value)}") from None
    if isinstance(network, ipaddress.IPv6Network):
        if network.network_address.scope_id is not None:
            raise FieldError(path, f"must not have a zone, {shown(value)} has; remove what follows the %")
        if (mapped := network.network_address.ipv4_mapped) is not None and network.prefixlen >= 96:
            return f"{mapped}/{network.prefixlen - 96}"  # as our own addresses are: never v4-mapped
    return str(network)


def _both(name: str, attribute: Attribute, read: Callable[[str, Path, str], str]) -> dict[str, _Known]:
    """A field and its ``not`` twin."""
    twin = f"not{name[0].upper()}{name[1:]}"
    return {name: _Known(attribute, False, read), twin: _Known(attribute, True, read)}


_SOURCE: Final[Mapping[str, _Known]] = {
    **_both("principals", Attribute.PRINCIPAL, _text),
    **_both("requestPrincipals", Attribute.UNJUDGED, _text),
    **_both("namespaces", Attribute.NAMESPACE, _text),
    **_both("serviceAccounts", Attribute.SERVICE_ACCOUNT, _service_account),
    **_both("ipBlocks", Attribute.SOURCE_IP, _block),
    **_both("remoteIpBlocks", Attribute.UNJUDGED, _block),
}
_OPERATION: Final[Mapping[str, _Known]] = {
    **_both("hosts", Attribute.UNJUDGED, _text),
    **_both("ports", Attribute.PORT, _port),
    **_both("methods", Attribute.UNJUDGED, _text),
    **_both("paths", Attribute.UNJUDGED, _text),
}
_ACCOUNTS: Final = ("serviceAccounts", "notServiceAccounts")
_NOT_WITH_ACCOUNTS: Final = ("principals", "notPrincipals", "namespaces", "notNamespaces")
_CONDITIONS: Final[Mapping[str, tuple[Attribute, Callable[[str, Path, str], str]]]] = {
    "source.ip": (Attribute.SOURCE_IP, _block),
    "source.namespace": (Attribute.NAMESPACE, _text),
    "source.principal": (Attribute.PRINCIPAL, _text),
    "source.serviceAccount": (Attribute.SERVICE_ACCOUNT, _service_account),
    "destination.ip": (Attribute.DESTINATION_IP, _block),
    "destination.port": (Attribute.PORT, _port),
    "remote.ip": (Attribute.UNJUDGED, _block),
    "connection.sni": (Attribute.UNJUDGED, _text),
    "request.auth.principal": (Attribute.UNJUDGED, _text),
    "request.auth.audiences": (Attribute.UNJUDGED, _text),
    "request.auth.presenter": (Attribute.UNJUDGED, _text),
}
_OTHER_CONDITION: Final = re.compile(r"request\.(headers|auth\.claims)\[.+\]|experimental\.envoy\.filters\..+")
