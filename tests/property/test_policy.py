"""The compiled policy engine against a naive evaluator that reads the manifests themselves (tests/policy_oracle)."""

from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ca.manifests import AuthorizationPolicy, parse_object
from ca.manifests.authorization import Action, Rule
from ca.spiffe import SpiffeId
from node_agent.model import ObjectName, Workload
from node_agent.policy import Decision, PolicyEngine, Request
from node_agent.policy.check.implied import covers
from node_agent.policy.matching import mismatches
from tests.policy_oracle import Asked, Verdict, judge

Manifest = dict[str, Any]

NAMESPACES = ("shop", "dev", "istio-system")
ACCOUNTS = ("cart", "web", "default")
IDENTITIES = (
    *(f"cluster.local/ns/{namespace}/sa/{account}" for namespace in NAMESPACES for account in ACCOUNTS),
    "partner.org/ns/shop/sa/cart",
    "cluster.local/ringfence/node/n1",
)
ADDRESSES = ("10.0.0.1", "10.0.0.200", "10.1.0.1", "192.168.0.9", "fd00::1", "fd00:1::1")
PORTS = (80, 8080, 5432)

patterns = st.sampled_from(
    (
        *IDENTITIES,
        *("*", "*/sa/cart", "*cart", "cluster.local/*", "cluster.local/ns/shop/*", "c*", "*t"),
        *("spiffe://cluster.local/ns/shop/sa/cart", "**", "*a*", "nobody"),
    )
)
namespaces = st.sampled_from((*NAMESPACES, "*", "s*", "*op", "*-system", "nowhere"))
accounts = st.sampled_from((*ACCOUNTS, *(f"{namespace}/{account}" for namespace in NAMESPACES for account in ACCOUNTS)))
blocks = st.sampled_from(
    (
        "10.0.0.0/8",
        "10.0.0.1",
        "10.0.0.7/24",
        "0.0.0.0/0",
        "192.168.0.9/32",
        "fd00::/16",
        "fd00::1",
        "::/0",
        "10.1.0.0/16",
    )
)
ports = st.sampled_from(tuple(map(str, (*PORTS, 443))))
texts = st.sampled_from(("GET", "/admin*", "example.com", "*"))


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values, min_size=1, max_size=3)


def with_twins(**fields: st.SearchStrategy[str]) -> dict[str, st.SearchStrategy[list[str]]]:
    return {twin: some(values) for name, values in fields.items() for twin in (name, f"not{name[0].upper()}{name[1:]}")}


L4_SOURCE = with_twins(principals=patterns, namespaces=namespaces, ipBlocks=blocks)
L4_ACCOUNTS = with_twins(serviceAccounts=accounts, ipBlocks=blocks)
L7_SOURCE = with_twins(requestPrincipals=texts, remoteIpBlocks=blocks)
L7_OPERATION = with_twins(methods=texts, paths=texts, hosts=texts)


def few(fields: Mapping[str, st.SearchStrategy[list[str]]]) -> st.SearchStrategy[Manifest]:
    """One to three of the fields."""
    return st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )


sources = st.one_of(few(L4_SOURCE), few(L4_SOURCE), few(L4_ACCOUNTS), few(L4_SOURCE | L7_SOURCE))
operations = st.one_of(*[few(with_twins(ports=ports))] * 3, few(with_twins(ports=ports) | L7_OPERATION))


def condition(key: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[Manifest]:
    return st.one_of(
        st.fixed_dictionaries({"key": st.just(key), "values": some(values)}, optional={"notValues": some(values)}),
        st.fixed_dictionaries({"key": st.just(key), "notValues": some(values)}),
    )


conditions = st.one_of(
    condition("source.ip", blocks),
    condition("source.namespace", namespaces),
    condition("source.principal", patterns),
    condition("source.serviceAccount", accounts),
    condition("destination.ip", blocks),
    condition("destination.port", ports),
    condition("connection.sni", texts),
    condition("request.headers[x]", texts),
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(sources.map(lambda each: {"source": each}), min_size=1, max_size=3),
        "to": st.lists(operations.map(lambda each: {"operation": each}), min_size=1, max_size=2),
        "when": st.lists(conditions, max_size=2),
    },
)
labels = st.dictionaries(st.sampled_from(("app", "tier")), st.sampled_from(("web", "db")), max_size=2)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    action = draw(st.sampled_from(("ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM", None)))
    spec: Manifest = {"rules": draw(st.lists(rules, min_size=1 if action in ("DENY", "CUSTOM") else 0, max_size=3))}
    if action is not None:
        spec["action"] = action
    if action == "CUSTOM":
        spec["provider"] = {"name": "external"}
    if draw(st.booleans()):
        spec["selector"] = {"matchLabels": draw(labels)}
    metadata: Manifest = {
        "name": f"p{draw(st.integers(0, 9))}",
        "namespace": draw(st.sampled_from(("shop", "shop", "dev", "istio-system"))),
    }
    if draw(st.integers(0, 3)) == 0:
        metadata["annotations"] = {"istio.io/dry-run": "true"}
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}


