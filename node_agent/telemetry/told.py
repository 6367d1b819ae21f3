"""What is told of a connection: its access record, and its span if it is traced.

Sans-I/O.
"""

import functools
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Final

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, ServicePort
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.response_flags import RESPONSE_FLAGS
from node_agent.telemetry.tracing import FinishedSpan
from node_agent.telemetry.traffic import SecurityPolicy

SCHEMA: Final = 1
"""Version of the access record: another one is for fields that go or change their meaning, not for new ones."""
_MAX_DETAIL_CHARS: Final = 1_000
_TEXTS: Final = 256  # of up to about a kilobyte each


def access_record(record: ConnectionRecord, reason: CloseReason | None, *, now: float, at_s: float) -> str:
    """The access record (docs/access-records.md) as JSON.  ``at_s`` is now, in seconds since the epoch.

    Without a ``reason`` it is that of a connection that has opened and goes on.

    Written out by hand because this runs once a connection: a dict and a
    general encoder take twice as long.
    """
    event = "opened" if reason is None else "closed"
    return (
        f'{{"schema":{SCHEMA},"event":"{event}","time":"{timestamp(at_s)}"'
        f',"id":{json_text(record.id)},"direction":"{record.direction}"'
        f',"source_address":{json_text(record.source_address)}{parties(record)}'
        f',"sent_bytes":{record.sent_bytes},"received_bytes":{record.received_bytes}'
        f"{durations((now - record.began_at) * 1000, record.connect_ms)}{outcome(record, reason)}"
    )


def parties(record: ConnectionRecord) -> str:
    """The fields between the client's address and the bytes: who talks to whom."""
    source, destination = record.source, record.destination
    return _parties(
        None if source is None else source.name,
        record.source_identity,
        record.original_destination,
        record.service,
        record.endpoint,
        None if destination is None else destination.name,
        record.destination_identity,
        record.security,
    )


@functools.lru_cache(maxsize=_TEXTS)  # the same ones talk to each other again and again
def _parties(  # noqa: PLR0917  # keywords would make the look into the cache dearer
    source: ObjectName | None,
    source_identity: SpiffeId | None,
    original_destination: OriginalDestination | None,
    service: ServicePort | None,
    endpoint: EndpointAddress | None,
    destination: ObjectName | None,
    destination_identity: SpiffeId | None,
    security: SecurityPolicy,
) -> str:
    return (
        f',"source_workload":{json_text(source)}'
        f',"source_identity":{json_text(source_identity)}'
        f',"original_destination":{json_text(original_destination)}'
        f',"service":{json_text(service)},"endpoint":{json_text(endpoint)}'
        f',"destination_workload":{json_text(destination)}'
        f',"destination_identity":{json_text(destination_identity)}'
        f',"connection_security_policy":"{security}"'
    )


def durations(duration_ms: float, connect_ms: float | None) -> str:
    """The fields after the bytes."""
    connect = "null" if connect_ms is None else f"{connect_ms:.3f}"
    return f',"duration_ms":{duration_ms:.3f},"connect_ms":{connect}'


def outcome(record: ConnectionRecord, reason: CloseReason | None) -> str:
    """The rest, to the end of the line."""
    detail = record.detail[:_MAX_DETAIL_CHARS]
    how = _how_it_went(record.attempts, record.policy, record.audit, record.dry_run, record.fault, reason, detail)
    if record.trace is None:
        return f'{how},"trace_id":null,"span_id":null}}'
    return f'{how},"trace_id":"{record.trace.trace_id:032x}","span_id":"{record.trace.span_id:016x}"}}'


@functools.lru_cache(maxsize=_TEXTS)
def _how_it_went(  # noqa: PLR0917  # as above
    attempts: int,
    policy: str | None,
    audit: str | None,
    dry_run: str | None,
    fault: str | None,
    reason: CloseReason | None,
    detail: str,
) -> str:
    flag = None if reason is None else RESPONSE_FLAGS[reason]
    return (
        f',"attempts":{attempts}'
        f',"policy":{json_text(policy)},"audit":{json_text(audit)},"dry_run":{json_text(dry_run)}'
        f',"fault":{json_text(fault)},"close_reason":{json_text(reason)}'
        f',"response_flags":{json_text(flag)},"detail":{json_text(detail)}'
    )


def finished_span(record: ConnectionRecord, reason: CloseReason, *, now: float, at_s: float) -> FinishedSpan:
    """The span of a traced connection that ended now; ``at_s`` is that in seconds since the epoch."""
    assert record.trace is not None
    return FinishedSpan(
        trace=record.trace,
        record_id=record.id,
        is_outbound=record.direction == "outbound",
        began_s=at_s - (now - record.began_at),
        ended_s=at_s,
        ended_at=now,
        source_address=record.source_address,
        source=record.source,
        source_identity=record.source_identity,
        original_destination=record.original_destination,
        service=record.service,
        endpoint=record.endpoint,
        destination=record.destination,
        destination_identity=record.destination_identity,
        security=record.security,
        policy=record.policy,
        audit=record.audit,
        dry_run=record.dry_run,
        fault=record.fault,
        sent_bytes=record.sent_bytes,
        received_bytes=record.received_bytes,
        connect_ms=record.connect_ms,
        attempts=record.attempts,
        close_reason=reason,
        response_flag=RESPONSE_FLAGS[reason],
        detail=record.detail[:_MAX_DETAIL_CHARS],
    )


def json_text(value: object) -> str:
    """``value`` as JSON text: ASCII only, so that control characters are escaped; None as null."""
    return "null" if value is None else encode_basestring_ascii(str(value))


def timestamp(at_s: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    second, millisecond = divmod(int(at_s * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@functools.lru_cache(maxsize=2)  # many connections end in the same second
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
