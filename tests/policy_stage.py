"""Pods, policies and live connections before the gate that judges them."""

from typing import Final

import trio
import trio.testing

from ca.manifests import parse_manifests
from ca.spiffe import SpiffeId
from node_agent.model import OriginalDestination, PeerAddress, Workload
from node_agent.policy import PolicyEngine
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.registry import Registry, Update
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics

TRUST_DOMAIN: Final = "cluster.local"
PODS: Final = """\
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{ringfence.io/mesh: enabled}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: shop, uid: web-1, labels: {{app: {app}}}}}
spec: {{nodeName: node-1, serviceAccountName: web}}
status: {{podIP: 10.0.0.1, podIPs: [{{ip: 10.0.0.1}}], phase: Running, conditions: [{{type: Ready, status: "True"}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: cart, namespace: shop, uid: cart-1}}
spec: {{nodeName: node-2, serviceAccountName: cart}}
status: {{podIP: 10.0.0.2, podIPs: [{{ip: 10.0.0.2}}], phase: Running, conditions: [{{type: Ready, status: "True"}}]}}
"""
_POLICY: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop{more}}}
spec: {spec}
"""
CART: Final = SpiffeId.workload(TRUST_DOMAIN, "shop", "cart")
OTHER: Final = SpiffeId.workload(TRUST_DOMAIN, "shop", "other")
DENY_CART: Final = (
    "{action: DENY, selector: {matchLabels: {app: web}}, "
    "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}"
)
ALLOW_CART: Final = "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}"
ALLOW_ADDRESSES: Final = "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/24]}}]}]}"


class Stage:
    """The real gate, engine, registry and table; records say how they ended."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.log = AccessLog(metrics=self.metrics, node="node-1")
        self.live = LiveConnections()
        self.registry = Registry(TRUST_DOMAIN)
        self.engine = PolicyEngine()
        self.seconds = 0.0
        self.gate = PolicyGate(
            engine=self.engine,
            registry=self.registry,
            live=self.live,
            counts=PolicyCounts(self.metrics),
            clock=self.clock,
        )
        self.ended: dict[str, ConnectionRecord] = {}

    def clock(self) -> float:
        """Each look takes a slice: whatever is judged in slices is judged in as many as can be."""
        self.seconds += 0.0011
        return self.seconds

    def apply(self, text: str) -> None:
        self._step(Update(upserts=parse_manifests(text, origin="test.yaml").objects))

    def policy(self, spec: str, *, name: str = "policy", more: str = "") -> None:
        self.apply(_POLICY.format(name=name, spec=spec, more=more))

    def delete(self, name: str = "policy") -> None:
        keys = [each.key for each in self.registry.authorization_policies() if each.name == name]
        self._step(Update(deletes=tuple(keys)))

    def _step(self, update: Update) -> None:
        changes = self.registry.apply(update)
        self.engine.apply(changes.policies)
        self.gate.follow(changes)

    @property
    def web(self) -> Workload:
        found = self.registry.workload_at("10.0.0.1")
        assert found is not None
        return found

    def fill(self, record: ConnectionRecord, source: SpiffeId | None, ip: str = "10.0.0.2") -> None:
        record.note(
            source_address=PeerAddress(ip, 4000),
            source_identity=source,
            original_destination=OriginalDestination("10.0.0.1", 8080),
            destination=self.web,
        )

    async def connection(self, name: str, source: SpiffeId | None, awaits: int = 0) -> None:
        """The life of an inbound connection, as the story lives it; ``awaits`` is how long the application takes."""
        with self.log.connection("inbound") as record, self.live.track(record, "web-1"):
            self.ended[name] = record
            self.fill(record, source)
            self.gate.admit(record)
            for _ in range(awaits):
                await trio.lowlevel.checkpoint()
            record.opened()
            await trio.sleep_forever()

    def alive(self) -> set[str]:
        return {name for name, record in self.ended.items() if record.close_reason is None}

    def metric(self, name: str) -> dict[str, float]:
        (family,) = (each for each in self.metrics.read() if each.name == name)
        return {",".join(sample.values): sample.value for sample in family.samples}
