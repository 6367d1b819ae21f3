"""What leaves the agent besides its two streams: access records to a file or a collector, spans to a collector.

Opened once, at the start, by the process that carries connections; what is
configured and can not be opened stops the agent.  All of it is written by
threads from bounded queues.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node_agent import __version__
from node_agent.config import Config
from node_agent.errors import ConfigError
from node_agent.export_config import Collector, Sink, record_collector, trace_collector
from node_agent.telemetry.access_log import ACCESS_LOGGER
from node_agent.telemetry.line_writer import LineWriter
from node_agent.telemetry.logs import Logging, record_handler
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.record_file import RecordFile
from node_agent.telemetry.tracing import FinishedSpan

if TYPE_CHECKING:
    from node_agent.telemetry.otlp_collector import Source
    from node_agent.telemetry.otlp_queue import OtlpQueue

_LAST_WORDS_S: Final = (
    1.5  # for a collector, when the agent goes: less than what a worker is given (workers/process.py)
)
_PACKAGES: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http", "requests")


class Exports:
    """``spans`` takes the spans, if there is a collector for them."""

    def __init__(self, config: Config, logs: Logging, *, worker: int | None = None) -> None:
        """Open what ``config`` names, and add it to ``logs``; raises ConfigError."""
        self.spans: OtlpQueue[FinishedSpan] | None = None
        self._records: OtlpQueue[str] | None = None
        access = logging.getLogger(ACCESS_LOGGER)
        if (file := _record_file(config)) is not None:
            writer = LineWriter(file, name="access")
            logs.add("file", writer)
            access.addHandler(record_handler(writer))
        spans, records = trace_collector(config.tracing), record_collector(config.access_log, config.tracing)
        if spans is not None or records is not None:
            self._open_collectors(spans, records, _source(config, worker), access)

    def _open_collectors(
        self, spans: Collector | None, records: Collector | None, source: "Source", access: logging.Logger
    ) -> None:
        from node_agent.telemetry.otlp_queue import OtlpQueue  # noqa: PLC0415 - costs memory, and is off by default

        if records is not None:
            from node_agent.telemetry.otlp_records import RecordHandler, record_sender  # noqa: PLC0415

            sender_of_records = record_sender(records, source)
            self._records = OtlpQueue(
                what=f"access records to {records.url}",
                send=sender_of_records.send,
                abort=sender_of_records.abort,
                name="otlp-records",
            )
            access.addHandler(RecordHandler(self._records))
        if spans is not None:
            from node_agent.telemetry.otlp_spans import span_sender  # noqa: PLC0415

            sender_of_spans = span_sender(spans, source)
            self.spans = OtlpQueue(
                what=f"spans to {spans.url}", send=sender_of_spans.send, abort=sender_of_spans.abort, name="otlp-spans"
            )

    def register(self, metrics: Metrics) -> None:
        """Show what arrived and what was dropped."""
        if (spans := self.spans) is not None:
            metrics.counter(
                "ringfence_spans_exported_total", "Spans that the collector has taken.", lambda: spans.exported
            )
            metrics.counter(
                "ringfence_spans_dropped_total",
                "Spans dropped because the collector was down, slow, or did not want them.",
                lambda: spans.dropped,
            )
        if (records := self._records) is not None:
            metrics.counter(
                "ringfence_otlp_records_exported_total",
                "Access records that the collector has taken.",
                lambda: records.exported,
            )
            metrics.counter(
                "ringfence_otlp_records_dropped_total",
                "Access records dropped because the collector was down, slow, or did not want them.",
                lambda: records.dropped,
            )

    def problems(self) -> list[str]:
        """What collectors do not take now, and why; for operators."""
        return [queue.problem for queue in (self._records, self.spans) if queue is not None and queue.problem]

    def close(self) -> None:
        """Send what is queued, for a moment; files are closed by ``Logging``."""
        for queue in (self._records, self.spans):
            if queue is not None:
                queue.close(_LAST_WORDS_S / 2)


def check_exports(config: Config) -> None:
    """For a process that carries nothing: whether those that do will be able to open it all; raises ConfigError."""
    if (file := _record_file(config)) is not None:
        file.close()
    if trace_collector(config.tracing) is not None or record_collector(config.access_log, config.tracing) is not None:
        _require_packages()


def _record_file(config: Config) -> RecordFile | None:
    wanted = config.access_log
    if Sink.FILE not in wanted.sinks:
        return None
    assert isinstance(wanted.file, Path)
    try:
        return RecordFile(wanted.file, rotate_bytes=wanted.rotate_bytes, keep_files=wanted.keep_files)
    except OSError as error:
        raise ConfigError(
            f"[access_log] file = {str(wanted.file)!r}: can not be opened: {error.strerror}; "
            "it has to be a regular file, or none yet, in a directory that is there"
        ) from error


def _source(config: Config, worker: int | None) -> "Source":
    _require_packages()
    from node_agent.telemetry.otlp_collector import Source  # noqa: PLC0415

    return Source(
        service_name=config.tracing.service_name,
        version=__version__,
        node=config.agent.node,
        trust_domain=config.agent.trust_domain,
        worker=worker,
    )


def _require_packages() -> None:
    """Raises ConfigError; does not import them."""
    for name in _PACKAGES:
        try:
            found = find_spec(name) is not None
        except ModuleNotFoundError:  # not even its parent
            found = False
        if not found:
            raise ConfigError(
                f'[tracing] endpoint, or the sink "otlp" of [access_log]: the Python package {name.split(".")[0]} '
                "is not installed; install ringfence[otlp], or remove the key"
            )
