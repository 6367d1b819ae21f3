"""Access records as log records of an OpenTelemetry collector (docs/access-records.md, Where they go)."""

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from node_agent.errors import CloseReason
from node_agent.export_config import Collector
from node_agent.telemetry.otlp_collector import OtlpSender, Source, plain
from node_agent.telemetry.otlp_queue import OtlpQueue

_NS_A_MICROSECOND: Final = 1000
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


def record_sender(collector: Collector, source: Source) -> OtlpSender[str]:
    """For access records, which it gets as JSON.  Raises ConfigError."""
    return OtlpSender(
        collector,
        source,
        exporter=OTLPLogExporter,
        success=LogRecordExportResult.SUCCESS,
        readable=lambda text, resource, scope: readable_record(json.loads(text), resource, scope),
    )


def readable_record(record: dict[str, Any], resource: Resource, scope: InstrumentationScope) -> ReadableLogRecord:
    """The SDK's form of an access record."""
    at_ns = _nanoseconds(record["time"])
    failed = record["close_reason"] not in {None, CloseReason.OK}
    return ReadableLogRecord(
        log_record=LogRecord(
            timestamp=at_ns,
            observed_timestamp=at_ns,
            context=_context(record["trace_id"], record["span_id"]),
            severity_text="WARN" if failed else "INFO",
            severity_number=SeverityNumber.WARN if failed else SeverityNumber.INFO,
            body={key: plain(value) if isinstance(value, str) else value for key, value in _known(record).items()},
            attributes={},
            event_name=f"ringfence.connection.{record['event']}",
        ),
        resource=resource,
        instrumentation_scope=scope,
    )


class RecordHandler(logging.Handler):
    """Takes what is logged as ``ringfence.access``; the thread of ``queue`` does the rest."""

    def __init__(self, queue: OtlpQueue[str]) -> None:
        super().__init__()
        self._queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        self._queue.put(record.getMessage())

    def emit_lines(self, texts: Sequence[str]) -> None:
        """Queue many (outlet.py)."""
        for text in texts:
            self._queue.put(text)


def _known(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def _context(trace_id: str | None, span_id: str | None) -> Context:
    if trace_id is None or span_id is None:
        return Context()
    here = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)
    return set_span_in_context(NonRecordingSpan(here), Context())


def _nanoseconds(time: str) -> int:
    at = datetime.fromisoformat(time)
    return (int(at.timestamp()) * 1_000_000 + at.microsecond) * _NS_A_MICROSECOND
