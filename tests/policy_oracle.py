"""A second evaluator of AuthorizationPolicies, naive on purpose: the oracle for the compiled engine.

It reads the manifests themselves, as plain data, and shares nothing with
``ca.manifests`` or ``node_agent.policy``.  It is written after Istio's words,
one function a sentence, and looks at every rule of every policy each time.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

L4_WHEN = (
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.ip",
    "destination.port",
)
L4_FIELDS = ("principals", "namespaces", "serviceAccounts", "ipBlocks", "ports")
ROOT_NAMESPACE = "istio-system"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One connection; ``principal`` is without ``spiffe://``, None for plaintext."""

    principal: str | None
    source_ip: str
    destination_ip: str
    port: int
    namespace: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``by`` is who decided: policy and rule.  ``would`` is the other verdict, with the dry runs in force."""

    allowed: bool
    by: tuple[str, int] | None
    audited: Sequence[tuple[str, int]] = field(default_factory=list)
    would: tuple[bool, str, int | None] | None = None


def judge(manifests: Sequence[Mapping[str, Any]], asked: Asked) -> Verdict:
    """Decide by everything that is written."""
    mine = sorted((each for each in manifests if _is_about(each, asked)), key=_name_parts)
    real = [each for each in mine if not _is_dry_run(each)]
    allowed, by = _decide(real, asked)
    audited = [match for each in real if _action(each) == "AUDIT" for match in _matches(each, asked)]
    would = None
    if len(real) < len(mine):
        would_be, would_by = _decide(mine, asked, prefer_dry_run=True)
        if would_be is not allowed:
            would = (would_be, *(would_by or (_first_dry_allow(mine), None)))
    return Verdict(allowed=allowed, by=by, audited=audited, would=would)


def _decide(
    policies: Sequence[Mapping[str, Any]], asked: Asked, *, prefer_dry_run: bool = False
) -> tuple[bool, tuple[str, int] | None]:
    if prefer_dry_run:  # who is to blame for the difference is a policy on dry run
        policies = sorted(policies, key=lambda each: not _is_dry_run(each))
    for action in ("CUSTOM", "DENY"):
        denying = [match for each in policies if _action(each) == action for match in _matches(each, asked)]
        if denying:
            return False, denying[0]
    allowing = [each for each in policies if _action(each) == "ALLOW"]
    if not allowing:
        return True, None
    matches = [match for each in allowing for match in _matches(each, asked)]
    return (True, matches[0]) if matches else (False, None)


def _matches(policy: Mapping[str, Any], asked: Asked) -> list[tuple[str, int]]:
    rules = _spec(policy).get("rules") or []
    return [(_name(policy), number) for number, rule in enumerate(rules) if _rule_matches(rule, policy, asked)]


def _rule_matches(rule: Mapping[str, Any], policy: Mapping[str, Any], asked: Asked) -> bool:
    namespace = _name_parts(policy)[0]
    sources = [each["source"] for each in rule.get("from") or []]
    operations = [each["operation"] for each in rule.get("to") or []]
    conditions = rule.get("when") or []
    if _action(policy) == "ALLOW" and (
        any(_is_l7_field(name) for each in (*sources, *operations) for name in each if each[name])
        or any(each["key"] not in L4_WHEN for each in conditions)
    ):
        return False
    return (
        (not sources or any(_clause_holds(each, namespace, asked) for each in sources))
        and (not operations or any(_clause_holds(each, namespace, asked) for each in operations))
        and all(_condition_holds(each, namespace, asked) for each in conditions)
    )


def _is_l7_field(name: str) -> bool:
    return _positive(name) not in L4_FIELDS


def _positive(name: str) -> str:
    """The field whose opposite this is, or itself."""
    return name[3].lower() + name[4:] if name.startswith("not") else name


def _clause_holds(clause: Mapping[str, Any], namespace: str, asked: Asked) -> bool:
    for name, values in clause.items():
        if not values or _is_l7_field(name):
            continue
        one_fits = any(_fits(_positive(name), value, namespace, asked) for value in values)
        if one_fits == name.startswith("not"):
            return False
    return True


def _condition_holds(condition: Mapping[str, Any], namespace: str, asked: Asked) -> bool:
    key = condition["key"]
    if key not in L4_WHEN:
        return True
    values, not_values = condition.get("values") or [], condition.get("notValues") or []
    if values and not any(_fits(key, value, namespace, asked) for value in values):
        return False
    return not any(_fits(key, value, namespace, asked) for value in not_values)


def _fits(what: str, value: str, namespace: str, asked: Asked) -> bool:
    parts = (asked.principal or "").split("/")
    is_workload = len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa"
    if what in ("ports", "destination.port"):
        return int(value) == asked.port
    if what in ("ipBlocks", "source.ip"):
        return _inside(asked.source_ip, value)
    if what == "destination.ip":
        return _inside(asked.destination_ip, value)
    if what in ("principals", "source.principal"):
        return asked.principal is not None and _string_match(value, asked.principal)
    if what in ("namespaces", "source.namespace"):
        return is_workload and _string_match(value, parts[2])
    assert what in ("serviceAccounts", "source.serviceAccount")
    wanted = value if "/" in value else f"{namespace}/{value}"
    return is_workload and wanted == f"{parts[2]}/{parts[4]}"


def _string_match(pattern: str, text: str) -> bool:
    if pattern == "*":
        return bool(text)
    if pattern[0] == "*":
        return text.endswith(pattern[1:])
    if pattern[-1] == "*":
        return text.startswith(pattern[:-1])
    return pattern == text


def _inside(ip: str, block: str) -> bool:
    network = ipaddress.ip_network(block, strict=False)
    if ip and ":" not in ip and network.version == 6 and network.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        ip = f"::ffff:{ip}"  # the same address, written as the network is
    return bool(ip) and ipaddress.ip_address(ip) in network


def _is_about(policy: Mapping[str, Any], asked: Asked) -> bool:
    if _name_parts(policy)[0] not in (ROOT_NAMESPACE, asked.namespace):
        return False
    wanted = (_spec(policy).get("selector") or {}).get("matchLabels") or {}
    return all(asked.labels.get(key) == value for key, value in wanted.items())


def _spec(policy: Mapping[str, Any]) -> Mapping[str, Any]:
    return policy.get("spec") or {}


def _action(policy: Mapping[str, Any]) -> str:
    return str(_spec(policy).get("action") or "ALLOW")


def _is_dry_run(policy: Mapping[str, Any]) -> bool:
    return (policy["metadata"].get("annotations") or {}).get("istio.io/dry-run") == "true"


def _name_parts(policy: Mapping[str, Any]) -> tuple[str, str]:
    return policy["metadata"].get("namespace") or "default", policy["metadata"]["name"]


def _name(policy: Mapping[str, Any]) -> str:
    return "/".join(_name_parts(policy))


def _first_dry_allow(policies: Sequence[Mapping[str, Any]]) -> str:
    return next(_name(each) for each in policies if _is_dry_run(each) and _action(each) == "ALLOW")
