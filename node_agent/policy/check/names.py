"""Names that a policy uses and that nobody has: of namespaces, of identities, of workloads to be about."""

from collections.abc import Iterator

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import IDENTITY_ATTRIBUTES, Attribute, Criterion
from ca.manifests.documents import Path
from ca.manifests.fields import printable, shown
from node_agent.model import ObjectName
from node_agent.policy.check.cluster import Cluster
from node_agent.policy.check.findings import Code, Finding, Severity, criterion_path

_CODES = {
    Attribute.PRINCIPAL: Code.UNKNOWN_PRINCIPAL,
    Attribute.SERVICE_ACCOUNT: Code.UNKNOWN_PRINCIPAL,
    Attribute.NAMESPACE: Code.UNKNOWN_NAMESPACE,
}
_NOBODY = {
    Attribute.PRINCIPAL: "no workload has such an identity",
    Attribute.SERVICE_ACCOUNT: "no workload runs as this service account",
    Attribute.NAMESPACE: "there is no such namespace",
}


def findings(policy: AuthorizationPolicy, cluster: Cluster) -> Iterator[Finding]:
    """What fits nothing that is known; nothing is said where nothing is known."""
    name = ObjectName(policy.namespace, policy.name)
    if cluster.is_known:
        yield from _about(policy, name, cluster)
    for number, rule in enumerate(policy.rules):
        for part, clauses in (("from", rule.sources), ("when", rule.conditions)):
            for index, clause in enumerate(clauses):
                for each in clause.criteria:
                    place = criterion_path(number, part, index, each.field)
                    yield from _values(each, place, name, cluster)


def _about(policy: AuthorizationPolicy, name: ObjectName, cluster: Cluster) -> Iterator[Finding]:
    if policy.namespace not in cluster.namespaces and policy.namespace != cluster.root_namespace:
        close = cluster.suggestion(Attribute.NAMESPACE, policy.namespace)
        yield Finding(
            severity=Severity.WARNING,
            code=Code.UNKNOWN_NAMESPACE,
            policy=name,
            path=("metadata", "namespace"),
            message=f"there is no namespace {policy.namespace}: the policy is about nothing{close}",
        )
    elif cluster.workloads and not cluster.selects(policy):
        labels = ", ".join(f"{printable(key)}={printable(value)}" for key, value in policy.selector.items())
        where = "the mesh" if policy.namespace == cluster.root_namespace else f"namespace {policy.namespace}"
        whom = f"no workload in {where} has the labels {labels}" if labels else f"there is no workload in {where}"
        yield Finding(
            severity=Severity.WARNING,
            code=Code.SELECTS_NOTHING,
            policy=name,
            path=("spec", "selector", "matchLabels") if labels else ("metadata", "namespace"),
            message=f"{whom}: the policy is about nothing",
        )


def _values(criterion: Criterion, place: Path, policy: ObjectName, cluster: Cluster) -> Iterator[Finding]:
    if criterion.attribute not in IDENTITY_ATTRIBUTES:
        return
    for value in criterion.values:
        if value in criterion.impossible:
            continue
        domain = _trust_domain(value) if criterion.attribute is Attribute.PRINCIPAL else None
        if domain is not None and domain not in cluster.trust_domains:
            yield _foreign(value, domain, place, policy, cluster)
        elif cluster.is_known and cluster.workloads and not cluster.has(criterion.attribute, value):
            close = cluster.suggestion(criterion.attribute, value)
            yield Finding(
                severity=Severity.WARNING,
                code=_CODES[criterion.attribute],
                policy=policy,
                path=place,
                message=f"{shown(value)}: {_NOBODY[criterion.attribute]}{close}",
            )


def _trust_domain(value: str) -> str | None:
    """The trust domain of a principal, where it is written out."""
    domain, slash, _ = value.partition("/")
    return domain if slash and "*" not in domain else None


def _foreign(value: str, domain: str, place: Path, policy: ObjectName, cluster: Cluster) -> Finding:
    is_default = domain == "cluster.local"
    what = (
        f"the trust domain here is {cluster.trust_domain}, and cluster.local is not another word for it"
        if is_default
        else f"{domain} is not the trust domain here ({cluster.trust_domain}); right if it is federated"
    )
    return Finding(
        severity=Severity.WARNING if is_default or not cluster.is_known else Severity.NOTE,
        code=Code.TRUST_DOMAIN,
        policy=policy,
        path=place,
        message=f"{shown(value)}: {what}",
    )
