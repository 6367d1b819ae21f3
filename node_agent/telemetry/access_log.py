"""The end of every connection: exactly one access record, and the counters.

``with access_log.connection("outbound") as record:`` is the one place that
absorbs the failure of a connection.  What leaves the block decides the close
reason, unless somebody has said why before (*whoever cuts a connection writes
the reason first, then cancels*):

    leaves the block      close reason                                  the exception
    nothing               ok
    ConnectionFailure     its reason                                    absorbed
    OSError, broken pipe  by the kind of error                          absorbed
    any other Exception   internal_error, with a traceback in the log   absorbed
    Cancelled and kin     what the cutter set; else internal_error      goes on

Of an exception group only the part that is not an ``Exception`` goes on.
"""

import errno
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import trio

from node_agent.config import MetricsSection
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.telemetry.alike import RECORDS_EACH, AlikeRecords, Ending, Likeness, count, likeness
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.failures import Failures
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.outlet import RecordOutlet
from node_agent.telemetry.response_flags import RESPONSE_FLAGS
from node_agent.telemetry.told import access_record, finished_span
from node_agent.telemetry.tracing import FinishedSpan, Tracer
from node_agent.telemetry.traffic import DIRECTIONS, Direction, Traffic

ACCESS_LOGGER: Final = "ringfence.access"
_RECORDS_A_STEP: Final = 256  # a quarter of a millisecond

_LOG = logging.getLogger("ringfence.connection")

# The stages translate what they expect; this is for what slips through.
_BY_ERRNO: Final[Mapping[int | None, CloseReason]] = {
    errno.ECONNREFUSED: CloseReason.CONNECT_REFUSED,
    errno.ETIMEDOUT: CloseReason.CONNECT_TIMEOUT,
    errno.EHOSTUNREACH: CloseReason.CONNECT_UNREACHABLE,
    errno.ENETUNREACH: CloseReason.CONNECT_UNREACHABLE,
    errno.EMFILE: CloseReason.OVERLOADED,
    errno.ENFILE: CloseReason.OVERLOADED,
    errno.ENOBUFS: CloseReason.OVERLOADED,
    errno.ENOMEM: CloseReason.OVERLOADED,
    errno.ECONNRESET: CloseReason.DOWNSTREAM_RESET,
    errno.EPIPE: CloseReason.DOWNSTREAM_RESET,
    errno.ENOTCONN: CloseReason.DOWNSTREAM_RESET,
}


def new_run() -> str:
    """What tells one start of the agent from another in the ids of records: six hexadecimal digits."""
    return secrets.token_hex(3)


