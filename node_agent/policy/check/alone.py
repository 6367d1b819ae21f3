"""What a policy says by itself: rules that never match, or that match more than they say."""

from collections.abc import Iterator

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import IDENTITY_ATTRIBUTES, Action, Attribute, Clause, Rule
from ca.manifests.documents import Path
from ca.manifests.fields import shown
from node_agent.model import ObjectName
from node_agent.policy.check.findings import Code, Finding, Severity, criterion_path
from node_agent.policy.check.implied import excludes_all, never_matches


def findings(policy: AuthorizationPolicy, *, root_namespace: str) -> Iterator[Finding]:
    """Everything that can be said without knowing what else there is."""
    name = ObjectName(policy.namespace, policy.name)

    def found(severity: Severity, code: Code, message: str, path: Path = ()) -> Finding:
        return Finding(severity=severity, code=code, policy=name, path=path, message=message)

    if policy.dry_run:
        what = "and an AUDIT policy has nothing else" if policy.action is Action.AUDIT else "what it would do is noted"
        severity = Severity.WARNING if policy.action is Action.AUDIT else Severity.NOTE
        yield found(severity, Code.DRY_RUN, f"on dry run: it is not enforced, {what}", ("metadata", "annotations"))
    if policy.namespace == root_namespace:
        whom = "of every namespace that its selector fits" if policy.selector else "of every namespace"
        yield found(
            Severity.NOTE, Code.WHOLE_MESH, f"{root_namespace} is the root namespace: about the workloads {whom}"
        )
    if policy.action is Action.CUSTOM:
        message = "CUSTOM asks another program, which is not supported: what it matches is denied; write ALLOW or DENY"
        yield found(Severity.ERROR, Code.CUSTOM, message, ("spec", "action"))
    if not policy.rules and policy.action is Action.ALLOW:
        message = "without rules it allows nothing: what no other ALLOW policy allows is denied"
        yield found(Severity.NOTE, Code.ALLOWS_NOTHING, message, ("spec",))
    for number, rule in enumerate(policy.rules):
        place: Path = ("spec", "rules", number)
        if rule.unjudged:
            fields = ", ".join(rule.unjudged)
            if never_matches(rule, policy.action):
                message = f"{fields} can not be seen in TCP: the rule allows nothing; judge by from and ports"
                yield found(Severity.ERROR, Code.NEVER_ALLOWS, message, place)
            elif policy.action is not Action.CUSTOM:
                message = (
                    f"{fields} can not be seen in TCP: the rule matches as if these were not there; {_narrower(rule)}"
                )
                yield found(Severity.WARNING, Code.DENIES_MORE, message, place)
        yield from _impossible(rule, number, name)
        if policy.action is Action.ALLOW and not rule.unjudged and _takes_plaintext_by_exclusion(rule):
            message = (
                'plaintext is in no namespace and nobody: it is allowed too; add principals: ["*"] if it must not be'
            )
            yield found(Severity.WARNING, Code.ALLOWS_PLAINTEXT, message, place)


def _narrower(rule: Rule) -> str:
    has_port = any(each.attribute is Attribute.PORT for clause in rule.clauses() for each in clause.criteria)
    return "is that meant?" if has_port else "name the ports that it is about"


def _impossible(rule: Rule, number: int, policy: ObjectName) -> Iterator[Finding]:
    """Values that fit nobody, and clauses that exclude what they ask for."""
    for part, clauses in (("from", rule.sources), ("to", rule.operations), ("when", rule.conditions)):
        for index, clause in enumerate(clauses):
            for each in clause.criteria:
                for value in each.impossible:
                    yield Finding(
                        severity=Severity.ERROR,
                        code=Code.FITS_NOBODY,
                        policy=policy,
                        path=criterion_path(number, part, index, each.field),
                        message=f"{shown(value)} fits nobody: {_why(value, each.attribute)}",
                    )
            for wanted, excluded in excludes_all(clause):
                yield Finding(
                    severity=Severity.ERROR,
                    code=Code.NEVER_MATCHES,
                    policy=policy,
                    path=criterion_path(number, part, index, wanted.field),
                    message=f"never matches: {excluded.field} excludes all of {wanted.field}",
                )


def _why(value: str, attribute: Attribute) -> str:
    if value.startswith("spiffe://"):
        return f"principals are written without spiffe://; write {value.removeprefix('spiffe://')}"
    if "*" in value.removeprefix("*").removesuffix("*") or (value.startswith("*") and value.endswith("*")):
        return "* is a wildcard at one end only; write x* or *x"
    what = "namespace" if attribute is Attribute.NAMESPACE else "identity"
    return f"no {what} has such characters; correct it"


def _takes_plaintext_by_exclusion(rule: Rule) -> bool:
    """Whether who has no identity matches, just because it is not one that is excluded."""
    if not all(_allows_nobody(each) for each in rule.conditions):
        return False
    if any(_excludes_identities(each) for each in rule.conditions):
        return not rule.sources or any(_allows_nobody(each) for each in rule.sources)
    return any(_excludes_identities(each) and _allows_nobody(each) for each in rule.sources)


def _excludes_identities(clause: Clause) -> bool:
    return any(each.negated and each.attribute in IDENTITY_ATTRIBUTES for each in clause.criteria)


def _allows_nobody(clause: Clause) -> bool:
    return all(each.negated or each.attribute not in IDENTITY_ATTRIBUTES for each in clause.criteria)
