"""An OpenTelemetry collector for tests: takes OTLP over HTTP and keeps it.

What arrives is read with OpenTelemetry's own protobuf classes, which the
exporter under test does not share with us: a collector reads the same bytes.
"""

import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

TRACES: Final = "/v1/traces"
LOGS: Final = "/v1/logs"


@dataclass(frozen=True, kw_only=True)
class Span:
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    status_text: str
    attributes: Mapping[str, Any]
    events: list[tuple[str, int, Mapping[str, Any]]]
    resource: Mapping[str, Any]
    scope: str


@dataclass(frozen=True, kw_only=True)
class Log:
    trace_id: str
    span_id: str
    time_ns: int
    severity: str
    event_name: str
    body: Mapping[str, Any]
    resource: Mapping[str, Any]


@dataclass
class Answer:
    """How requests are answered from now on; ``hold``: not before it is set."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hold: threading.Event | None = None


class OtlpCollector:
    """Serves ``listener``, which it owns, in threads until ``close``."""

    def __init__(self, listener: socket.socket | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        made = listener or socket.create_server(("127.0.0.1", 0))
        self.spans: list[Span] = []
        self.logs: list[Log] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections: list[socket.socket] = []
        self.requests = 0
        self.answer = Answer()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                collector.connections.append(self.connection)

            def do_POST(self) -> None:
                collector.take(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.address: tuple[str, int] = made.getsockname()[:2]
        self._server = ThreadingHTTPServer(self.address, Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.socket.close()
        self._server.socket = made if tls is None else tls.wrap_socket(made, server_side=True)
        self._server.server_name, self._server.server_port = self.address
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and hang up."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.requests += 1
        self.headers.append({key.lower(): value for key, value in handler.headers.items()})
        answer = self.answer
        if answer.hold is not None:
            answer.hold.wait()
        reply = answer.body
        if answer.status == 200:
            assert handler.headers["Content-Type"] == "application/x-protobuf"
            if handler.path == TRACES:
                self.spans += _spans(data)
                reply = reply or ExportTraceServiceResponse().SerializeToString()
            else:
                assert handler.path == LOGS
                self.logs += _logs(data)
                reply = reply or ExportLogsServiceResponse().SerializeToString()
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply or b"")))
        handler.end_headers()
        try:
            handler.wfile.write(reply or b"")
        except OSError:
            handler.close_connection = True


def _spans(data: bytes) -> list[Span]:
    return [
        Span(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            name=span.name,
            kind=span.kind,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            status=span.status.code,
            status_text=span.status.message,
            attributes=_mapping(span.attributes),
            events=[(event.name, event.time_unix_nano, _mapping(event.attributes)) for event in span.events],
            resource=_mapping(of_resource.resource.attributes),
            scope=of_scope.scope.name,
        )
        for of_resource in ExportTraceServiceRequest.FromString(data).resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _logs(data: bytes) -> list[Log]:
    return [
        Log(
            trace_id=log.trace_id.hex(),
            span_id=log.span_id.hex(),
            time_ns=log.time_unix_nano,
            severity=log.severity_text,
            event_name=log.event_name,
            body=_value(log.body),
            resource=_mapping(of_resource.resource.attributes),
        )
        for of_resource in ExportLogsServiceRequest.FromString(data).resource_logs
        for of_scope in of_resource.scope_logs
        for log in of_scope.log_records
    ]


def _mapping(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        assert isinstance(pair, KeyValue)
        assert pair.key not in found, "an attribute is there once"
        found[pair.key] = _value(pair.value)
    return found


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "kvlist_value":
        return _mapping(value.kvlist_value.values)
    assert kind in {"string_value", "int_value", "double_value", "bool_value"}, kind
    return getattr(value, kind)
