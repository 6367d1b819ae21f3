"""``/metrics`` of the authority, in Prometheus' text format, when ``[ca] metrics_address`` is set.

Theory of operation.  What happens is counted by ``Statistics``; what is, is
asked for at each scrape; what is in the database is read every ``_LOOK_S`` by
``run`` in the store's thread, so that a scrape never waits for the disk.  The
names are in docs/metrics.md.  The only door to ``prometheus_client``.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ca.authority.errors import AuthorityError, StoreError
from ca.authority.federation.relation import FederatedDomain
from ca.authority.logs import log
from ca.authority.records import AuthorityRecord, AuthorityState
from ca.authority.statistics import Latencies, Statistics
from ca.authority.store.trust import AgentRecord
from ca.http_server import HttpServer, Request, Response

_LOOK_S: Final = 15.0
_LIVE_S: Final = 120.0  # an agent is heard of every 25 s
_PREFIX: Final = "ringfence_ca"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the database holds of interest."""

    authorities: Sequence[AuthorityRecord] = ()
    agents: Sequence[AgentRecord] = ()
    federated: Sequence[FederatedDomain] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is now; each is called at every scrape."""

    requests_waiting: Callable[[], int]
    handshakes_waiting: Callable[[], int]
    connections: Callable[[], int]
    trust_version: Callable[[], int]
    server_certificate_not_after: Callable[[], datetime]


class Metrics:
    """Serves what ``statistics``, ``gauges`` and the database say.

    ``read`` asks the database; it blocks, and is called in ``limiter``'s thread.
    """

    def __init__(
        self, *, statistics: Statistics, gauges: Gauges, read: Callable[[], Stored], limiter: trio.CapacityLimiter
    ) -> None:
        self._read = read
        self._limiter = limiter
        self._collector = _AuthorityCollector(statistics, gauges)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve on ``listeners``, which are closed at the end, until cancelled."""
        if not listeners:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            await HttpServer({"/metrics": {"GET": self._answer}}).run(listeners)

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self._registry)

    async def _look(self) -> None:
        while True:
            try:
                self._collector.stored = await trio.to_thread.run_sync(self._read, limiter=self._limiter)
            except StoreError as exc:  # what was read last is shown on
                log("metrics_not_read", level=logging.WARNING, why=str(exc))
            await trio.sleep(_LOOK_S)

    def _answer(self, _request: Request) -> Response:
        return Response(200, CONTENT_TYPE_PLAIN_0_0_4, self.text())


async def listen_for_metrics(address: tuple[str | None, int] | None) -> list[trio.SocketListener]:
    """Open the listeners, none without an address.

    Raises:
        AuthorityError: it can not be done.
    """
    if address is None:
        return []
    host, port = address
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as exc:
        raise AuthorityError(
            f"can not listen on {host or 'every address'} port {port}: {exc.strerror or exc}; change metrics_address "
            "under [ca], or stop what uses it"
        ) from exc
    log("serving_metrics", port=listeners[0].socket.getsockname()[1])
    return listeners


class _AuthorityCollector(Collector):
    def __init__(self, statistics: Statistics, gauges: Gauges) -> None:
        self._statistics = statistics
        self._gauges = gauges
        self.stored = Stored()

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._latencies()
        yield from self._now()
        yield from self._signing()
        yield from self._agents()
        yield from self._federation()

    def _counters(self) -> Iterator[Metric]:
        counted = self._statistics
        requests = _counter("requests", "requests answered", ["type", "outcome"])
        for (kind, outcome), count in sorted(counted.requests.items()):
            requests.add_metric([kind, outcome], count)
        yield requests
        for name, text, label, values in (
            ("certificates_issued", "certificates issued, by type of request", "type", counted.certificates),
            ("certificates_refused", "identities refused in a request", "code", counted.refused_certificates),
            ("connections", "connections that ended, by how", "outcome", counted.connections),
            ("over_limit", "connections and requests refused by a limit", "limit", counted.over_limit),
        ):
            family = _counter(name, text, [label])
            for value, count in sorted(values.items()):
                family.add_metric([value], count)
            yield family
        left_out = _counter("log_lines_left_out", "log lines that peers caused and that were only counted", [])
        left_out.add_metric([], counted.log_lines_left_out)
        yield left_out

    def _latencies(self) -> Iterator[Metric]:
        for name, text, latencies in (
            ("request_duration_seconds", "from request to reply, handshake included", self._statistics.latencies),
            ("handshake_duration_seconds", "from hello to the end of the handshake", self._statistics.handshakes),
        ):
            yield _histogram(name, text, latencies)

    def _now(self) -> Iterator[Metric]:
        gauges = self._gauges
        yield _gauge("requests_waiting", "requests that wait for their turn", gauges.requests_waiting())
        yield _gauge("handshakes_waiting", "connections that wait to shake hands", gauges.handshakes_waiting())
        yield _gauge("connections_open", "connections", gauges.connections())
        yield _gauge("trust_version", "version of what agents are told to trust", gauges.trust_version())
        remaining_s = (gauges.server_certificate_not_after() - datetime.now(UTC)).total_seconds()
        yield _gauge("server_certificate_expiry_seconds", "until the authority's own certificate ends", remaining_s)

    def _signing(self) -> Iterator[Metric]:
        labels, at = ["kind", "state", "key_id"], datetime.now(UTC)
        expiry = GaugeMetricFamily(
            f"{_PREFIX}_signing_certificate_expiry_seconds", "until a signing certificate ends", labels=labels
        )
        age = GaugeMetricFamily(f"{_PREFIX}_signing_key_age_seconds", "since a signing key was made", labels=labels)
        for record in self.stored.authorities:
            if record.state is not AuthorityState.RETIRED:
                values = [str(record.kind), str(record.state), record.key_id]
                expiry.add_metric(values, (record.certificate.not_valid_after_utc - at).total_seconds())
                age.add_metric(values, (at - record.created_at).total_seconds())
        yield expiry
        yield age

    def _agents(self) -> Iterator[Metric]:
        at, version = datetime.now(UTC), self._gauges.trust_version()
        live = [agent for agent in self.stored.agents if (at - agent.seen_at).total_seconds() <= _LIVE_S]
        behind = sum(1 for agent in live if agent.version < version)
        yield _gauge("agents", "agents heard of in the last two minutes", len(live))
        yield _gauge("agents_behind", "of them, those that have an older trust version in force", behind)

    def _federation(self) -> Iterator[Metric]:
        failed = GaugeMetricFamily(
            f"{_PREFIX}_federation_failed_polls",
            "polls of a trust domain's bundle that failed in a row",
            labels=["trust_domain"],
        )
        for domain in self.stored.federated:
            failed.add_metric([domain.trust_domain], domain.failures)
        yield failed


def _counter(name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)


def _histogram(name: str, text: str, latencies: Latencies) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"{_PREFIX}_{name}", text, buckets=latencies.cumulative(), sum_value=latencies.sum_s)
