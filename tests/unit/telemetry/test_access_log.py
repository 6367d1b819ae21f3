"""One record a connection, whatever ends it; opened and closed always in pairs."""

import gc
import json
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure, RemoteProtocolError
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, PeerAddress, ServicePort, Workload
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.response_flags import RESPONSE_FLAGS, ResponseFlag
from tests.metrics_text import text_of

INTERFACE_FIELDS = {
    "time", "direction", "source_address", "source_workload", "source_identity", "original_destination", "service",
    "endpoint", "destination_workload", "destination_identity", "sent_bytes", "received_bytes", "duration_ms",
    "connect_ms", "attempts", "policy", "close_reason",
}  # fmt: skip


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Bench:
    """An access log with a clock in the test's hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines = Lines()
        self.metrics = Metrics()
        self.log = AccessLog(metrics=self.metrics, node="n1", now=lambda: self.now, wall=lambda: 1_700_000_000.0)

    @property
    def only(self) -> dict[str, Any]:
        [text] = self.lines.texts
        record: dict[str, Any] = json.loads(text)
        return record

    def samples(self, name: str) -> dict[str, float]:
        text = text_of(self.metrics)
        found = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in found}


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    logger = logging.getLogger("ringfence.access")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(bench.lines)
    yield bench
    logger.removeHandler(bench.lines)
    logger.level, logger.propagate = before


def workload(name: str, *, labels: dict[str, str] | None = None) -> Workload:
    return Workload(
        uid=f"uid-{name}",
        name=ObjectName("default", name),
        service_account=name,
        node="n1",
        addresses=("10.0.0.1",),
        identity=SpiffeId.workload("cluster.local", "default", name),
        enrolled=True,
        labels=labels or {},
    )


CART, WEB = workload("cart"), workload("web")
WEB_SERVICE = ServicePort(service=ObjectName("default", "web"), port=80)


def fill(record: ConnectionRecord) -> None:
    record.note(source=CART, source_address=PeerAddress("10.0.0.1", 4444), source_identity=CART.identity)
    record.note(original_destination=OriginalDestination("fd00::1", 80), service=WEB_SERVICE, security="mutual_tls")
    record.note(endpoint=EndpointAddress("10.0.0.2", 8080), destination=WEB, destination_identity=WEB.identity)


def test_a_good_connection_leaves_one_record_with_every_field(bench: Bench) -> None:
    with bench.log.connection("outbound") as record:
        fill(record)
        record.note(policy="default/allow-cart")
        record.attempts = 2
        record.connect_ms = 1.23456
        record.opened()
        record.sent_bytes, record.received_bytes = 300, 70
        bench.now += 0.25

    found = bench.only
    assert found.keys() >= INTERFACE_FIELDS
    assert found["id"] == record.id
    del found["id"]
    assert found == {
        "schema": 1,
        "event": "closed",
        "time": "2023-11-14T22:13:20.000Z",
        "direction": "outbound",
        "source_address": "10.0.0.1:4444",
        "source_workload": "default/cart",
        "source_identity": "spiffe://cluster.local/ns/default/sa/cart",
        "original_destination": "[fd00::1]:80",
        "service": "default/web:80",
        "endpoint": "10.0.0.2:8080",
        "destination_workload": "default/web",
        "destination_identity": "spiffe://cluster.local/ns/default/sa/web",
        "connection_security_policy": "mutual_tls",
        "sent_bytes": 300,
        "received_bytes": 70,
        "duration_ms": 250.0,
        "connect_ms": 1.235,
        "attempts": 2,
        "policy": "default/allow-cart",
        "audit": None,
        "dry_run": None,
        "fault": None,
        "close_reason": "ok",
        "response_flags": "-",
        "detail": "",
        "trace_id": None,
        "span_id": None,
    }


def test_what_nobody_knew_is_null(bench: Bench) -> None:
    with bench.log.connection("inbound"):
        pass

    assert bench.only["source_workload"] is None
    assert bench.only["service"] is None
    assert bench.only["connect_ms"] is None
    assert bench.only["connection_security_policy"] == "none"


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (ConnectionFailure(CloseReason.POLICY_DENIED, "by default/x"), "policy_denied"),
        (RemoteProtocolError("a frame of type 9"), "protocol_error"),
        (ConnectionRefusedError(111, "Connection refused"), "connect_refused"),
        (ConnectionResetError(104, "Connection reset by peer"), "downstream_reset"),
        (OSError(113, "No route to host"), "connect_unreachable"),
        (OSError(24, "Too many open files"), "overloaded"),
        (OSError("no errno"), "connect_failed"),
        (trio.BrokenResourceError("gone"), "downstream_reset"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_expected_failure_is_absorbed_and_recorded_once(bench: Bench, exc: Exception, reason: str) -> None:
    with bench.log.connection("outbound"):
        raise exc

    assert bench.only["close_reason"] == reason
    assert bench.log.open_connections == 0


def test_a_broken_stream_is_recorded_by_the_error_beneath_it(bench: Bench) -> None:
    with bench.log.connection("outbound"):
        raise trio.BrokenResourceError from TimeoutError(110, "Connection timed out")

    assert bench.only["close_reason"] == "connect_timeout"


def test_an_unexpected_exception_is_absorbed_recorded_and_logged_with_its_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.log.connection("inbound") as record:
        raise ZeroDivisionError("a bug")

    assert bench.only["close_reason"] == "internal_error"
    assert bench.only["detail"] == "ZeroDivisionError: a bug"
    [logged] = [r for r in caplog.records if r.name == "ringfence.connection"]
    assert record.id in logged.getMessage()
    assert logged.exc_info is not None


async def test_a_cut_connection_keeps_the_cutters_reason_and_stays_cancelled(bench: Bench) -> None:
    with trio.CancelScope() as scope:
        with bench.log.connection("outbound") as record:
            record.close_because(CloseReason.DRAINED, "SIGTERM")
            scope.cancel()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert (bench.only["close_reason"], bench.only["detail"]) == ("drained", "SIGTERM")


async def test_a_cancelled_connection_without_a_reason_is_an_internal_error(bench: Bench) -> None:
    with trio.CancelScope() as scope:
        with bench.log.connection("outbound"):
            scope.cancel()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert bench.only["close_reason"] == "internal_error"
    assert bench.only["detail"] == "Cancelled, and nobody said why"


def test_the_first_reason_stands_when_the_cut_surfaces_as_an_error(bench: Bench) -> None:
    with bench.log.connection("outbound") as record:
        record.close_because(CloseReason.WORKLOAD_REMOVED)
        raise ConnectionResetError(104, "Connection reset by peer")

    assert bench.only["close_reason"] == "workload_removed"


async def test_of_a_mixed_group_only_the_cancellation_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    with trio.CancelScope() as scope:
        with bench.log.connection("outbound") as record:
            record.close_because(CloseReason.DRAINED)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                scope.cancel()
                await trio.sleep_forever()

    assert scope.cancelled_caught
    assert bench.only["close_reason"] == "drained"
    assert "a bug" in caplog.text


def test_keyboard_interrupt_goes_on_and_still_leaves_a_record(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        with bench.log.connection("outbound"):
            raise KeyboardInterrupt

    assert bench.only["close_reason"] == "internal_error"


def test_control_characters_in_a_detail_are_escaped_and_its_length_is_bounded(bench: Bench) -> None:
    with bench.log.connection("inbound"):
        raise ConnectionFailure(CloseReason.PEER_UNAVAILABLE, "\x1b]0;\n\u202e" + "x" * 5000)

    [text] = bench.lines.texts
    assert text.isascii()
    assert text.isprintable()
    assert len(bench.only["detail"]) == 1000


def test_opened_minus_closed_is_the_number_of_live_connections(bench: Bench) -> None:
    opened, closed = "istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"

    with bench.log.connection("outbound") as live:
        fill(live)
        live.opened()
        live.opened()
        with bench.log.connection("outbound") as failed:
            fill(failed)
            raise ConnectionFailure(CloseReason.CONNECT_REFUSED)

        assert sum(bench.samples(opened).values()) == 2
        assert sum(bench.samples(closed).values()) == 1
        assert [v for k, v in bench.samples(opened).items() if 'response_flags="CONNECT"' in k] == [1]
        assert bench.samples("ringfence_connections_open") == {"ringfence_connections_open": 1}
        raise ConnectionFailure(CloseReason.UPSTREAM_RESET)

    assert sum(bench.samples(opened).values()) == sum(bench.samples(closed).values()) == 2
    assert bench.samples("ringfence_connections_closed_total") == {
        'ringfence_connections_closed_total{close_reason="connect_refused",direction="outbound"}': 1,
        'ringfence_connections_closed_total{close_reason="upstream_reset",direction="outbound"}': 1,
    }


def test_bytes_of_a_live_connection_are_counted_at_each_scrape_and_never_twice(bench: Bench) -> None:
    moved = [0, 0]
    with bench.log.connection("inbound") as record:
        fill(record)
        record.byte_counts = lambda: (moved[0], moved[1])
        record.opened()
        moved[:] = [10, 1]
        assert list(bench.samples("istio_tcp_sent_bytes_total").values()) == [10]
        assert list(bench.samples("istio_tcp_sent_bytes_total").values()) == [10]
        moved[:] = [25, 4]

    assert sum(bench.samples("istio_tcp_sent_bytes_total").values()) == 25
    assert sum(bench.samples("istio_tcp_received_bytes_total").values()) == 4
    assert (bench.only["sent_bytes"], bench.only["received_bytes"]) == (25, 4)


class _Pair:
    """What counts the bytes of a connection, and knows its record by way of those who wait for it."""

    def __init__(self, record: ConnectionRecord) -> None:
        self.record = record

    def counts(self) -> tuple[int, int]:
        return 3, 4


def test_a_record_that_has_ended_does_not_wait_for_the_garbage_collector_together_with_its_pair(bench: Bench) -> None:
    def story() -> "weakref.ref[_Pair]":
        with bench.log.connection("outbound") as record:
            fill(record)
            pair = _Pair(record)
            record.byte_counts = pair.counts
            record.opened()
        return weakref.ref(pair)

    gc.disable()
    try:
        assert story()() is None
    finally:
        gc.enable()
    assert (bench.only["sent_bytes"], bench.only["received_bytes"]) == (3, 4)


def test_of_an_endpoint_that_was_tried_before_nothing_stays(bench: Bench) -> None:
    with bench.log.connection("outbound") as record:
        fill(record)
        record.chose(
            endpoint=EndpointAddress("192.0.2.1", 80), destination=None, destination_identity=None, security="none"
        )

    assert bench.only["endpoint"] == "192.0.2.1:80"
    assert bench.only["destination_workload"] is None
    assert bench.only["destination_identity"] is None
    assert bench.only["connection_security_policy"] == "none"


def test_labels_are_fixed_when_the_connection_is_opened(bench: Bench) -> None:
    with bench.log.connection("inbound") as record:
        fill(record)
        record.opened()
        record.note(source=workload("impostor"))

    [key] = bench.samples("istio_tcp_connections_closed_total")
    assert 'source_workload="cart"' in key
    assert 'reporter="destination"' in key


def test_live_connections_are_described_for_the_operator(bench: Bench) -> None:
    with bench.log.connection("outbound") as record:
        fill(record)
        bench.now += 2
        [row] = bench.log.live()
        assert row["state"] == "opening"
        record.opened()
        [row] = bench.log.live()

    assert row == {
        "id": record.id,
        "direction": "outbound",
        "source": "default/cart",
        "source_identity": "spiffe://cluster.local/ns/default/sa/cart",
        "original_destination": "[fd00::1]:80",
        "service": "default/web:80",
        "endpoint": "10.0.0.2:8080",
        "destination_identity": "spiffe://cluster.local/ns/default/sa/web",
        "age_s": 2.0,
        "sent_bytes": 0,
        "received_bytes": 0,
        "state": "open",
    }
    assert list(bench.log.live()) == []
    assert bench.log.total_connections == 1


def test_every_close_reason_has_a_response_flag_and_every_flag_is_used() -> None:
    assert set(RESPONSE_FLAGS) == set(CloseReason)
    assert set(RESPONSE_FLAGS.values()) == set(ResponseFlag)
    assert [reason for reason, flag in RESPONSE_FLAGS.items() if flag is ResponseFlag.NONE] == [CloseReason.OK]
