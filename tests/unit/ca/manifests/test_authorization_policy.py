"""What is read from an AuthorizationPolicy, what is refused, and what the refusal says."""

import json
from typing import Any

import pytest

from ca.manifests import AuthorizationPolicy, ManifestError, parse_manifests
from ca.manifests.authorization import Action, Attribute, Clause, Criterion, Rule

HEAD = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
"""


def policy(spec: str, *, head: str = HEAD) -> AuthorizationPolicy:
    (found,) = parse_manifests(head + spec, origin="web.yaml").objects
    assert isinstance(found, AuthorizationPolicy)
    return found


def refusal(spec: str, *, head: str = HEAD) -> tuple[str, str]:
    """The path that is wrong, and why."""
    with pytest.raises(ManifestError) as refused:
        parse_manifests(head + spec, origin="web.yaml")
    problem = refused.value.problem
    assert (problem.file, problem.document) == ("web.yaml", 1)
    assert problem.line >= 1
    assert str(problem).isprintable()
    return problem.path, problem.reason


def test_a_policy_is_read_with_every_field_that_tcp_shows() -> None:
    found = policy("""\
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/shop/sa/cart", "*"]
        notNamespaces: [dev]
        ipBlocks: [10.0.0.7/8, "fd00::1"]
    - source: {serviceAccounts: [cart, dev/batch]}
    to:
    - operation: {ports: ["80", "080"], notPorts: ["443"]}
    when:
    - {key: destination.ip, values: ["::ffff:10.0.0.1"], notValues: [10.1.0.0/16]}
""")
    assert (found.selector, found.action, found.dry_run) == ({"app": "web"}, Action.DENY, False)
    assert found.rules == (
        Rule(
            sources=(
                Clause(
                    (
                        Criterion("principals", Attribute.PRINCIPAL, False, ("cluster.local/ns/shop/sa/cart", "*")),
                        Criterion("notNamespaces", Attribute.NAMESPACE, True, ("dev",)),
                        Criterion("ipBlocks", Attribute.SOURCE_IP, False, ("10.0.0.0/8", "fd00::1/128")),
                    )
                ),
                Clause((Criterion("serviceAccounts", Attribute.SERVICE_ACCOUNT, False, ("shop/cart", "dev/batch")),)),
            ),
            operations=(
                Clause(
                    (
                        Criterion("ports", Attribute.PORT, False, ("80",)),
                        Criterion("notPorts", Attribute.PORT, True, ("443",)),
                    )
                ),
            ),
            conditions=(
                Clause(
                    (
                        Criterion("when destination.ip", Attribute.DESTINATION_IP, False, ("10.0.0.1/32",)),
                        Criterion("when destination.ip notValues", Attribute.DESTINATION_IP, True, ("10.1.0.0/16",)),
                    )
                ),
            ),
        ),
    )
    assert found.rules[0].unjudged == ()


@pytest.mark.parametrize("spec", ["", "spec: {}", "spec:", "spec: {rules: []}", "spec: {rules: null, action: ALLOW}"])
def test_without_rules_it_is_an_allow_policy_that_allows_nothing(spec: str) -> None:
    assert (policy(spec).action, policy(spec).rules) == (Action.ALLOW, ())


def test_the_older_version_of_the_api_is_read_too() -> None:
    assert policy("spec: {}", head=HEAD.replace("/v1", "/v1beta1")).name == "web"


def test_what_kubernetes_adds_to_an_object_does_not_matter() -> None:
    found = policy(
        "spec: {}\nstatus: {conditions: []}\n",
        head=HEAD.replace(
            "{name: web,", "{generation: 2, managedFields: [], creationTimestamp: 2024-05-01T12:00:00Z, name: web,"
        ),
    )
    assert found.created == "2024-05-01T12:00:00+00:00"


def test_what_tcp_does_not_show_is_read_and_marked() -> None:
    (rule,) = policy("""\
spec:
  rules:
  - from: [{source: {requestPrincipals: ["*"], notRemoteIpBlocks: [10.0.0.0/8]}}]
    to: [{operation: {methods: [GET], notPaths: ["/x"], hosts: [a], ports: ["80"]}}, {operation: {methods: [PUT]}}]
    when: [{key: "request.headers[x]", values: [y]}, {key: connection.sni, notValues: [z]}]
