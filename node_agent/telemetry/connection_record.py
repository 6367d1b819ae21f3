"""What is known about one connection, from its accept to its access record.

Sans-I/O.  The story fills it in; :mod:`node_agent.telemetry.access_log` ends it.

Bytes are counted as Istio does, whoever reports: ``received_bytes`` from the
source to the destination (the request), ``sent_bytes`` from the destination
back to the source (the response).

Opened and closed are moved in pairs, under the same labels but for
``response_flags`` (``-`` while nobody knows how it will end), so that their
difference is the number of live connections.  A connection that ends before
``opened()`` is counted in both at its end, both with its flag.
"""

from collections.abc import Callable
from typing import Final

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure, PolicyDenied
from node_agent.model import EndpointAddress, OriginalDestination, PeerAddress, ServicePort, Workload
from node_agent.telemetry.response_flags import ResponseFlag
from node_agent.telemetry.tracing import Trace
from node_agent.telemetry.traffic import Direction, SecurityPolicy, Series, Traffic, TrafficKey

ByteCounts = Callable[[], tuple[int, int]]

CHOSEN: Final = "ringfence.endpoint.chosen"
OPENED: Final = "ringfence.opened"
"""Phases of a traced connection: an endpoint is tried; bytes may flow (the verdict was heard, or said)."""


