"""The parts of this folder, wired for the agent."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import trio

from ca.http_server import Prepare, Routes
from ca.tls import KeyAndChain
from node_agent.carrier import Carrier
from node_agent.config import Config
from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.registry import Registry
from node_agent.report import Report
from node_agent.sight.collector import Collector
from node_agent.sight.endpoint import SightEndpoint
from node_agent.sight.own import OwnSight
from node_agent.sight.peers import NodePeers
from node_agent.sight.routes import mesh_routes
from node_agent.telemetry.metrics import Metrics

_MESH: Final = "/mesh"


class Sight:
    """What this agent tells others, and what it asks them."""

    def __init__(
        self,
        *,
        config: Config,
        report: Report,
        registry: Registry,
        carrier: Carrier,
        identities: Identities,
        own: Callable[[], KeyAndChain | None],
        trust: TrustStore,
        metrics: Metrics,
        utc_now: Callable[[], datetime],
    ) -> None:
        """``own`` is the node's certificate of now."""
        self._prepare_own = carrier.prepare
        peers = NodePeers(own=own, trust=trust, utc_now=utc_now)
        seen = OwnSight(
            node=config.agent.node,
            report=report,
            registry=registry,
            connections=carrier.connections.live,
            recent=carrier.connections.recent,
            families=carrier.families,
            certs=identities.status,
            utc_now=utc_now,
        )
        self._collector = Collector(
            node=config.agent.node,
            trust_domain=config.agent.trust_domain,
            port=None if config.listen.sight is None else config.listen.sight.port,
            nodes=registry.nodes,
            peers=peers,
        )
        self._endpoint = SightEndpoint(
            peers=peers, trust=trust, document=seen.document, prepare=carrier.prepare, metrics=metrics
        )
        self.routes: Routes = mesh_routes(node=config.agent.node, own=seen, collector=self._collector)

    @property
    def prepare(self) -> Prepare:
        """For the operator's socket: fetches what the other processes and, for the mesh, the other agents know."""
        return self._prepare

    async def _prepare(self, path: str) -> None:
        if self._prepare_own is not None:
            await self._prepare_own(path)
        if path == _MESH:
            await self._collector.collect()

    async def run(self, listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]]) -> None:
        """Serve what this agent sees to the others, on ``listeners``, until cancelled."""
        await self._endpoint.run(listeners)