""").rules
    assert rule.unjudged == (
        "requestPrincipals",
        "notRemoteIpBlocks",
        "hosts",
        "methods",
        "notPaths",
        "when request.headers[x]",
        "when connection.sni notValues",
    )


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False)])
def test_the_annotation_puts_a_policy_on_dry_run(text: str, expected: bool) -> None:
    head = HEAD.replace("{name:", f'{{annotations: {{istio.io/dry-run: "{text}"}}, name:')
    assert policy("spec: {}", head=head).dry_run is expected


@pytest.mark.parametrize("text", ['"yes"', '""', "true", "1"])
def test_a_dry_run_that_is_neither_true_nor_false_is_refused(text: str) -> None:
    path, _ = refusal("spec: {}", head=HEAD.replace("{name:", f"{{annotations: {{istio.io/dry-run: {text}}}, name:"))
    assert path == "metadata.annotations['istio.io/dry-run']"


def test_a_policy_for_a_gateway_is_another_programs_and_skipped() -> None:
    parsed = parse_manifests(
        HEAD + "spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: edge}]}", origin="web.yaml"
    )
    assert parsed.objects == ()
    assert parsed.skipped == (
        "web.yaml: document 1: AuthorizationPolicy shop/web is for a gateway (targetRefs): gateways are other programs",
    )


RULE = "spec: {rules: [%s]}"
SOURCE = "spec: {rules: [{from: [{source: {%s}}]}]}"
OPERATION = "spec: {rules: [{to: [{operation: {%s}}]}]}"
WHEN = "spec: {rules: [{when: [{%s}]}]}"


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("spec: [1]", "spec", "must be a mapping"),
        ("rules: []", "rules", "is not a field of an AuthorizationPolicy"),
        ("spec: {rule: []}", "spec.rule", "is not a field of spec; it has selector"),
        ("spec: {rules: {}}", "spec.rules", "must be a list"),
        ("spec: {rules: [null]}", "spec.rules[0]", "must be a mapping"),
        ("spec: {action: allow}", "spec.action", "must be one of ALLOW, AUDIT, CUSTOM, DENY"),
        ("spec: {action: DENY}", "spec.rules", "never matches; write `- {}` for all"),
        ("spec: {action: DENY, rules: []}", "spec.rules", "never matches"),
        ("spec: {action: CUSTOM, provider: {name: x}}", "spec.rules", "never matches"),
        ("spec: {action: CUSTOM, rules: [{}]}", "spec.provider", "needs provider.name"),
        ("spec: {provider: {name: x}}", "spec.provider", "is for CUSTOM policies, this one is ALLOW"),
        ("spec: {selector: {app: web}}", "spec.selector.app", "is not a field of selector; it has matchLabels"),
        ("spec: {selector: {matchExpressions: []}}", "spec.selector.matchExpressions", "is not a field"),
        ("spec: {selector: {matchLabels: {app: 1}}}", "spec.selector.matchLabels.app", "must be text"),
        ("spec: {selector: {matchLabels: {app: 'w*'}}}", "spec.selector.matchLabels.app", "without wildcards"),
        ("spec: {selector: {}, targetRefs: [{kind: Gateway}]}", "spec.selector", ""),
        ("spec: {targetRef: {kind: Service, name: web}}", "spec.targetRef", "is not supported; write the labels"),
        ("spec: {targetRefs: [{kind: Service, name: web}]}", "spec.targetRefs", "is not supported; write the labels"),
        (RULE % "{form: []}", "spec.rules[0].form", "is not a field of a rule; it has from, to, when"),
        (RULE % "{from: []}", "spec.rules[0].from", "must not be empty; remove it to match every source"),
        (RULE % "{to: []}", "spec.rules[0].to", "must not be empty; remove it to match every operation"),
        (RULE % "{from: {}}", "spec.rules[0].from", "must be a list"),
        (RULE % "{from: [{}]}", "spec.rules[0].from[0].source", "must not be empty"),
        (
            RULE % "{from: [{principals: [a]}]}",
            "spec.rules[0].from[0].principals",
            "is not a field of from; it has source",
        ),
        (RULE % "{to: [{ports: [a]}]}", "spec.rules[0].to[0].ports", "is not a field of to; it has operation"),
        (SOURCE % "", "spec.rules[0].from[0].source", "must not be empty"),
        (SOURCE % "principals: []", "spec.rules[0].from[0].source", "must not be empty"),
        (SOURCE % "principal: [a]", "spec.rules[0].from[0].source.principal", "is not a field of source"),
        (SOURCE % "principals: a", "spec.rules[0].from[0].source.principals", "must be a list"),
        (SOURCE % "principals: [1]", "spec.rules[0].from[0].source.principals[0]", "must be text, not 1; quote it"),
        (SOURCE % "principals: [a, '']", "spec.rules[0].from[0].source.principals[1]", "must not be empty; remove it"),
        (SOURCE % "namespaces: [null]", "spec.rules[0].from[0].source.namespaces[0]", "must be text"),
        (SOURCE % "ipBlocks: [10.0.0.0/33]", "spec.rules[0].from[0].source.ipBlocks[0]", "an address or a network"),
        (SOURCE % "ipBlocks: [10.0.0.256]", "spec.rules[0].from[0].source.ipBlocks[0]", "an address or a network"),
        (SOURCE % "ipBlocks: ['*']", "spec.rules[0].from[0].source.ipBlocks[0]", "an address or a network"),
        (SOURCE % "ipBlocks: ['fe80::1%eth0']", "spec.rules[0].from[0].source.ipBlocks[0]", "must not have a zone"),
        (SOURCE % "notIpBlocks: [web]", "spec.rules[0].from[0].source.notIpBlocks[0]", "an address or a network"),
        (SOURCE % "remoteIpBlocks: [web]", "spec.rules[0].from[0].source.remoteIpBlocks[0]", "an address or a network"),
        (SOURCE % "serviceAccounts: ['ca*']", "spec.rules[0].from[0].source.serviceAccounts[0]", "without wildcards"),
        (SOURCE % "serviceAccounts: [a/b/c]", "spec.rules[0].from[0].source.serviceAccounts[0]", "NAMESPACE/ACCOUNT"),
        (SOURCE % "serviceAccounts: [/b]", "spec.rules[0].from[0].source.serviceAccounts[0]", "NAMESPACE/ACCOUNT"),
        (SOURCE % "serviceAccounts: [a], principals: [b]", "spec.rules[0].from[0].source", "write two sources"),
        (SOURCE % "notServiceAccounts: [a], notNamespaces: [b]", "spec.rules[0].from[0].source", "write two sources"),
        (OPERATION % "", "spec.rules[0].to[0].operation", "must not be empty"),
        (OPERATION % "port: ['80']", "spec.rules[0].to[0].operation.port", "is not a field of operation"),
        (OPERATION % "ports: [80]", "spec.rules[0].to[0].operation.ports[0]", "must be text, not 80; quote it"),
        (OPERATION % "ports: ['0']", "spec.rules[0].to[0].operation.ports[0]", "from 1 to 65535"),
        (OPERATION % "ports: ['65536']", "spec.rules[0].to[0].operation.ports[0]", "from 1 to 65535"),
        (OPERATION % "ports: ['80-90']", "spec.rules[0].to[0].operation.ports[0]", "from 1 to 65535"),
        (OPERATION % "ports: ['*']", "spec.rules[0].to[0].operation.ports[0]", "from 1 to 65535"),
        (OPERATION % "notPorts: [http]", "spec.rules[0].to[0].operation.notPorts[0]", "from 1 to 65535"),
        (OPERATION % "ports: ['²']", "spec.rules[0].to[0].operation.ports[0]", "from 1 to 65535"),
        (WHEN % "", "spec.rules[0].when[0].key", "is missing"),
        (WHEN % "key: source.ip", "spec.rules[0].when[0].values", "write values or notValues"),
        (WHEN % "key: source.ip, values: []", "spec.rules[0].when[0].values", "write values or notValues"),
        (WHEN % "key: source.ip, values: [x]", "spec.rules[0].when[0].values[0]", "an address or a network"),
        (
            WHEN % "key: source.port, values: ['80']",
            "spec.rules[0].when[0].key",
            "'source.port' is not known; known are",
        ),
        (WHEN % "key: 'request.headers[x', values: [y]", "spec.rules[0].when[0].key", "is not known"),
        (WHEN % "key: destination.port, values: [http]", "spec.rules[0].when[0].values[0]", "from 1 to 65535"),
        (WHEN % "key: source.ip, value: [10.0.0.1]", "spec.rules[0].when[0].value", "is not a field of a condition"),
    ],
)
def test_what_is_not_a_policy_is_refused_with_its_place_and_what_to_do(spec: str, path: str, reason: str) -> None:
    where, why = refusal(spec)
    assert where == path
    assert reason in why


def test_the_line_that_is_wrong_is_named() -> None:
    with pytest.raises(ManifestError, match=r"^web\.yaml:9: document 1, spec\.rules\[0\]\.to\[0\]\.operation\.port"):
        policy("""\
