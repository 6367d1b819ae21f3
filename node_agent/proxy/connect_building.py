"""Put connect-time balancing together; imported only where the capture has it."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.config import Config
from node_agent.identity.trust import Certificate, TrustStore
from node_agent.proxy.connect_rules import ConnectRules
from node_agent.proxy.connects import Connects
from node_agent.proxy.pod import Pod
from node_agent.proxy.routes import Router, is_local_address
from node_agent.registry import Registry
from node_agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from node_agent.capture.connect_balancing import KernelBalancing
    from node_agent.proxy.health_checks import HealthChecker

_NO_SERIAL = 0  # only the identity counts


def build_connects(
    kernel: "KernelBalancing",
    *,
    config: Config,
    registry: Registry,
    balancer: Balancer,
    trust: TrustStore,
    health: "HealthChecker | None",
    pods: Callable[[], Iterable[Pod]],
    metrics: Metrics,
) -> Connects:
    """Wire it to what it has to hear of, but for the registry's steps."""

    def is_trusted(identity: SpiffeId) -> bool:
        return trust.why_not(Certificate(identity=identity, serial=_NO_SERIAL)) is None

    router = Router(registry, is_node_address=is_local_address, draw=lambda: 0.0)  # nothing is drawn
    connects = Connects(
        kernel=kernel,
        rules=ConnectRules(
            registry=registry,
            balancer=balancer,
            require_outside=router.require_outside,
            is_default=config.capture.connect_balancing,
            may_check_health=health is not None,
        ),
        registry=registry,
        balancer=balancer,
        is_trusted=is_trusted,
        health=health,
        pods=pods,
        metrics=metrics,
        node=config.agent.node,
    )
    trust.on_changed.insert(0, connects.trust_changed)
    return connects
