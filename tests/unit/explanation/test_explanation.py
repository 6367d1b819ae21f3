"""What ``ringfence explain`` says of a connection that could be: who decides, and the smallest change."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ca.spiffe import SpiffeId
from ca.trust import Revocation, RevocationKind
from tests.explanation_stage import POLICY, Stage, shown


def test_an_allowed_connection_names_policy_rule_file_identities_and_who_decides(stage: Stage) -> None:
    answer = stage.explain("shop/cart", "shop/web:80")
    assert answer["verdict"] == "allowed"
    assert answer["destination"]["service"] == "shop/web:80"
    (decision,) = answer["decisions"]
    assert {key: decision[key] for key in ("policy", "rule", "file", "security", "mtls_mode", "port", "remedies")} == {
        "policy": "shop/callers",
        "rule": 0,
        "file": "shop.yaml",
        "security": "mutual_tls",
        "mtls_mode": "PERMISSIVE",
        "port": 8080,
        "remedies": [],
    }
    assert decision["source_identity"] == "spiffe://cluster.local/ns/shop/sa/cart"
    assert decision["destination_identity"] == "spiffe://cluster.local/ns/shop/sa/web"
    assert decision["endpoints"] == ["10.0.0.1:8080"]
    assert (answer["binding"], answer["decided_on"], answer["node"]) == (False, ["node-2"], "node-1")
    text = shown(answer)
    assert text.startswith("ALLOWED  shop/cart may connect to shop/web:80: allowed by policy shop/callers, rule 0\n")
    assert "what the agent of node-2 says is binding" in text


@pytest.mark.parametrize(
    ("source", "destination", "remedy"),
    [
        (
            "other/thief",
            "shop/web:80",
            "rule 0 of ALLOW policy shop/callers: "
            "add principal cluster.local/ns/other/sa/thief to principals in from[0]",
        ),
        ("shop/cart", "10.0.0.1:9090", "rule 0 of ALLOW policy shop/callers: add port 9090 to ports in to[0]"),
        (
            "other/thief",
            "10.0.0.1:9090",
            "rule 0 of ALLOW policy shop/callers: "
            "add principal cluster.local/ns/other/sa/thief to principals in from[0]; add port 9090 to ports in to[0]",
        ),
        (
            "shop/old",
            "shop/web:80",
            "enrol shop/old in the mesh (label ringfence.io/mesh: enabled), for rule 0 of ALLOW policy shop/callers; "
            "add principal cluster.local/ns/shop/sa/default to principals in from[0]",
        ),
    ],
)
def test_who_is_let_in_by_no_rule_is_told_the_smallest_change(
    stage: Stage, source: str, destination: str, remedy: str
) -> None:
    answer = stage.explain(source, destination)
    assert answer["verdict"] == "denied"
    (decision,) = [each for each in answer["decisions"] if not each["endpoints"][0].startswith("[")]
    assert (decision["close_reason"], decision["policy"]) == ("policy_denied", None)
    assert decision["remedies"] == [remedy]
    assert remedy in shown(answer)


def test_a_deny_policy_is_named_and_how_to_be_excepted_from_it(stage: Stage) -> None:
    stage.policy("no-cart", "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}")
    (decision,) = stage.explain("cart", "web:80")["decisions"]
    assert (decision["policy"], decision["rule"], decision["file"]) == ("shop/no-cart", 0, "no-cart.yaml")
    assert decision["remedies"] == [
        "remove rule 0 of DENY policy shop/no-cart, or let it match less",
        "rule 0 of DENY policy shop/no-cart: "
        "add principal cluster.local/ns/shop/sa/cart to notPrincipals in each of its sources",
    ]


@pytest.mark.parametrize(
    ("source", "rule", "exception"),
    [
        (
            "shop/cart",
            "{from: [{source: {serviceAccounts: [cart]}}]}",
            "service account shop/cart to notServiceAccounts in each of its sources",
        ),
        ("shop/old", "{}", "address 10.0.0.4 to notIpBlocks in a source of its own (from)"),
    ],
)
def test_an_exception_is_written_as_the_rule_is(stage: Stage, source: str, rule: str, exception: str) -> None:
    stage.policy("no", f"{{action: DENY, rules: [{rule}]}}")
    (decision,) = stage.explain(source, "shop/web:80")["decisions"]
    assert decision["remedies"][1] == f"rule 0 of DENY policy shop/no: add {exception}"


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        ("{from: [{source: {ipBlocks: [192.0.2.0/24]}}]}", "add address 10.0.0.3 to ipBlocks in from[0]"),
        ("{from: [{source: {namespaces: [a]}}]}", "add namespace other to namespaces in from[0]"),
        ("{from: [{source: {notNamespaces: [a, other]}}]}", "take other out of notNamespaces in from[0]"),
        ("{to: [{operation: {notPorts: ['8080', '1']}}]}", "take 8080 out of notPorts in to[0]"),
        ("{to: [{operation: {methods: [GET]}}]}", "remove methods, which a TCP connection does not show"),
        (
            "{from: [{source: {namespaces: [a], ipBlocks: [192.0.2.1/32]}}, {source: {namespaces: [b]}}]}",
            "add namespace other to namespaces in from[1]",
        ),
    ],
)
def test_each_kind_of_condition_has_its_change(stage: Stage, rule: str, remedy: str) -> None:
    stage.policy("callers", f"{{selector: {{matchLabels: {{app: web}}}}, rules: [{rule}]}}")
    (decision,) = [
        each for each in stage.explain("thief", "web:80")["decisions"] if each["source_address"] == "10.0.0.3"
    ]
    assert decision["remedies"] == [f"rule 0 of ALLOW policy shop/callers: {remedy}"]


def test_a_policy_without_rules_and_one_on_dry_run(stage: Stage) -> None:
    stage.policy("callers", "{}")
    (decision,) = stage.explain("cart", "web:80")["decisions"]
    assert decision["remedies"] == [
        "add a rule with principal cluster.local/ns/shop/sa/cart to ALLOW policy shop/callers, "
        "which has none and so allows nothing"
    ]
    stage.apply(
        POLICY.replace("NAME", "callers")
        .replace("SPEC", "{}")
        .replace("namespace: shop}", 'namespace: shop, annotations: {"istio.io/dry-run": "true"}}')
    )
    answer = stage.explain("cart", "web:80")
    assert answer["verdict"] == "allowed"
    assert answer["decisions"][0]["dry_run"] == "denied by shop/callers"


def test_plaintext_is_refused_where_only_mutual_tls_is_taken(stage: Stage) -> None:
    stage.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        "metadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n"
    )
    (decision,) = stage.explain("shop/old", "shop/web:80")["decisions"]
    assert (decision["close_reason"], decision["security"]) == ("plaintext_refused", "none")
    assert decision["remedies"][0] == "enrol shop/old in the mesh (label ringfence.io/mesh: enabled)"


def test_the_verdict_is_said_once(stage: Stage) -> None:
    denied, free = stage.explain("other/thief", "shop/web:80"), stage.explain("shop/cart", "other/thief:80")
    assert denied["summary"] == (
        "other/thief may not connect to shop/web:80: no rule of the ALLOW policies matches: shop/callers"
    )
    assert free["summary"] == "shop/cart may connect to other/thief:80: no ALLOW policy is about it"


def test_a_revoked_identity_is_said_before_any_policy(stage: Stage) -> None:
    cart = SpiffeId.workload("cluster.local", "shop", "cart")
    now = stage.trust.trust
    revoked = Revocation(
        kind=RevocationKind.IDENTITY, value=str(cart), at=datetime(2026, 11, 22, tzinfo=UTC), until=None, why="stolen"
    )
    stage.trust.take(replace(now, version=now.version + 1, revocations=(revoked,)))
    (decision,) = stage.explain("shop/cart", "shop/web:80")["decisions"]
    assert decision["close_reason"] == "identity_revoked"
    assert "stolen" in decision["detail"]