class ConnectionRecord:
    """What is known about one connection; filled in by its story as it goes.

    Attributes that the story sets: ``connect_ms`` (time to a usable upstream),
    ``attempts`` (endpoints tried), ``sent_bytes`` and ``received_bytes``, or
    ``byte_counts``, a callable that returns both, in that order, at any time;
    ``stands_on``, identity and serial number of the certificates without which
    it may not go on; ``is_judged``, whether AuthorizationPolicies have a say in
    it; ``policy``, the one that decided, ``audit``, those that wanted to know,
    ``dry_run``, what those on trial would have done; ``fault``, what a
    TrafficPolicy does to it on purpose.

    ``began_at`` is monotonic seconds.  The access log sets ``trace``, if the
    connection is traced, ``trace_parent``, what the next agent is told of that,
    and ``on_opened``, if there is one.
    """

    __slots__ = (
        "_counted_received",
        "_counted_sent",
        "_key",
        "_series",
        "_traffic",
        "attempts",
        "audit",
        "began_at",
        "byte_counts",
        "close_reason",
        "connect_ms",
        "destination",
        "destination_identity",
        "detail",
        "direction",
        "dry_run",
        "endpoint",
        "fault",
        "id",
        "is_judged",
        "on_opened",
        "original_destination",
        "policy",
        "received_bytes",
        "security",
        "sent_bytes",
        "service",
        "source",
        "source_address",
        "source_identity",
        "stands_on",
        "trace",
        "trace_parent",
    )

    def __init__(self, *, traffic: Traffic, record_id: str, direction: Direction, now: float) -> None:
        self._traffic = traffic
        self.began_at = now
        self._key: TrafficKey | None = None
        self._series: Series | None = None
        self._counted_sent = 0
        self._counted_received = 0
        self.id = record_id
        self.direction = direction
        self.source: Workload | None = None
        self.source_address: PeerAddress | None = None
        self.source_identity: SpiffeId | None = None
        self.original_destination: OriginalDestination | None = None
        self.service: ServicePort | None = None
        self.endpoint: EndpointAddress | None = None
        self.destination: Workload | None = None
        self.destination_identity: SpiffeId | None = None
        self.is_judged = False
        self.policy: str | None = None
        self.audit: str | None = None
        self.dry_run: str | None = None
        self.fault: str | None = None
        self.security: SecurityPolicy = "none"
        self.byte_counts: ByteCounts | None = None
        self.sent_bytes = 0
        self.received_bytes = 0
        self.connect_ms: float | None = None
        self.attempts = 0
        self.close_reason: CloseReason | None = None
        self.detail = ""
        self.stands_on: tuple[tuple[SpiffeId, int], ...] = ()
        self.trace: Trace | None = None
        self.trace_parent = ""
        self.on_opened: Callable[[ConnectionRecord], None] | None = None

    def note(
        self,
        *,
        source: Workload | None = None,
        source_address: PeerAddress | None = None,
        source_identity: SpiffeId | None = None,
        original_destination: OriginalDestination | None = None,
        service: ServicePort | None = None,
        endpoint: EndpointAddress | None = None,
        destination: Workload | None = None,
        destination_identity: SpiffeId | None = None,
        policy: str | None = None,
        security: SecurityPolicy | None = None,
    ) -> None:
        """Write down what is known now.  ``None`` changes nothing.  The last value stands."""
        if source is not None:
            self.source = source
        if source_address is not None:
            self.source_address = source_address
        if source_identity is not None:
            self.source_identity = source_identity
        if original_destination is not None:
            self.original_destination = original_destination
        if service is not None:
            self.service = service
        if endpoint is not None:
            self.endpoint = endpoint
        if destination is not None:
            self.destination = destination
        if destination_identity is not None:
            self.destination_identity = destination_identity
        if policy is not None:
            self.policy = policy
        if security is not None:
            self.security = security

    def chose(
        self,
        *,
        endpoint: EndpointAddress,
        destination: Workload | None,
        destination_identity: SpiffeId | None,
        security: SecurityPolicy,
    ) -> None:
        """Write down the endpoint that is tried now; nothing of an endpoint tried before stays."""
        self.endpoint = endpoint
        self.destination = destination
        self.destination_identity = destination_identity
        self.security = security
        if self.trace is not None:
            self.trace.reached(CHOSEN, endpoint)

    def opened(self) -> None:
        """The connection is up and its identities are known: count it, and fix its labels."""
        if self._series is None:
            self._key = self.traffic_key()
            self._series = self._traffic.series(self._key, ResponseFlag.NONE)
            self._series.opened += 1
            if self.connect_ms is not None:
                self._traffic.connect_s[self.direction].observe(self.connect_ms / 1000)
            if self.trace is not None:
                self.trace.reached(OPENED)
            if self.on_opened is not None:
                self.on_opened(self)

    def close_because(self, reason: CloseReason, detail: str = "") -> None:
        """Say why this connection is about to be cut.  The first reason stands."""
        if self.close_reason is None:
            self.close_reason = reason
            self.detail = detail

    def failed(self, failure: ConnectionFailure) -> None:
        """The same, with what a failure knows."""
        if self.close_reason is None and isinstance(failure, PolicyDenied):
            self.policy = failure.policy
        self.close_because(failure.reason, failure.detail)

    def count_bytes(self) -> None:
        """Bring ``sent_bytes``, ``received_bytes`` and the byte counters up to date."""
        if self.byte_counts is not None:
            self.sent_bytes, self.received_bytes = self.byte_counts()
        if self._series is not None:
            self._series.sent_bytes += self.sent_bytes - self._counted_sent
            self._series.received_bytes += self.received_bytes - self._counted_received
            self._counted_sent = self.sent_bytes
            self._counted_received = self.received_bytes

    def ended(self, flag: ResponseFlag, *, now: float) -> None:
        """Count the end of this connection; called once, by the access log."""
        self.count_bytes()
        self.byte_counts = None  # it knows the pair, which knows us: a ring would wait for the garbage collector
        self._traffic.lifetime_s[self.direction].observe(now - self.began_at)
        if flag is ResponseFlag.NONE and self._series is not None:
            series = self._traffic.again(self._series)  # what ``opened`` has looked up
        else:
            series = self._traffic.series(self._key or self.traffic_key(), flag)
        series.closed += 1
        if self._series is None:
            series.opened += 1
            series.sent_bytes += self.sent_bytes
            series.received_bytes += self.received_bytes

    def describe(self, now: float) -> dict[str, object]:
        """The row of ``ringfence connections``.  ``now`` is monotonic seconds."""
        if self.byte_counts is not None:
            self.sent_bytes, self.received_bytes = self.byte_counts()
        state = "closing" if self.close_reason else "open" if self._series else "opening"
        return {
            "id": self.id,
            "direction": self.direction,
            "source": _text(self.source.name if self.source else self.source_address),
            "source_identity": _text(self.source_identity),
            "original_destination": _text(self.original_destination),
            "service": _text(self.service),
            "endpoint": _text(self.endpoint),
            "destination_identity": _text(self.destination_identity),
            "age_s": round(now - self.began_at, 3),
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "state": state,
        }

    def traffic_key(self) -> TrafficKey:
        """What its counters are labelled by."""
        return TrafficKey(  # by place: keywords would take twice as long
            "source" if self.direction == "outbound" else "destination",
            self.source,
            self.source_identity,
            self.destination,
            self.destination_identity,
            self.service.service if self.service else None,
            self.security,
        )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
