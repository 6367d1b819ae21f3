"""Put the same-node lane together; imported only where the capture has one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.config import Config
from node_agent.drain import Drain
from node_agent.identity import Credentials
from node_agent.identity.trust import Certificate, TrustStore
from node_agent.model import Workload
from node_agent.proxy.lane_grants import LaneRules
from node_agent.proxy.lanes import Lanes
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Pod
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Registry
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from node_agent.capture.lane import KernelLane

_NO_SERIAL = 0  # only the identity counts


class HeldIdentities(Protocol):
    """Which identities have a certificate that is valid now."""

    def current(self, identity: SpiffeId) -> Credentials | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneParts:
    """What the capture gives; both stay the caller's."""

    kernel: "KernelLane"
    netns_path: Callable[[Workload], Path]


def build_lanes(
    parts: LaneParts,
    *,
    config: Config,
    registry: Registry,
    balancer: Balancer,
    policies: PolicyGate,
    identities: HeldIdentities,
    trust: TrustStore,
    gate: TrustGate,
    access_log: AccessLog,
    live: LiveConnections,
    drain: Drain,
    metrics: Metrics,
    pods: Callable[[], Iterable[Pod]],
) -> Lanes:
    """Wire it to what it has to hear of."""

    def is_trusted(identity: SpiffeId) -> bool:
        certificate = Certificate(identity=identity, serial=_NO_SERIAL)
        return identities.current(identity) is not None and trust.why_not(certificate) is None

    lanes = Lanes(
        kernel=parts.kernel,
        rules=LaneRules(
            registry=registry,
            balancer=balancer,
            policies=policies,
            is_trusted=is_trusted,
            node=config.agent.node,
            default=config.capture.same_node.value,
        ),
        access_log=access_log,
        live=live,
        registry=registry,
        policies=policies,
        trust=gate,
        drain=drain,
        metrics=metrics,
        pods=pods,
        netns_path=parts.netns_path,
        node=config.agent.node,
    )
    balancer.on_health_changed.append(lanes.health_changed)
    trust.on_changed.insert(0, lanes.revoke)  # before the gate judges what is open
    return lanes