class AccessLog:
    """Hands out one record a connection and knows the live ones.

    Everything runs on the trio thread.  ``now`` is monotonic seconds, ``wall``
    seconds since the epoch: the record's timestamp.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        node: str,
        run: str | None = None,
        max_label_sets: int = MetricsSection().max_label_sets,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        tracer: Tracer | None = None,
        on_span: Callable[[FinishedSpan], None] | None = None,
        opened_record: bool = False,
    ) -> None:
        """``on_span`` gets what ``tracer`` traces; ``opened_record``: each connection also leaves one when it opens."""
        self._traffic = Traffic(metrics, max_label_sets=max_label_sets)
        self._now = now
        self._wall = wall
        self._tracer = tracer
        self._on_span = on_span
        self._on_opened = self._write_opened if opened_record else None
        self._id_prefix = f"{node}-{run or new_run()}-"
        self._total = 0
        self._live: dict[str, ConnectionRecord] = {}
        self._closed: dict[tuple[Direction, CloseReason], int] = {}
        self._outlet = RecordOutlet(logging.getLogger(ACCESS_LOGGER))
        self._failures = Failures(metrics, max_label_sets=max_label_sets)
        metrics.before_scrape(self._count_live_bytes)
        metrics.gauge("ringfence_connections_open", "Connections that the agent holds now.", lambda: len(self._live))
        metrics.counter(
            "ringfence_connections_closed_total",
            "Connections that ended, by why.",
            self._read_closed,
            labels=("direction", "close_reason"),
        )

    @property
    def open_connections(self) -> int:
        """Connections inside their ``with`` block now."""
        return len(self._live)

    @property
    def total_connections(self) -> int:
        """Connections since the agent started."""
        return self._total

    def now(self) -> float:
        """The time that records are measured in, for ``began_at``."""
        return self._now()

    def connection(
        self, direction: Direction, *, began_at: float | None = None, trace_parent: str = ""
    ) -> "_Connection":
        """A context manager, to be entered at once and only once, that gives the :class:`ConnectionRecord`.

        ``began_at`` is when the connection was accepted, if that is not now;
        ``trace_parent`` what the agent before this one said of its trace.
        """
        record = self._record(direction, began_at=began_at)
        if self._tracer is not None:
            record.trace, record.trace_parent = self._tracer.begin(trace_parent)
        return _Connection(self, record)

    def unattended(self, direction: Direction, *, began_at: float) -> ConnectionRecord:
        """A live record that no block holds: whoever asks calls ``end`` once, with its close reason set."""
        record = self._record(direction, began_at=began_at)
        self.begin(record)
        return record

    def _record(self, direction: Direction, *, began_at: float | None) -> ConnectionRecord:
        self._total += 1
        record = ConnectionRecord(
            traffic=self._traffic,
            record_id=f"{self._id_prefix}{self._total}",
            direction=direction,
            now=self._now() if began_at is None else began_at,
        )
        record.on_opened = self._on_opened
        return record

    def live(self) -> Iterator[dict[str, object]]:
        """The live connections as the admin socket shows them (docs/cli.md)."""
        now = self._now()
        for record in list(self._live.values()):
            yield record.describe(now)

    def recent(self) -> Iterator[Mapping[str, Any]]:
        """The access records of the connections that ended last, newest first."""
        return self._outlet.recent()

    def archive(self) -> Iterator[bytes]:
        """The access records of some thousand connections that ended, for ``archive.find_record``."""
        return self._outlet.archive()

    def begin(self, record: ConnectionRecord) -> None:
        """Make ``record`` one of the live ones."""
        self._live[record.id] = record

    def end(self, record: ConnectionRecord, *, ended_at: float | None = None) -> None:
        """Count ``record``, whose close reason is set, and write its line; ``ended_at`` is when, if that is not now."""
        del self._live[record.id]
        reason = record.close_reason or CloseReason.OK
        self._count_closed(record.direction, reason, 1)
        now, at_s = self._now(), self._wall()
        if ended_at is not None:
            now, at_s = ended_at, at_s - (now - ended_at)
        record.ended(RESPONSE_FLAGS[reason], now=now)
        if reason is not CloseReason.OK:
            self._failures.count(record, reason)
        if self._outlet.is_open:
            self._outlet.keep(access_record(record, reason, now=now, at_s=at_s), reason)
        if record.trace is not None and self._on_span is not None:
            self._on_span(finished_span(record, reason, now=now, at_s=at_s))

    def _count_closed(self, direction: Direction, reason: CloseReason, connections: int) -> None:
        closed = (direction, reason)
        self._closed[closed] = self._closed.get(closed, 0) + connections

    def _read_closed(self) -> Mapping[tuple[str, ...], float]:
        return {(direction, reason.value): count for (direction, reason), count in self._closed.items()}

    def alike(self, note: Callable[[ConnectionRecord, ConnectionRecord], bool]) -> Likeness | None:
        """What the records of connections have in common that ``note`` writes into the two of any of them.

        None if ``note`` returns False, or if each connection leaves more than what it leaves at its end.
        """
        if self._on_opened is not None:
            return None
        outbound, inbound = (
            ConnectionRecord(traffic=self._traffic, record_id="", direction=direction, now=0.0)
            for direction in DIRECTIONS
        )
        return likeness(outbound, inbound, self._traffic) if note(outbound, inbound) else None

    def end_alike(self, endings: Sequence[Ending]) -> None:
        """Count connections that nobody holds and that ended well, and write their records; ``endings`` become ours."""
        records = AlikeRecords(
            endings, id_prefix=self._id_prefix, first=self._total + 1, epoch_s=self._wall() - self._now()
        )
        total = RECORDS_EACH * len(endings)
        self._total += total
        for direction in DIRECTIONS:
            self._count_closed(direction, CloseReason.OK, len(endings))
        count(endings, self._traffic)
        if self._outlet.is_open:
            self._outlet.keep_all(records.texts(0, total), records.texts)

    def _write_opened(self, record: ConnectionRecord) -> None:
        if self._outlet.is_open:
            self._outlet.write(access_record(record, None, now=self._now(), at_s=self._wall()))

    def _count_live_bytes(self) -> Iterator[None]:
        for number, record in enumerate(list(self._live.values()), 1):
            if record.id in self._live:  # else its end has counted them
                record.count_bytes()
            if not number % _RECORDS_A_STEP:
                yield


class _Connection:
    """The ``with`` block of one connection: see the module's docstring."""

    __slots__ = ("_log", "_record")

    def __init__(self, log: AccessLog, record: ConnectionRecord) -> None:
        self._log = log
        self._record = record

    def __enter__(self) -> ConnectionRecord:
        self._log.begin(self._record)
        return self._record

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            if exc is None:
                return False
            goes_on = _explain(self._record, exc)
        finally:
            self._log.end(self._record)
        if goes_on is None or goes_on is exc:
            return goes_on is None
        raise goes_on


def _explain(record: ConnectionRecord, exc: BaseException) -> BaseException | None:
    """Set the close reason that ``exc`` means; return what must not be absorbed."""
    match exc:
        case ConnectionFailure():
            record.failed(exc)
            return None
        case OSError():
            record.close_because(_BY_ERRNO.get(exc.errno, CloseReason.CONNECT_FAILED), _describe(exc))
            return None
        case trio.BrokenResourceError() if isinstance(exc.__cause__, OSError):
            return _explain(record, exc.__cause__)
        case trio.BrokenResourceError():
            record.close_because(CloseReason.DOWNSTREAM_RESET, _describe(exc))
            return None
        case _:
            pass
    faults, goes_on = _split(exc)
    if faults is not None:
        _LOG.error("connection %s ended by an unexpected error", record.id, exc_info=faults)
        record.close_because(CloseReason.INTERNAL_ERROR, _describe(faults))
    else:
        record.close_because(CloseReason.INTERNAL_ERROR, f"{type(exc).__name__}, and nobody said why")
    return goes_on


def _split(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """``(the faults, what is not ours to absorb)``: Cancelled, KeyboardInterrupt and the like."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(Exception)
    return (exc, None) if isinstance(exc, Exception) else (None, exc)


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
