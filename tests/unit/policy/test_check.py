"""What ``ringfence policy check`` says of policies, and of which it says nothing."""

from typing import Any

import pytest

from ca.manifests import AuthorizationPolicy
from node_agent.policy.check import Cluster, Code, Finding, KnownWorkload, Severity, check
from tests.manifest_builder import authorization_policy as policy

Spec = dict[str, Any]


def workload(namespace: str, account: str, *, trust_domain: str = "cluster.local", **labels: str) -> KnownWorkload:
    return KnownWorkload(
        namespace=namespace,
        name=f"{account}-1",
        service_account=account,
        identity=f"{trust_domain}/ns/{namespace}/sa/{account}",
        labels=labels,
    )


SHOP = Cluster(
    workloads=[workload("shop", "cart", app="cart"), workload("shop", "web", app="web"), workload("dev", "batch")],
    namespaces=["empty"],
)
NOBODY = Cluster()


def said(*policies: AuthorizationPolicy, cluster: Cluster = NOBODY) -> list[tuple[Code, Severity]]:
    return [(each.code, each.severity) for each in check(policies, cluster)]


def only(*policies: AuthorizationPolicy, cluster: Cluster = NOBODY) -> Finding:
    (finding,) = check(policies, cluster)
    return finding


def source(**fields: list[str]) -> Spec:
    return {"from": [{"source": fields}]}


def ports(*numbers: int) -> Spec:
    return {"to": [{"operation": {"ports": [str(each) for each in numbers]}}]}


CART = "cluster.local/ns/shop/sa/cart"


@pytest.mark.parametrize(
    "spec",
    [
        {"rules": [{}]},
        {"rules": [source(principals=[CART]) | ports(80)]},
        {"action": "DENY", "rules": [source(notPrincipals=["*"])]},
        {"action": "DENY", "rules": [source(notNamespaces=["shop"])]},
        {"rules": [source(principals=["*"], notPrincipals=["*/sa/batch"])]},
        {"rules": [source(principals=["*"], notPrincipals=["*/sa/batch"]), source(ipBlocks=["10.0.0.0/8"])]},
        {"rules": [source(serviceAccounts=["cart"]) | ports(80), source(serviceAccounts=["web"]) | ports(81)]},
        {"action": "AUDIT", "rules": [{}, source(namespaces=["shop"])]},
        {"selector": {"matchLabels": {"app": "web"}}, "rules": [source(namespaces=["dev", "shop"])]},
    ],
)
def test_a_sound_policy_is_left_in_peace(spec: Spec) -> None:
    assert said(policy("web", spec)) == []
    assert said(policy("web", spec), cluster=SHOP) == []


