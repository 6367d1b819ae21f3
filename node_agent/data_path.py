"""What carries connections, wired once for whoever carries them: the agent itself, or a worker process.

Everything here is a part of one process and of one trio thread.  What feeds it
(registry, identities, pods) is handed in: the agent has the originals, a worker
has copies (node_agent/workers).
"""

import random
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, cast

import trio

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.balance.limits import Ledger, LocalLedger
from node_agent.config import Config, OutboundTrafficPolicy
from node_agent.drain import Drain
from node_agent.identity import Credentials, Identities, PeerCertificate, handshake_failure, peer_identity
from node_agent.identity.trust import TrustStore
from node_agent.policy import PolicyEngine
from node_agent.proxy.admission import Admission
from node_agent.proxy.egress import Egress
from node_agent.proxy.foresight import Foresight
from node_agent.proxy.health_checks import HealthChecker
from node_agent.proxy.health_probe import CHECK_FAILED
from node_agent.proxy.inbound import Inbound
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.outbound import Outbound
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.routes import Router, is_local_address
from node_agent.proxy.serving import ACCEPTS_A_TURN, LocalServer
from node_agent.proxy.timeouts import Timekeeper
from node_agent.proxy.trust_gate import TrustGate
from node_agent.proxy.upstream import ANOTHER_MAY_WORK, Connector
from node_agent.registry import Changes, Registry
from node_agent.relay import Relay
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.loop_lag import LoopLag
from node_agent.telemetry.metrics import QUICK_S, Metrics
from node_agent.telemetry.saturation import Saturation, Sources
from node_agent.telemetry.tracing import FinishedSpan, Tracer
from node_agent.telemetry.traffic import DIRECTIONS
from node_agent.tunnel import PendingHandshakes, TunnelClient, TunnelServer

if TYPE_CHECKING:
    from node_agent.capture.sockmap import KernelSockmap
    from node_agent.proxy.elsewhere import Elsewhere
    from node_agent.proxy.lane_building import LaneParts
    from node_agent.proxy.lanes import Lanes


class IdentitySource(Protocol):
    """What the stories ask of ``Identities``, or of a worker's copy."""

    def current(self, identity: SpiffeId) -> Credentials | None: ...

    async def wait_for(self, identity: SpiffeId) -> Credentials: ...


