"""What ``ringfence explain`` and ``ringfence policies`` answer, of a registry with real manifests."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import pytest

from ca.http_server import Request
from ca.manifests import DirectoryState, ManifestFile, ObjectKey, parse_manifests
from ca.spiffe import SpiffeId
from ca.trust import Revocation, RevocationKind
from node_agent.cli import explain as explain_command
from node_agent.cli import policies as policies_command
from node_agent.cli.main import main
from node_agent.cli.terminal import Paint
from node_agent.errors import PolicyDenied
from node_agent.explanation.explainer import Explainer
from node_agent.explanation.past import PastConnections
from node_agent.explanation.places import UnknownPlace
from node_agent.explanation.policies import Policies
from node_agent.explanation.routes import explanation_routes
from node_agent.identity.trust import TrustStore
from node_agent.model import ObjectName
from node_agent.policy import PolicyEngine
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.registry import Registry, Update
from node_agent.telemetry.archive import RecordArchive
from node_agent.telemetry.metrics import Metrics
from tests.certificates import make_root
from tests.fake_agent import fake_agent

MANIFESTS: Final = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {ringfence.io/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {ringfence.io/mesh: enabled}}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
spec: {podCIDRs: [10.0.0.0/24]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: web-1, labels: {app: web}}
spec: {nodeName: node-2, serviceAccountName: web}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: cart-1}
spec: {nodeName: node-1, serviceAccountName: cart}
status: {podIPs: [{ip: 10.0.0.2}], phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: thief, namespace: other, uid: thief-1}
spec: {nodeName: node-1, serviceAccountName: thief}
status: {podIPs: [{ip: 10.0.0.3}, {ip: "fd00::3"}], phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop, uid: old-1, labels: {ringfence.io/mesh: disabled}}
spec: {nodeName: node-1}
status: {podIPs: [{ip: 10.0.0.4}], phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.1.0.1], clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]
    to: [{operation: {ports: ["8080"]}}]
"""
POLICY: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: NAME, namespace: shop}
spec: SPEC
"""


class Stage:
    def __init__(self) -> None:
        self.registry = Registry("cluster.local")
        self.engine = PolicyEngine()
        self.trust = TrustStore(trust_domain="cluster.local", roots=[make_root().certificate])
        self.files: dict[str, ManifestFile] = {}
        self.archive = RecordArchive()
        self.live: list[Mapping[str, Any]] = []
        self.metrics = Metrics()
        self.counts = PolicyCounts(self.metrics)
        self.explainer = Explainer(
            node="node-1",
            registry=self.registry,
            engine=self.engine,
            trust=self.trust,
            endpoint_rows=self._rows,
            directory=lambda: DirectoryState(files=self.files),
            registry_only=False,
        )
        self.past = PastConnections(
            explainer=self.explainer,
            registry=self.registry,
            live=lambda: self.live,
            archive=self.archive.blocks,
        )
        self.policies = Policies(
            node="node-2",
            registry=self.registry,
            engine=self.engine,
            families=self.metrics.read,
            file_of=self.explainer.file_of,
        )
        self.apply(MANIFESTS, file="shop.yaml")

    def apply(self, text: str, *, file: str = "more.yaml") -> None:
        objects = parse_manifests(text, origin=file).objects
        self.files[file] = ManifestFile(signature=None, sha256="", objects=objects)
        changes = self.registry.apply(Update(upserts=objects))
        self.engine.apply(changes.policies)

    def delete(self, policy: str) -> None:
        key = ObjectKey("AuthorizationPolicy", "shop", policy)
        self.engine.apply(self.registry.apply(Update(deletes=(key,))).policies)

    def policy(self, name: str, spec: str) -> None:
        self.apply(POLICY.replace("NAME", name).replace("SPEC", spec), file=f"{name}.yaml")

    def _rows(self, service: str | None) -> Iterable[Mapping[str, Any]]:
        assert service is not None
        namespace, _, name = service.partition("/")
        for port in self.registry.service_ports(ObjectName(namespace, name)):
            for endpoint in self.registry.endpoints(port, 4):
                yield {
                    "port": port.port,
                    "address": str(endpoint.address),
                    "ready": endpoint.ready,
                    "health": "healthy",
                    "why": None,
                }

    def explain(self, source: str, destination: str) -> dict[str, Any]:
        """The answer, as it comes out of the admin socket."""
        *turns, answer = self.explainer.explain(source, destination)
        assert not any(turns)
        found: dict[str, Any] = json.loads(json.dumps(answer))
        return found


@pytest.fixture
def stage() -> Stage:
    return Stage()


def shown(answer: Mapping[str, Any]) -> str:
    with Path("/dev/null").open() as nowhere:
        paint = Paint(nowhere)
    return explain_command.view(answer, paint) if "verdict" in answer else explain_command.past_view(answer, paint)


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


def test_an_address_that_is_no_workload_is_shown_once(stage: Stage) -> None:
    lines = shown(stage.explain("192.0.2.7", "shop/web:80")).splitlines()
    assert [line.split() for line in lines if line.startswith("source ")] == [["source", "192.0.2.7"]]


@pytest.mark.parametrize("host", ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local"])
def test_a_service_is_known_by_the_name_that_programs_use(stage: Stage, host: str) -> None:
    assert stage.explain("cart", f"{host}:80")["destination"]["service"] == "shop/web:80"
    with pytest.raises(UnknownPlace):
        stage.explain("cart", f"{host.replace('shop', 'none')}:80")


def test_the_agents_own_listeners_may_not_be_dialled(stage: Stage) -> None:
    answer = stage.explain("shop/cart", "10.0.0.1:15008")
    assert answer["verdict"] == "denied"
    (decision,) = answer["decisions"]
    assert decision["close_reason"] == "destination_not_allowed"
    assert decision["detail"].endswith("is the agent's own listener")
    assert decision["remedies"] == []


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


def test_a_destination_that_is_not_in_the_mesh_is_judged_by_nobody(stage: Stage) -> None:
    answer = stage.explain("shop/cart", "10.0.0.4:80")
    assert (answer["verdict"], answer["decided_on"]) == ("allowed", [])
    assert "nobody judges" in answer["summary"]
    assert stage.explain("shop/cart", "192.0.2.1:443")["verdict"] == "allowed"


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("cratt", "web:80", "no pod 'cratt' in any namespace; perhaps shop/cart"),
        ("shop/thief", "web:80", "no pod 'shop/thief'; perhaps other/thief"),
        ("cart", "wbe:80", "no service 'wbe' in any namespace; perhaps shop/web"),
        ("cart", "web:81", "service shop/web has no port 81; it has 80"),
        ("cart", "web:0", "is no port: 1 to 65535"),
        ("cart", "web:http", "is no port: 1 to 65535"),
        ("cart", "10.0.0.1", "has no port: 10.0.0.1:80, for instance"),
        ("cart", "fd00::1", "has no port: [fd00::1]:80, for instance"),
        ("cart", "[fd00::1:80", "is no address"),
        ("cart", "thief", "has no port, and other/thief is a pod"),
    ],
)
def test_what_nobody_is_called_is_refused_with_what_may_be_meant(
    stage: Stage, source: str, destination: str, error: str
) -> None:
    with pytest.raises(UnknownPlace) as unknown:
        stage.explain(source, destination)
    assert error in str(unknown.value)


@pytest.mark.parametrize(
    ("destination", "problem"),
    [
        ("10.0.0.99:80", "10.0.0.99 is in the pod network, but no workload has it"),
        ("10.1.0.1:81", "the service at 10.1.0.1 has no port 81"),
    ],
)
def test_what_leads_nowhere_says_why(stage: Stage, destination: str, problem: str) -> None:
    answer = stage.explain("shop/cart", destination)
    assert (answer["verdict"], answer["problems"]) == ("denied", [problem])
    assert problem in shown(answer)


def test_a_name_may_be_short_where_it_is_clear(stage: Stage) -> None:
    assert stage.explain("cart", "web")["destination"]["service"] == "shop/web:80"
    assert stage.explain("10.0.0.2", "10.1.0.1:80")["source"]["workload"] == "shop/cart"
    again = MANIFESTS.replace("namespace: shop", "namespace: other").replace("fd00::", "fd01::").replace("-1,", "-2,")
    stage.apply(again.replace("10.0.0.", "10.0.1.").replace("10.1.0.1", "10.1.0.2"))
    with pytest.raises(UnknownPlace, match="several pods called cart: other/cart, shop/cart"):
        stage.explain("cart", "web")
    assert stage.explain("shop/cart", "web")["destination"]["service"] == "shop/web:80"


def _record(**fields: object) -> str:
    record = {
        "id": "node-1-abc-7",
        "source_workload": "other/thief",
        "source_address": "10.0.0.3:4000",
        "source_identity": "spiffe://cluster.local/ns/other/sa/thief",
        "original_destination": "10.1.0.1:80",
        "service": "shop/web:80",
        "endpoint": "10.0.0.1:8080",
        "close_reason": "policy_denied",
        "policy": "shop/gone",
        "detail": "denied by policy shop/gone, rule 1",
        "direction": "outbound",
        "time": "2026-11-22T18:13:04.413Z",
    }
    return json.dumps({**record, **fields}, separators=(",", ":"))


def test_a_past_connection_is_explained_as_it_was_and_as_it_would_be_now(stage: Stage) -> None:
    stage.archive.add(_record(), keep=True)
    answer = stage.past.explain("node-1-abc-7")
    assert answer["summary"] == (
        "other/thief to shop/web:80: policy_denied by policy shop/gone (denied by policy shop/gone, rule 1)"
    )
    assert answer["record"]["policy"] == "shop/gone"
    assert answer["now"]["allowed"] is False
    assert answer["now"]["remedies"]
    assert "no rule of the ALLOW policies matches" in shown(answer)


def test_a_past_connection_to_who_is_gone_and_one_that_nobody_knows(stage: Stage) -> None:
    stage.archive.add(_record(endpoint="10.9.9.9:80", close_reason="ok", policy=None), keep=False)
    answer = stage.past.explain("node-1-abc-7")
    assert (answer["now"], answer["summary"]) == (None, "other/thief was connected to shop/web:80")
    assert "nobody here would judge it" in shown(answer)
    with pytest.raises(UnknownPlace, match="node-1-abc-8"):
        stage.past.explain("node-1-abc-8")


def test_a_connection_that_is_open_is_explained_too(stage: Stage) -> None:
    stage.live.append(
        {
            "id": "node-1-abc-9",
            "source": "shop/cart",
            "source_identity": "spiffe://cluster.local/ns/shop/sa/cart",
            "original_destination": "10.1.0.1:80",
            "service": "shop/web:80",
            "endpoint": "10.0.0.1:8080",
        }
    )
    answer = stage.past.explain("node-1-abc-9")
    assert (answer["open"], answer["summary"]) == (True, "shop/cart is connected to shop/web:80")
    assert answer["now"]["policy"] == "shop/callers"


def test_policies_say_whom_they_are_about_and_what_they_did(stage: Stage) -> None:
    stage.policy("everybody", "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}")
    stage.counts.denied(PolicyDenied("", policy="shop/everybody"))
    stage.counts.would_deny("shop/callers")
    callers, everybody = filter(None, stage.policies.rows())
    assert callers == {
        "name": "callers",
        "namespace": "shop",
        "file": "shop.yaml",
        "action": "ALLOW",
        "scope": "workloads",
        "selector": {"app": "web"},
        "rules": 1,
        "dry_run": False,
        "local_workloads": 1,
        "workloads": 1,
        "denials": 0,
        "dry_run_denials": 1,
        "audits": 0,
        "problems": [],
    }
    assert (everybody["scope"], everybody["workloads"], everybody["local_workloads"]) == ("namespace", 2, 1)
    assert everybody["denials"] == 1
    assert "methods can not be judged" in everybody["problems"][0]
    assert list(stage.policies.rows("other")) == []
    with pytest.raises(UnknownPlace, match="nowhere"):
        list(stage.policies.rows("nowhere"))
    with Path("/dev/null").open() as nowhere:
        table = policies_command.view([callers, everybody], Paint(nowhere))
    assert "app=web" in table
    assert "problem  AuthorizationPolicy shop/everybody: methods" in table


def test_many_policies_are_told_in_steps_and_none_is_left_out(stage: Stage) -> None:
    stage.apply("---\n".join(POLICY.replace("NAME", f"p{number}").replace("SPEC", "{}") for number in range(350)))
    rows = list(stage.policies.rows())
    assert rows.count(None) >= 3
    assert len([row for row in rows if row is not None]) == 351
    status, answer = _get(stage, "/policies")
    assert (status, len(answer)) == (200, 351)
    for name in [row["name"] for row in answer]:
        stage.delete(name)
    assert _get(stage, "/policies") == (200, [])


def test_nothing_that_a_terminal_would_obey_is_shown(stage: Stage) -> None:
    stage.archive.add(_record(detail="\x1b[2J\u202eevil", policy=None), keep=True)
    text = shown(stage.past.explain("node-1-abc-7"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J" in text


def _get(stage: Stage, path: str, **query: str) -> tuple[int, Any]:
    routes = explanation_routes(lambda: cast("Any", stage))
    response = routes[path]["GET"](Request(method="GET", path=path, query=query, body=b""))
    return response.status, json.loads(b"".join([response.body] if isinstance(response.body, bytes) else response.body))


def test_the_admin_socket_answers_and_says_what_is_missing_or_unknown(stage: Stage) -> None:
    status, answer = _get(stage, "/explain", source="shop/cart", destination="shop/web:80")
    assert (status, answer["verdict"]) == (200, "allowed")
    assert _get(stage, "/explain", source="shop/cart") == (400, {"error": "the query must have destination"})
    assert _get(stage, "/explain/record")[0] == 400
    assert _get(stage, "/explain/record", id="x")[0] == 404
    assert _get(stage, "/explain", source="nobody", destination="web")[0] == 404
    assert [row["name"] for row in _get(stage, "/policies", namespace="shop")[1]] == ["callers"]
    assert _get(stage, "/policies", namespace="nowhere")[0] == 404


def test_the_commands_ask_as_the_operator_means_it(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.archive.add(_record(), keep=True)
    answers = {
        "/explain": stage.explain("shop/cart", "shop/web:80"),
        "/explain/record": stage.past.explain("node-1-abc-7"),
        "/policies": list(stage.policies.rows()),
    }
    with fake_agent(tmp_path) as agent:
        agent.answers = answers
        address = ("--agent", str(agent.server_address))
        assert main(["explain", "shop/cart", "shop/web:80", *address]) == 0
        assert main(["explain", "node-1-abc-7", *address]) == 0
        assert main(["policies", "-n", "shop", "--json", *address]) == 0
        assert [path for _, path, _ in agent.requests] == [
            "/explain?source=shop%2Fcart&destination=shop%2Fweb%3A80",
            "/explain/record?id=node-1-abc-7",
            "/policies",
        ]
        printed = capsys.readouterr().out
        assert "ALLOWED  shop/cart may connect" in printed
        assert "policy_denied by policy shop/gone" in printed
        assert json.loads(printed[printed.index("[\n") :])[0]["name"] == "callers"
        assert main(["explain", "nope", "nope:80", *address]) == 1
        assert capsys.readouterr().err.startswith("ringfence: no ")
