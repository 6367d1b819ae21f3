"""A registry with real manifests, and what explains its connections and policies."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ca.manifests import DirectoryState, ManifestFile, ObjectKey, parse_manifests
from node_agent.cli import explain as explain_command
from node_agent.cli.terminal import Paint
from node_agent.explanation.explainer import Explainer
from node_agent.explanation.past import PastConnections
from node_agent.explanation.policies import Policies
from node_agent.identity.trust import TrustStore
from node_agent.model import ObjectName
from node_agent.policy import PolicyEngine
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.registry import Registry, Update
from node_agent.telemetry.archive import RecordArchive
from node_agent.telemetry.metrics import Metrics
from tests.certificates import make_root

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


def shown(answer: Mapping[str, Any]) -> str:
    with Path("/dev/null").open() as nowhere:
        paint = Paint(nowhere)
    return explain_command.view(answer, paint) if "verdict" in answer else explain_command.past_view(answer, paint)


def past_record(**fields: object) -> str:
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
