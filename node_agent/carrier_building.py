"""Builds what carries the connections: the part of the composition root that is about the data path.

It is in this process or in worker processes; with it comes what the kernel does
for connections, where that is configured: services chosen at connect, the
same-node lane, plaintext that the kernel relays.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node_agent.balance import Balancer
from node_agent.capture import Chosen
from node_agent.carrier import Carrier, InProcess
from node_agent.config import Config, SameNode
from node_agent.data_path import build_data_path
from node_agent.drain import Drain
from node_agent.errors import AgentError
from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.model import Workload
from node_agent.policy import PolicyEngine
from node_agent.proxy.connect_building import AtConnect, build_connects
from node_agent.registry import Registry
from node_agent.registry.changes import RegistryObject
from node_agent.telemetry.exports import Exports
from node_agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from node_agent.capture.sockmap import KernelSockmap
    from node_agent.proxy.lanes import Lanes

_ONE_PROCESS = "it needs [agent] workers = 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierParts:
    """What it is built from, wherever it is; ``on_crash`` hears of what the agent can not go on with."""

    config: Config
    chosen: Chosen
    registry: Registry
    identities: Identities
    trust: TrustStore
    metrics: Metrics
    rng: random.Random
    on_crash: Callable[[AgentError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carriage:
    """The carrier, and what the kernel does beside it; ``no_lane`` and ``no_sockmap``: why not, if it was to."""

    carrier: Carrier
    connects: AtConnect
    lanes: "Lanes | None"
    no_lane: str
    no_sockmap: str

    def problems(self) -> Iterator[str]:
        """What the kernel was to do, and does not; what is lost of what is to be told."""
        if self.lanes is not None and self.lanes.problem is not None:
            yield self.lanes.problem
        if self.no_lane:
            yield f'[capture] same_node = "lane" can not be had, "tunnel" is in effect: {self.no_lane}'
        if self.no_sockmap:
            yield f"[relay] sockmap = true can not be had, plaintext is relayed by the agent: {self.no_sockmap}"
        yield from self.connects.problems()
        yield from self.carrier.problems()


def build_in_process(
    parts: CarrierParts,
    *,
    engine: PolicyEngine,
    drain: Drain,
    exports: Exports | None,
    netns_path: Callable[[Workload], Path],
    stack: ExitStack,
) -> Carriage:
    """The data path in this process; ``stack`` closes it."""

    def relay_crashed(error: BaseException) -> None:
        crash = AgentError(f"the relay ended by a bug: {error!r}")
        crash.__cause__ = error
        parts.on_crash(crash)

    lane = None
    if parts.chosen.lane is not None:
        from node_agent.proxy.lane_building import LaneParts  # noqa: PLC0415  # most have none

        lane = LaneParts(kernel=parts.chosen.lane, netns_path=netns_path)
    sockmap: KernelSockmap | None = None
    no_sockmap = ""
    if parts.config.relay.sockmap:
        from node_agent.capture.sockmap import open_sockmap  # noqa: PLC0415  # most have none

        sockmap, no_sockmap = open_sockmap(parts.config.capture.pins, stack)
    data_path = build_data_path(
        config=parts.config,
        registry=parts.registry,
        engine=engine,
        identities=parts.identities,
        trust=parts.trust,
        drain=drain,
        metrics=parts.metrics,
        rng=parts.rng,
        on_relay_crash=relay_crashed,
        stack=stack,
        spans=exports.spans if exports is not None else None,
        lane=lane,
        sockmap=sockmap,
    )
    connects = build_connects(
        parts.chosen,
        config=parts.config,
        registry=parts.registry,
        balancer=data_path.balancer,
        trust=parts.trust,
        metrics=parts.metrics,
        health=data_path.health,
        pods=data_path.server.pods,
    )
    is_missed = parts.config.capture.same_node is SameNode.LANE and data_path.lanes is None
    return Carriage(
        carrier=InProcess(data_path, metrics=parts.metrics, problems=tuple if exports is None else exports.problems),
        connects=connects,
        lanes=data_path.lanes,
        no_lane=parts.chosen.no_lane if is_missed else "",
        no_sockmap=no_sockmap,
    )


def build_in_workers(
    parts: CarrierParts, *, objects: Callable[[], Iterable[RegistryObject]], stream_locks: tuple[int, int]
) -> Carriage:
    """Worker processes; ``objects`` are all that the registry was fed with."""
    from node_agent.workers.carrier import InWorkers  # noqa: PLC0415  # one process does not need it

    connects = build_connects(
        parts.chosen,
        config=parts.config,
        registry=parts.registry,
        balancer=Balancer(rng=parts.rng),
        trust=parts.trust,
        metrics=parts.metrics,
    )
    carrier = InWorkers(
        config=parts.config,
        registry=parts.registry,
        objects=objects,
        identities=parts.identities,
        trust=parts.trust,
        metrics=parts.metrics,
        stream_locks=stream_locks,
        on_crash=parts.on_crash,
    )
    return Carriage(
        carrier=carrier,
        connects=connects,
        lanes=None,
        no_lane=_ONE_PROCESS if parts.config.capture.same_node is SameNode.LANE else "",
        no_sockmap=_ONE_PROCESS if parts.config.relay.sockmap else "",
    )
