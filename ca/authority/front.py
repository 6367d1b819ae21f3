"""Everything between the network and the requests' answers, put together: limits, queue, server, metrics."""

import random

import trio

from ca.authority.admission import Admission
from ca.authority.attestation import assemble as attestation
from ca.authority.config import AuthorityConfig
from ca.authority.drain import Drain
from ca.authority.front_desk import FrontDesk
from ca.authority.metrics import Gauges, Metrics, Stored, listen_for_metrics
from ca.authority.quiet import LogGate
from ca.authority.requests import RequestHandler
from ca.authority.server import Server
from ca.authority.server_certificate import ServerCertificate
from ca.authority.statistics import Statistics
from ca.authority.store import Store
from ca.authority.trust_feed import TrustFeed
from ca.authority.worker import Worker


class Front:
    """The serving authority's network side; ``limiter`` is that of the thread that may use the store."""

    def __init__(
        self,
        config: AuthorityConfig,
        *,
        handler: RequestHandler,
        certificate: ServerCertificate,
        trust: TrustFeed,
        store: Store,
        limiter: trio.CapacityLimiter,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._worker = Worker(
            handler=handler,
            limiter=limiter,
            rng=rng,
            handshakes_waiting=lambda: self.server.handshakes_waiting,
        )
        drain, gate, statistics, admission = Drain(), LogGate(), Statistics(), Admission(config.limits)
        desk = FrontDesk(
            admission=admission,
            worker=self._worker,
            trust=trust,
            attestors=attestation.assemble(config.attestation, trust_domain=config.trust_domain),
            trust_domain=config.trust_domain,
            drain=drain,
            gate=gate,
            statistics=statistics,
            rng=rng,
        )
        self.server = Server(
            certificate=certificate,
            admission=admission,
            desk=desk,
            trust_domain=config.trust_domain,
            drain=drain,
            gate=gate,
            statistics=statistics,
        )
        gauges = Gauges(
            requests_waiting=lambda: self._worker.waiting,
            handshakes_waiting=lambda: self.server.handshakes_waiting,
            connections=lambda: admission.connections,
            trust_version=lambda: trust.trust.version,
            server_certificate_not_after=lambda: certificate.own.chain[0].not_valid_after_utc,
        )
        self._metrics = Metrics(
            statistics=statistics,
            gauges=gauges,
            read=lambda: Stored(
                authorities=store.authorities(),
                agents=store.trust.agents(),
                federated=store.federation.domains(),
            ),
            limiter=limiter,
        )
        self._metrics_listeners: list[trio.SocketListener] = []

    async def listen(self) -> None:
        """Open the listeners of the metrics, if they are wanted; raises AuthorityError if that can not be done."""
        self._metrics_listeners = await listen_for_metrics(self._config.metrics_address)

    async def run(self) -> None:
        """What ``server.run`` needs meanwhile; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._worker.run)
            nursery.start_soon(self._metrics.run, self._metrics_listeners)