@st.composite
def requests(draw: st.DrawFn) -> Request:
    principal = draw(st.sampled_from((None, *IDENTITIES)))
    namespace = draw(st.sampled_from(("shop", "shop", "dev", "istio-system")))
    held = draw(labels)
    return Request(
        source_identity=None if principal is None else SpiffeId.parse(f"spiffe://{principal}"),
        source_ip=draw(st.sampled_from(ADDRESSES)),
        destination=Workload(
            uid="1",
            name=ObjectName(namespace, f"pod-{len(held)}"),
            service_account="default",
            node="n1",
            addresses=("10.9.9.9", "fd09::9"),
            identity=SpiffeId.workload("cluster.local", namespace, "default"),
            enrolled=True,
            labels=held,
        ),
        port=draw(st.sampled_from(PORTS)),
        destination_ip=draw(st.sampled_from((None, "10.1.0.1"))),
    )


def key(manifest: Manifest) -> ObjectName:
    return ObjectName(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def read(manifest: Manifest) -> AuthorizationPolicy:
    found = parse_object(manifest)
    assert isinstance(found, AuthorizationPolicy)
    return found


def asked(request: Request) -> Asked:
    version = 6 if ":" in request.source_ip else 4
    identity = request.source_identity
    return Asked(
        principal=None if identity is None else str(identity).removeprefix("spiffe://"),
        source_ip=request.source_ip,
        destination_ip=request.destination_ip or ("fd09::9" if version == 6 else "10.9.9.9"),
        port=request.port,
        namespace=request.destination.name.namespace,
        labels=request.destination.labels,
    )


def as_verdict(decision: Decision) -> Verdict:
    """What the oracle would say."""
    by = None
    if decision.policy is not None:
        assert decision.rule is not None
        by = (str(decision.policy), decision.rule)
    trial = decision.would_deny or decision.would_allow
    return Verdict(
        allowed=decision.allowed,
        by=by,
        audited=[(str(each.policy), each.rule) for each in decision.audited],
        would=None if trial is None else (decision.would_allow is not None, str(trial.policy), trial.rule),
    )


some_manifests = st.lists(manifests(), max_size=8, unique_by=key)


@settings(max_examples=120, deadline=None)
@given(some_manifests, st.lists(requests(), min_size=1, max_size=8))
def test_the_compiled_engine_decides_as_a_naive_evaluator_of_the_manifests(
    written: list[Manifest], many: list[Request]
) -> None:
    engine = PolicyEngine()
    engine.apply({key(each): read(each) for each in written})
    for request in many:
        decision = engine.decide(request)
        assert as_verdict(decision) == judge(written, asked(request))
        assert engine.decide(request) == decision


@settings(max_examples=60, deadline=None)
@given(some_manifests, st.lists(requests(), min_size=1, max_size=4))
def test_an_explanation_agrees_with_the_decision_rule_by_rule(written: list[Manifest], many: list[Request]) -> None:
    engine = PolicyEngine()
    engine.apply({key(each): read(each) for each in written})
    for request in many:
        explained = engine.explain(request)
        for each in explained.considered:
            alone = judge(
                [manifest for manifest in written if key(manifest) == ObjectName(*each.policy.key[1:])], asked(request)
            )
            if each.policy.action == "AUDIT" or each.policy.dry_run:
                continue
            assert alone.by == (None if each.matched is None else (str(each.policy), each.matched))
            for rule in each.rules:
                assert all(str(mismatch).isprintable() for mismatch in rule.mismatches)
        about = {ObjectName(*each.policy.key[1:]) for each in explained.considered}
        assert explained.decision.policy is None or explained.decision.policy in about


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(manifests(), st.booleans()), min_size=1, max_size=12),
    st.lists(requests(), min_size=1, max_size=4),
)
def test_after_any_changes_the_engine_is_as_one_that_is_built_afresh(
    steps: list[tuple[Manifest, bool]], many: list[Request]
) -> None:
    """Policies come, change and go; the workloads' labels differ from question to question."""
    engine = PolicyEngine()
    held: dict[ObjectName, AuthorizationPolicy] = {}
    for manifest, is_gone in steps:
        name = key(manifest)
        version = engine.version
        if is_gone:
            held.pop(name, None)
            engine.apply({name: None})
        else:
            held[name] = read(manifest)
            engine.apply({name: held[name]})
        assert engine.version > version
        fresh = PolicyEngine()
        fresh.apply(held)
        for request in many:
            assert engine.decide(request) == fresh.decide(request)
    engine.apply(dict.fromkeys(held), gone=[each.destination for each in many])
    assert len(engine) == 0
    assert all(engine.decide(request).allowed for request in many)


def _deny_rule(rule: Manifest) -> Rule:
    spec = {"action": "DENY", "rules": [rule]}
    metadata = {"name": "p", "namespace": "shop"}
    manifest = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}
    return read(manifest).rules[0]


@settings(max_examples=100, deadline=None)
@given(rules, rules, st.booleans(), st.lists(requests(), min_size=4, max_size=12))
def test_what_the_linter_takes_to_be_covered_by_a_rule_is(
    one: Manifest, other: Manifest, is_narrower: bool, many: list[Request]
) -> None:
    """No connection that the narrow rule matches escapes the wide one; half of the narrow ones are made to be that."""
    wide, narrow = _deny_rule(one), _deny_rule({**other, **one} if is_narrower else other)
    if not covers(wide, narrow):
        assert not is_narrower, "more conditions make a rule narrower"
        return
    for request in many:
        if not mismatches(narrow, Action.DENY, request):
            assert not mismatches(wide, Action.DENY, request)