spec:
  rules:
  - to:
    - operation:
        methods: [GET]
        port: ["80"]
""")


def test_more_than_anybody_writes_is_refused() -> None:
    many: dict[str, Any] = {"from": [{"source": {"principals": [f"a{number}" for number in range(4097)]}}]}
    assert "at most 4096 values" in refusal(f"spec: {json.dumps({'rules': [many]})}")[1]
    assert "at most 512 items" in refusal(f"spec: {json.dumps({'rules': [{}] * 513})}")[1]


def test_control_characters_of_a_manifest_do_not_reach_a_line_of_text() -> None:
    source = {"principals": ["a\x1b[31m\nb"]}
    condition = {"key": "request.headers[\x1b[0m]", "values": ["\r"]}
    found = policy(f"spec: {json.dumps({'rules': [{'from': [{'source': source}], 'when': [condition]}]})}")
    (rule,) = found.rules
    assert str(rule.sources[0]) == "principals: 'a\\x1b[31m\\nb'"
    assert all(name.isprintable() for name in rule.unjudged)
    assert str(rule.conditions[0]).isprintable()


def test_a_list_of_values_is_cut_short_in_a_line_of_text() -> None:
    long = Criterion("ports", Attribute.PORT, False, tuple(map(str, range(1, 10))))
    assert str(long) == "ports: 1, 2, 3, 4, 5, 4 more"
