"""Put connect-time balancing together, or say why there is none; its parts are imported only where there is."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.capture import Chosen
from node_agent.config import Config
from node_agent.identity.trust import Certificate, TrustStore
from node_agent.model import ServicePort
from node_agent.proxy.pod import Pod
from node_agent.proxy.routes import Router, is_local_address
from node_agent.registry import Changes, Registry
from node_agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from node_agent.proxy.health_checks import HealthChecker

_NO_SERIAL = 0  # only the identity counts


class AtConnect(Protocol):
    """Services that the kernel balances at connect, or none."""

    def follow(self, changes: Changes) -> None:
        """The registry has taken a step."""

    async def run(self) -> None:
        """Do what has to be done, until cancelled."""

    def describe(self, port: ServicePort) -> tuple[bool, str]:
        """Whether connections to a service port do without the agent, and why not, if that is asked for."""

    def problems(self) -> Iterator[str]:
        """Why services are not balanced so that should be."""


class NoneAtConnect:
    """Where the kernel can not, or the capture does not let it."""

    def __init__(self, why: str, *, config: Config, registry: Registry) -> None:
        self._why = why
        self._is_default = config.capture.connect_balancing
        self._registry = registry

    def follow(self, changes: Changes) -> None:
        """Nothing is filed."""

    async def run(self) -> None:
        """Nothing is to be done."""

    def describe(self, port: ServicePort) -> tuple[bool, str]:
        """No, and why if anybody asks for it."""
        asked = self._registry.balance(port.service) or ("connect" if self._is_default else "")
        return False, self._why if asked == "connect" and not port.is_external else ""

    def problems(self) -> Iterator[str]:
        """That it is configured."""
        if self._is_default:
            yield f"[capture] connect_balancing = true can not be had: {self._why}"


def build_connects(
    chosen: Chosen,
    *,
    config: Config,
    registry: Registry,
    balancer: Balancer,
    trust: TrustStore,
    metrics: Metrics,
    health: "HealthChecker | None" = None,
    pods: Callable[[], Iterable[Pod]] = tuple,
) -> AtConnect:
    """Wire it to what it has to hear of, but for the registry's steps.

    ``health`` and ``pods`` are there where this process carries connections.
    """
    if chosen.balancing is None:
        return NoneAtConnect(chosen.no_balancing, config=config, registry=registry)
    from node_agent.proxy.connect_rules import ConnectRules  # noqa: PLC0415
    from node_agent.proxy.connects import Connects  # noqa: PLC0415

    def is_trusted(identity: SpiffeId) -> bool:
        return trust.why_not(Certificate(identity=identity, serial=_NO_SERIAL)) is None

    router = Router(registry, is_node_address=is_local_address, draw=lambda: 0.0)  # nothing is drawn
    connects = Connects(
        kernel=chosen.balancing,
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
