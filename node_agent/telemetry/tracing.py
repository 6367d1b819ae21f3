"""Which connections are traced, and the context that joins the spans of both agents into one trace.

The agent of the source decides, once a connection; its decision travels in OPEN
as a W3C ``traceparent`` and binds the agent of the destination:

    an outbound connection, or one without context    a lot, with ``sample_ratio``
    a context that says "sampled"                     traced, as a child of the span that it names
    a context that says "not sampled"                 not traced

A connection that is not traced costs the comparison and one text that is the
same for all.  A traced one gathers the times of its phases, and leaves a
:class:`FinishedSpan`: references only, put into words by another thread
(otlp_spans.py).

Sans-I/O.  Format: https://www.w3.org/TR/trace-context-2/#traceparent-header
"""

import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason
from node_agent.model import EndpointAddress, OriginalDestination, PeerAddress, ServicePort, Workload

_TRACE_PARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.ASCII,
)
_SAMPLED: Final = 0x01
_MAX_EVENTS: Final = 32  # three a try; a TrafficPolicy may allow a hundred tries


class TraceParent(NamedTuple):
    """The context of a caller: numbers as the OpenTelemetry SDK has them."""

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def parse(cls, text: str) -> "TraceParent | None":
        """Read a ``traceparent``; None if it is none, which starts a new trace.

        "If higher version is detected, the implementation SHOULD try to parse it"
        by the fields that are known; version ff is invalid, and so are ids of
        zeros.
        """
        found = _TRACE_PARENT.fullmatch(text)
        if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"] is not None):
            return None
        trace_id, span_id = int(found["trace"], 16), int(found["span"], 16)
        if not trace_id or not span_id:
            return None
        return cls(trace_id, span_id, bool(int(found["flags"], 16) & _SAMPLED))

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{_SAMPLED if self.sampled else 0:02x}"


class Event(NamedTuple):
    """A phase was reached: ``at`` is monotonic seconds, ``endpoint`` the one that was tried."""

    name: str
    at: float
    endpoint: EndpointAddress | None = None


class Trace:
    """The span of one traced connection; ``parent_id`` is 0 where there is none."""

    __slots__ = ("_now", "events", "parent_id", "span_id", "trace_id")

    def __init__(self, *, trace_id: int, span_id: int, parent_id: int, now: Callable[[], float]) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.events: list[Event] = []
        self._now = now

    def reached(self, phase: str, endpoint: EndpointAddress | None = None) -> None:
        """Write down that the connection is there now; of very many only the first ones are kept."""
        if len(self.events) < _MAX_EVENTS:
            self.events.append(Event(phase, self._now(), endpoint))


class FinishedSpan(NamedTuple):
    """All that there is to say about a traced connection; ``*_s`` are seconds since the epoch.

    ``ended_at`` is ``ended_s`` in the monotonic seconds that events are told in.
    """

    trace: Trace
    record_id: str
    is_outbound: bool
    began_s: float
    ended_s: float
    ended_at: float
    source_address: PeerAddress | None
    source: Workload | None
    source_identity: SpiffeId | None
    original_destination: OriginalDestination | None
    service: ServicePort | None
    endpoint: EndpointAddress | None
    destination: Workload | None
    destination_identity: SpiffeId | None
    security: str
    policy: str | None
    audit: str | None
    dry_run: str | None
    fault: str | None
    sent_bytes: int
    received_bytes: int
    connect_ms: float | None
    attempts: int
    close_reason: CloseReason
    response_flag: str
    detail: str


class Tracer:
    """Draws which connections are traced; one trio thread."""

    def __init__(self, *, sample_ratio: float, rng: random.Random, now: Callable[[], float]) -> None:
        """``rng`` makes ids, which are no secrets: a fast one will do.  ``now`` is monotonic seconds."""
        self._ratio = sample_ratio
        self._rng = rng
        self._now = now
        # "Not sampled" has to travel, or the destination would draw a lot of its own.  Nobody ever
        # records a span under these ids, so one pair serves for all.
        self.not_sampled: Final = str(TraceParent(self._id(128), self._id(64), False))

    def begin(self, parent_text: str) -> tuple[Trace | None, str]:
        """Decide about one connection: its trace if it has one, and the context for the next agent.

        ``parent_text`` is what the caller's OPEN said, from a peer that proved who it is; empty if there is none.
        """
        parent = TraceParent.parse(parent_text) if parent_text else None
        if not (parent.sampled if parent is not None else self._rng.random() < self._ratio):
            return None, self.not_sampled
        trace = Trace(
            trace_id=parent.trace_id if parent is not None else self._id(128),
            span_id=self._id(64),
            parent_id=parent.span_id if parent is not None else 0,
            now=self._now,
        )
        return trace, str(TraceParent(trace.trace_id, trace.span_id, True))

    def _id(self, bits: int) -> int:
        return self._rng.getrandbits(bits) or 1  # "all bytes as zero is considered an invalid value"