class SpanQueue(Protocol):
    """Where spans of traced connections go; ``put`` never waits."""

    def put(self, item: FinishedSpan) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPath:
    """The parts that others have to reach; ``run`` has to be started."""

    access_log: AccessLog
    live: LiveConnections
    balancer: Balancer
    tunnels: TunnelClient
    relay: Relay
    server: LocalServer
    times: Timekeeper
    health: HealthChecker
    lag: LoopLag
    policies: PolicyGate
    lanes: "Lanes | None" = None

    def follow(self, changes: Changes) -> None:
        """The registry, and then the policy engine, have taken a step: cut whom it ends."""
        if self.lanes is not None:
            self.lanes.follow(changes)
        self.live.cut_removed(changes.workloads_gone())
        self.policies.follow(changes)

    async def run(self) -> None:
        """Do what the data path does by itself, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tunnels.run)
            nursery.start_soon(self.times.run)
            nursery.start_soon(self.health.run)
            nursery.start_soon(self.lag.run)
            nursery.start_soon(self.policies.run)
            if self.lanes is not None:
                nursery.start_soon(self.lanes.run)


def build_data_path(
    *,
    config: Config,
    registry: Registry,
    engine: PolicyEngine,
    identities: IdentitySource,
    trust: TrustStore,
    drain: Drain,
    metrics: Metrics,
    rng: random.Random,
    on_relay_crash: Callable[[BaseException], None],
    stack: ExitStack,
    accepts_a_turn: int = ACCEPTS_A_TURN,
    run: str | None = None,
    ledger: Ledger | None = None,
    spans: SpanQueue | None = None,
    lane: "LaneParts | None" = None,
    sockmap: "KernelSockmap | None" = None,
    elsewhere: "Elsewhere | None" = None,
) -> DataPath:
    """Wire the data path of this process; ``stack`` closes what has to be closed.  Inside trio only.

    ``run`` is a part of the ids of access records, drawn if it is not given;
    ``ledger`` is where limits are counted, if that is not in this process alone;
    ``spans`` takes those of traced connections; ``lane`` is there where connections
    may go without us; ``sockmap`` where the kernel may relay plaintext; ``elsewhere``
    where other processes accept for the same pods.
    """

    def verify(tls: ssl.SSLSocket, at: datetime) -> PeerCertificate:
        return peer_identity(tls, bundles=trust.anchors, at=at)

    known = cast(Identities, identities)  # the stories call nothing but what IdentitySource has
    access_log = AccessLog(
        metrics=metrics,
        node=config.agent.node,
        max_label_sets=config.metrics.max_label_sets,
        run=run,
        tracer=_tracer(config, rng) if spans is not None else None,
        on_span=spans.put if spans is not None else None,
        opened_record=config.access_log.opened_record,
    )
    live = LiveConnections()
    gate = TrustGate(trust=trust, live=live)
    policies = PolicyGate(
        engine=engine, registry=registry, live=live, counts=PolicyCounts(metrics), clock=time.monotonic
    )
    relay = Relay(on_crash=on_relay_crash, sockmap=sockmap)
    stack.callback(relay.close)
    handshakes = metrics.histogram(
        "ringfence_tunnel_handshake_duration_seconds",
        "TLS handshakes of tunnels that succeeded, as the end that dials (outbound) or is dialled (inbound).",
        bounds=QUICK_S,
        labels={"direction": DIRECTIONS},
    )
    tunnels = TunnelClient(
        connect_timeout_s=config.proxy.connect_timeout_s,
        handshake_timeout_s=config.proxy.handshake_timeout_s,
        verify=gate.dialled(verify),
        fault=handshake_failure,
        on_handshake=handshakes.of("outbound").observe,
        carriers=relay if config.proxy.share_tunnels else None,
    )
    gate.guard(tunnels)
    stack.callback(tunnels.close)
    balancer = Balancer(rng=rng)
    router = Router(
        registry,
        is_node_address=is_local_address,
        draw=rng.random,
        registry_only=config.proxy.outbound_traffic_policy is OutboundTrafficPolicy.REGISTRY_ONLY,
    )
    health = HealthChecker(
        registry=registry,
        router=router,
        balancer=balancer,
        identities=known,
        tunnels=tunnels,
        gate=gate,
        drawn=rng.random,
        metrics=metrics,
        failing=ANOTHER_MAY_WORK | CHECK_FAILED,
        ledger=ledger,
    )
    connector = Connector(
        router=router,
        balancer=balancer,
        identities=known,
        tunnels=tunnels,
        gate=gate,
        foresight=Foresight(policies),
        health=health,
        connect_timeout_s=config.proxy.connect_timeout_s,
        max_connect_attempts=config.proxy.max_connect_attempts,
    )
    times = Timekeeper(live)
    lanes = None
    if lane is not None:
        from node_agent.proxy.lane_building import build_lanes  # noqa: PLC0415  # most have none

        lanes = build_lanes(
            lane,
            config=config,
            registry=registry,
            balancer=balancer,
            policies=policies,
            identities=identities,
            trust=trust,
            gate=gate,
            access_log=access_log,
            live=live,
            drain=drain,
            metrics=metrics,
            pods=lambda: server.pods(),  # noqa: PLW0108  # it is made below
        )
    pending = PendingHandshakes(config.proxy.max_pending_handshakes)
    outbound = Outbound(
        access_log=access_log,
        live=live,
        router=router,
        admission=Admission(registry=registry, ledger=ledger or LocalLedger(), drawn=rng.random, metrics=metrics),
        connector=connector,
        tunnels=tunnels,
        relay=relay,
        gate=gate,
        times=times,
        lanes=lanes,
    )
    inbound = Inbound(
        access_log=access_log,
        live=live,
        drain=drain,
        registry=registry,
        identities=known,
        server=TunnelServer(
            handshake_timeout_s=config.proxy.handshake_timeout_s,
            open_timeout_s=config.proxy.open_timeout_s,
            pending=pending,
            verify=verify,
            fault=handshake_failure,
            on_handshake=handshakes.of("inbound").observe,
        ),
        relay=relay,
        gate=gate,
        policies=policies,
        egress=Egress(registry=registry, router=router),
        connect_timeout_s=config.proxy.connect_timeout_s,
        elsewhere=elsewhere,
    )
    metrics.gauge("ringfence_tunnels_idle", "Tunnels that wait for their next connection.", lambda: tunnels.idle_count)
    metrics.gauge("ringfence_tunnels_busy", "Tunnels that carry a connection.", lambda: tunnels.busy_count)
    metrics.gauge(
        "ringfence_tunnels_shared", "Of them, those that connections share, or may.", lambda: tunnels.shared_count
    )
    metrics.gauge(
        "ringfence_shared_connections", "Connections in shared tunnels.", lambda: tunnels.shared_connection_count
    )
    metrics.counter(
        "ringfence_tunnel_moves_total",
        "Connections that left a shared tunnel for one of their own, or should have and could not.",
        lambda: {("moved",): tunnels.moved_count, ("failed",): tunnels.unmoved_count},
        labels=("result",),
    )
    server = LocalServer(outbound=outbound, inbound=inbound, tunnels=tunnels, live=live, accepts_a_turn=accepts_a_turn)
    Saturation(
        metrics,
        Sources(
            pairs=lambda: relay.pairs,
            tunnels=tunnels,
            handshakes=pending,
            max_handshakes=config.proxy.max_pending_handshakes,
            listeners=server.listeners,
        ),
    )
    if sockmap is not None:
        from node_agent.telemetry.sockmap_metrics import register_sockmap  # noqa: PLC0415  # most have none

        register_sockmap(metrics, sockmap)
    return DataPath(
        access_log=access_log,
        live=live,
        balancer=balancer,
        tunnels=tunnels,
        relay=relay,
        server=server,
        times=times,
        health=health,
        policies=policies,
        lag=LoopLag(metrics),
        lanes=lanes,
    )


def _tracer(config: Config, rng: random.Random) -> Tracer:
    # Ids are no secrets: a system call for each of them would be all that tracing costs an untraced connection.
    fast = random.Random(rng.getrandbits(128))  # noqa: S311
    return Tracer(sample_ratio=config.tracing.sample_ratio, rng=fast, now=time.monotonic)