def test_a_rule_that_tcp_can_not_judge_allows_nothing() -> None:
    rule = {"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}
    finding = only(policy("web", {"rules": [ports(80), rule]}))
    assert (finding.severity, finding.code, finding.path) == (
        Severity.ERROR,
        Code.NEVER_ALLOWS,
        ("spec", "rules", 1),
    )
    assert "methods can not be seen in TCP" in finding.message


def test_a_denial_that_tcp_can_not_judge_denies_more_than_it_says() -> None:
    rule = {"to": [{"operation": {"methods": ["GET"]}}]}
    finding = only(policy("web", {"action": "DENY", "rules": [rule]}))
    assert (finding.code, finding.severity) == (Code.DENIES_MORE, Severity.WARNING)
    assert finding.message.endswith("name the ports that it is about")


def test_custom_is_not_supported() -> None:
    finding = only(policy("web", {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}))
    assert (finding.code, finding.severity) == (Code.CUSTOM, Severity.ERROR)


def test_spiffe_in_front_of_a_principal_is_the_usual_mistake() -> None:
    finding = only(policy("web", {"rules": [source(principals=[CART, f"spiffe://{CART}"])]}))
    assert finding.code is Code.FITS_NOBODY
    assert finding.path == ("spec", "rules", 0, "from", 0, "source", "principals")
    assert finding.message.endswith(f"write {CART}")


@pytest.mark.parametrize("pattern", ["*shop*", "clu*/ns/shop/sa/cart", "cluster.local/ns/shop/sa/c art"])
def test_a_pattern_that_no_identity_fits_is_an_error(pattern: str) -> None:
    when = {"when": [{"key": "source.principal", "notValues": [pattern]}]}
    finding = only(policy("web", {"action": "DENY", "rules": [when]}))
    assert (finding.code, finding.path) == (Code.FITS_NOBODY, ("spec", "rules", 0, "when", 0, "notValues"))


@pytest.mark.parametrize(
    "fields",
    [
        {"principals": [CART], "notPrincipals": ["*"]},
        {"principals": [CART], "notPrincipals": ["cluster.local/ns/shop/*"]},
        {"principals": [CART], "notNamespaces": ["shop"]},
        {"namespaces": ["shop", "dev"], "notNamespaces": ["shop", "*ev"]},
        {"ipBlocks": ["10.1.0.0/16"], "notIpBlocks": ["10.0.0.0/8"]},
        {"serviceAccounts": ["cart"], "notServiceAccounts": ["shop/cart"]},
    ],
)
def test_a_source_that_excludes_what_it_asks_for_never_matches(fields: dict[str, list[str]]) -> None:
    assert only(policy("web", {"action": "DENY", "rules": [source(**fields)]})).code is Code.NEVER_MATCHES


def test_a_hole_in_what_is_asked_for_is_none() -> None:
    assert said(policy("web", {"rules": [source(ipBlocks=["10.0.0.0/8"], notIpBlocks=["10.1.0.0/16"])]})) == []


@pytest.mark.parametrize(
    "rule",
    [
        source(notPrincipals=[CART]),
        source(notNamespaces=["dev"], ipBlocks=["10.0.0.0/8"]),
        {"when": [{"key": "source.namespace", "notValues": ["dev"]}]},
    ],
)
def test_exclusions_alone_allow_plaintext(rule: Spec) -> None:
    assert said(policy("web", {"rules": [rule]})) == [(Code.ALLOWS_PLAINTEXT, Severity.WARNING)]


def test_notes_are_no_faults() -> None:
    assert said(policy("none", {}), policy("all", {"rules": [{}]}, namespace="istio-system")) == [
        (Code.ALLOWS_NOTHING, Severity.NOTE),
        (Code.WHOLE_MESH, Severity.NOTE),
    ]


def test_names_that_nobody_has_are_found_and_near_ones_offered() -> None:
    spec = {
        "selector": {"matchLabels": {"app": "webb"}},
        "rules": [
            source(namespaces=["shpo"]),
            source(principals=["cluster.local/ns/shop/sa/crat"]),
            source(serviceAccounts=["dev/cart"]),
        ],
    }
    findings = list(check([policy("web", spec)], SHOP))
    assert [each.code for each in findings] == [
        Code.SELECTS_NOTHING,
        Code.UNKNOWN_NAMESPACE,
        Code.UNKNOWN_PRINCIPAL,
        Code.UNKNOWN_PRINCIPAL,
    ]
    assert {each.severity for each in findings} == {Severity.WARNING}
    assert findings[0].message == "no workload in namespace shop has the labels app=webb: the policy is about nothing"
    assert findings[1].message.endswith("there is no such namespace; did you mean shop?")
    assert findings[2].message.endswith(f"did you mean {CART}?")
    assert said(policy("web", spec)) == [], "nothing is said where nothing is known"


@pytest.mark.parametrize("pattern", ["cluster.local/ns/nope/*", "*/sa/nope"])
def test_patterns_that_fit_no_workload_are_found(pattern: str) -> None:
    assert said(policy("web", {"rules": [source(principals=[pattern])]}), cluster=SHOP) == [
        (Code.UNKNOWN_PRINCIPAL, Severity.WARNING)
    ]


def test_a_policy_in_a_namespace_that_is_not_there_is_about_nothing() -> None:
    assert only(policy("web", {"rules": [{}]}, namespace="shpo"), cluster=SHOP).code is Code.UNKNOWN_NAMESPACE
    assert only(policy("web", {"rules": [{}]}, namespace="empty"), cluster=SHOP).code is Code.SELECTS_NOTHING


def test_cluster_local_is_not_another_word_for_the_trust_domain() -> None:
    ours = Cluster(workloads=[workload("shop", "cart", trust_domain="example.org")], trust_domain="example.org")
    finding = only(policy("web", {"rules": [source(principals=[CART])]}), cluster=ours)
    assert (finding.code, finding.severity) == (Code.TRUST_DOMAIN, Severity.WARNING)
    assert "the trust domain here is example.org" in finding.message


def test_another_trust_domain_may_be_federated() -> None:
    spec = {"rules": [source(principals=["partner.org/ns/shop/sa/cart"])]}
    assert said(policy("web", spec), cluster=SHOP) == [(Code.TRUST_DOMAIN, Severity.NOTE)]


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({}, source(namespaces=["shop"])),
        (source(namespaces=["shop"]), source(namespaces=["shop"]) | ports(80)),
        (source(namespaces=["shop"]), source(principals=[CART])),
        (source(namespaces=["shop"]), source(serviceAccounts=["cart"])),
        (source(serviceAccounts=["cart"]), source(principals=[CART])),
        (source(principals=["*"]), source(namespaces=["s*"])),
        (source(principals=["cluster.local/*"]), source(principals=["cluster.local/ns/shop/*"])),
        (source(principals=["*cart"]), source(principals=["*/sa/cart"])),
        (source(ipBlocks=["10.0.0.0/8"]), source(ipBlocks=["10.1.0.0/16", "10.2.0.1"])),
        (source(notIpBlocks=["10.1.0.0/16"]), source(notIpBlocks=["10.0.0.0/8"])),
        (source(notPrincipals=[CART]), source(principals=["cluster.local/ns/shop/sa/web"])),
        (ports(80, 81), ports(81)),
        ({"when": [{"key": "destination.port", "values": ["80", "81"]}]}, ports(80)),
    ],
)
def test_a_rule_that_a_wider_one_makes_superfluous_is_shadowed(wide: Spec, narrow: Spec) -> None:
    for first, second in ((wide, narrow), (narrow, wide)):
        codes = [
            (each.code, each.path[2])
            for each in check([policy("web", {"action": "DENY", "rules": [first, second]})], NOBODY)
            if each.code is Code.SHADOWED
        ]
        assert codes == [(Code.SHADOWED, 1 if second is narrow else 0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (source(namespaces=["shop"]), source(namespaces=["shop*"], ipBlocks=["10.0.0.0/8"])),
        (source(principals=[CART]), source(namespaces=["shop"]) | ports(80)),
        (source(namespaces=["shop"]), source(principals=["cluster.local/ns/shop/*"])),
        (source(ipBlocks=["10.0.0.0/8"]), source(ipBlocks=["::/0"])),
        (source(principals=["a*"]), source(principals=["*a"])),
        (ports(80), {"to": [{"operation": {"notPorts": ["81"]}}], "from": [{"source": {"principals": ["*"]}}]}),
    ],
)
def test_rules_that_differ_are_not_called_superfluous(one: Spec, other: Spec) -> None:
    assert Code.SHADOWED not in dict(said(policy("web", {"rules": [one, other]})))


