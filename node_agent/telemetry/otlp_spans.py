"""Spans of connections for an OpenTelemetry collector (docs/observability.md, Traces).

Attributes follow https://opentelemetry.io/docs/specs/semconv/registry/attributes/
(network, source, destination, server, error); ``ringfence.*`` are ours.

The SDK's ReadableSpan is built here, in the exporting thread, and not by its
Tracer in the data path: a span is made once, when the connection has ended, and
its ids were drawn by tracing.py.
"""

from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from node_agent.errors import CloseReason
from node_agent.export_config import Collector
from node_agent.telemetry.otlp_collector import OtlpSender, Source, plain
from node_agent.telemetry.tracing import FinishedSpan
from node_agent.telemetry.traffic import owner_name

_US_A_SECOND: Final = 1_000_000
_NS_A_US: Final = 1_000
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

Attributes = dict[str, str | int | float]


def span_sender(collector: Collector, source: Source) -> OtlpSender[FinishedSpan]:
    """For spans.  Raises ConfigError."""
    return OtlpSender(
        collector,
        source,
        exporter=OTLPSpanExporter,
        success=SpanExportResult.SUCCESS,
        readable=readable_span,
    )


def readable_span(span: FinishedSpan, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """The SDK's form of a span."""
    trace = span.trace
    parent = None
    if trace.parent_id:
        parent = SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=_SAMPLED)
    failed = span.close_reason is not CloseReason.OK
    return ReadableSpan(
        name=_name(span),
        context=SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=_SAMPLED),
        parent=parent,
        resource=resource,
        attributes=attributes_of(span),
        events=[
            Event(
                name,
                attributes={"ringfence.endpoint": str(endpoint)} if endpoint is not None else {},
                timestamp=_nanoseconds(span.ended_s - (span.ended_at - at)),
            )
            for name, at, endpoint in trace.events
        ],
        kind=SpanKind.CLIENT if span.is_outbound else SpanKind.SERVER,
        status=Status(StatusCode.ERROR, plain(span.detail)) if failed else Status(StatusCode.UNSET),
        start_time=_nanoseconds(span.began_s),
        end_time=_nanoseconds(span.ended_s),
        instrumentation_scope=scope,
    )


def _name(span: FinishedSpan) -> str:
    """Few different ones: a service, or what runs a pod, never an address."""
    if span.is_outbound:
        return plain(f"connect {span.service}") if span.service is not None else "connect"
    if span.destination is None:
        return "accept"
    return plain(f"accept {span.destination.name.namespace}/{owner_name(span.destination)}")


def attributes_of(span: FinishedSpan) -> Attributes:
    """What is known of the connection; what is not is left out."""
    served_at = span.endpoint if span.is_outbound else span.original_destination
    peer = span.endpoint if span.is_outbound else span.source_address
    found: dict[str, object] = {
        "network.transport": "tcp",
        "network.type": None if peer is None else "ipv6" if ":" in peer.ip else "ipv4",
        "network.peer.address": peer and peer.ip,
        "source.address": span.source_address and span.source_address.ip,
        "source.port": span.source_address and span.source_address.port,
        "destination.address": served_at and served_at.ip,
        "destination.port": served_at and served_at.port,
        "server.address": span.original_destination and span.original_destination.ip,
        "server.port": span.original_destination and span.original_destination.port,
        "error.type": None if span.close_reason is CloseReason.OK else span.close_reason,
        "ringfence.record.id": span.record_id,
        "ringfence.source.workload": span.source and span.source.name,
        "ringfence.source.identity": span.source_identity,
        "ringfence.destination.workload": span.destination and span.destination.name,
        "ringfence.destination.identity": span.destination_identity,
        "ringfence.service": span.service,
        "ringfence.connection_security_policy": span.security,
        "ringfence.policy": span.policy,
        "ringfence.audit": span.audit,
        "ringfence.dry_run": span.dry_run,
        "ringfence.fault": span.fault,
        "ringfence.sent_bytes": span.sent_bytes,
        "ringfence.received_bytes": span.received_bytes,
        "ringfence.connect_ms": span.connect_ms,
        "ringfence.attempts": span.attempts,
        "ringfence.close_reason": span.close_reason,
        "ringfence.response_flags": span.response_flag,
    }
    return {
        key: value if type(value) in {int, float} else plain(str(value))  # type: ignore[misc]
        for key, value in found.items()
        if value is not None
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _US_A_SECOND) * _NS_A_US  # a float of today has a quarter of a microsecond