def test_of_two_that_say_the_same_one_is_superfluous() -> None:
    rule = source(namespaces=["shop"])
    findings = list(check([policy("b", {"rules": [rule]}), policy("a", {"rules": [rule]})], NOBODY))
    assert [(str(each.policy), each.code) for each in findings] == [("shop/b", Code.SHADOWED)]
    assert "matched by policy shop/a, rule 0" in findings[0].message


def test_scopes_count_for_what_is_superfluous() -> None:
    rule = source(namespaces=["shop"])
    selected = {"selector": {"matchLabels": {"app": "web"}}, "rules": [rule]}
    mesh = policy("mesh", {"rules": [rule]}, namespace="istio-system")
    other = policy("other", {"rules": [rule]}, namespace="dev")
    assert (Code.SHADOWED, Severity.WARNING) in said(policy("web", selected), policy("all", {"rules": [rule]}))
    assert (Code.SHADOWED, Severity.WARNING) in said(policy("web", {"rules": [rule]}), mesh)
    assert said(policy("web", {"rules": [rule]}), other) == []
    assert said(policy("web", selected), policy("db", selected | {"selector": {"matchLabels": {"app": "db"}}})) == []


def test_what_is_denied_anyway_is_allowed_in_vain() -> None:
    allow = policy("allow", {"rules": [source(principals=[CART]), source(namespaces=["dev"])]})
    deny = policy("deny", {"action": "DENY", "rules": [source(namespaces=["shop"])]})
    finding = only(allow, deny)
    assert (finding.code, finding.severity, finding.path) == (Code.DENIED_ANYWAY, Severity.ERROR, ("spec", "rules", 0))
    assert "denied by policy shop/deny, rule 0" in finding.message


def test_policies_in_force_count_but_are_not_checked() -> None:
    deny = policy("deny", {"action": "DENY", "rules": [source(namespaces=["shop"]), source(namespaces=["shop"])]})
    cluster = Cluster(policies=[deny, policy("allow", {"rules": [{}]})])
    assert said(policy("allow", {"rules": [source(principals=[CART])]}), cluster=cluster) == [
        (Code.DENIED_ANYWAY, Severity.ERROR)
    ]
