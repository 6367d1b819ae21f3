"""Connections that are told many at a time are told as if each had been told by itself."""

import json
import logging
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, PeerAddress, ServicePort, Workload
from node_agent.telemetry.access_log import ACCESS_LOGGER, AccessLog
from node_agent.telemetry.alike import Ending, Likeness
from node_agent.telemetry.archive import find_record
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics
from tests.metrics_text import text_of

_NOW = 1_000.0
_OVERFLOWED = "ringfence_metric_label_sets_overflowed_total"  # a likeness is a look-up more
_NODE = 'a "node" of ünusual name'


class _Lines(logging.Handler):
    """Takes them one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class _ManyLines(_Lines):
    """Takes them many at a time, too."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once: list[int] = []

    def emit_lines(self, texts: Sequence[str]) -> None:
        self.at_once.append(len(texts))
        self.texts.extend(texts)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(ACCESS_LOGGER)
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = []
    yield logger
    logger.level, logger.propagate, logger.handlers[:] = before


class _Told:
    """An access log whose lines are kept."""

    def __init__(self, *, max_label_sets: int = 100, opened_record: bool = False) -> None:
        self.metrics = Metrics()
        self.log = AccessLog(
            metrics=self.metrics,
            node=_NODE,
            run="abc",
            max_label_sets=max_label_sets,
            now=lambda: _NOW,
            wall=lambda: 1_700_000_000.25,
            opened_record=opened_record,
        )


def _workload(name: str) -> Workload:
    return Workload(
        uid=f"uid-{name}",
        name=ObjectName("default", name),
        service_account="app",
        node="n1",
        addresses=("10.0.0.1",),
        identity=SpiffeId.workload("cluster.local", "default", "app"),
        enrolled=True,
        labels={},
    )


def _note(ip: str, port: int, *records: ConnectionRecord) -> bool:
    source, destination = _workload("cart"), _workload(f'web "{ip}"')
    for record in records:
        record.attempts = 1
        record.note(
            source=source,
            source_address=PeerAddress(ip, port),
            source_identity=source.identity,
            original_destination=OriginalDestination("10.96.0.1", 80),
            destination=destination,
            policy="default/100 % of it",
        )
    records[0].note(service=ServicePort(service=ObjectName("default", "web"), port=80), endpoint=EndpointAddress(ip, 1))
    return True


def _likeness(log: AccessLog, ip: str) -> Likeness:
    found = log.alike(lambda outbound, inbound: _note(ip, 7, outbound, inbound))
    assert found is not None
    return found


_End = tuple[str, int, float, float, float, int, int]
_ENDS = st.lists(
    st.tuples(
        st.sampled_from(["10.0.0.1", "fd00::1"]),
        st.integers(1, 65_535),
        st.integers(1, 999).map(lambda ms: _NOW - ms / 1000),
        st.integers(1, 100_000_000).map(lambda us: us / 1000 + 0.0001),  # not at the bound of a bucket
        st.integers(0, 1_000_000).map(lambda us: us / 1000 + 0.0001),
        st.integers(0, 2**60),
        st.integers(0, 2**60),
    ),
    min_size=1,
    max_size=80,
)


def _one_by_one(told: _Told, ends: list[_End]) -> None:
    for ip, port, ended_at, duration_ms, connect_ms, sent_bytes, received_bytes in ends:
        records = [
            told.log.unattended("outbound", began_at=ended_at - duration_ms / 1000),
            told.log.unattended("inbound", began_at=ended_at - duration_ms / 1000),
        ]
        _note(ip, port, *records)
        for record in records:
            record.connect_ms = connect_ms
            record.opened()
            record.sent_bytes, record.received_bytes = sent_bytes, received_bytes
            record.close_because(CloseReason.OK)
            told.log.end(record, ended_at=ended_at)


def _many(told: _Told, ends: list[_End]) -> None:
    by_ip = {ip: _likeness(told.log, ip) for ip in dict.fromkeys(each[0] for each in ends)}
    told.log.end_alike([Ending(by_ip[end[0]], *end[1:]) for end in ends])


def _samples(told: _Told) -> dict[str, float]:
    lines = [line for line in text_of(told.metrics).splitlines() if not line.startswith(("#", _OVERFLOWED))]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.usefixtures("logger")
@pytest.mark.parametrize("max_label_sets", [100, 1])
@settings(max_examples=40, deadline=None)
@given(ends=_ENDS)
def test_records_and_counters_are_those_of_each_by_itself(max_label_sets: int, ends: list[_End]) -> None:
    lines = _Lines()
    logging.getLogger(ACCESS_LOGGER).handlers[:] = [lines]
    single, many = _Told(max_label_sets=max_label_sets), _Told(max_label_sets=max_label_sets)
    _one_by_one(single, ends)
    expected = lines.texts[:]
    lines.texts.clear()

    _many(many, ends)

    assert lines.texts == expected
    assert many.log.total_connections == single.log.total_connections
    assert many.log.open_connections == 0
    assert list(many.log.recent()) == list(single.log.recent())
    assert _samples(many) == pytest.approx(_samples(single))
    texts = [json.loads(text) for text in expected]
    for record in (texts[0], texts[-1]):
        assert find_record(many.log.archive(), record["id"]) == record


def test_those_who_take_many_get_them_at_once_and_those_who_do_not_one_by_one(logger: logging.Logger) -> None:
    ends: list[_End] = [("10.0.0.1", 1000 + number, _NOW, 1.0, 0.5, 1, 2) for number in range(100)]
    together = _ManyLines()
    logger.handlers[:] = [logging.NullHandler(), together]
    _many(_Told(), ends)
    assert together.at_once == [200]

    beside, alone = _ManyLines(), _Lines()
    logger.handlers[:] = [beside, alone]
    _many(_Told(), ends)
    assert beside.at_once == []
    assert beside.texts == alone.texts == together.texts


def test_what_leaves_a_record_when_it_opens_has_no_likeness() -> None:
    assert _Told(opened_record=True).log.alike(lambda *records: _note("10.0.0.1", 1, *records)) is None


def test_what_is_told_of_each_by_itself_has_no_likeness() -> None:
    assert _Told().log.alike(lambda *_records: False) is None


def test_the_archive_finds_what_was_told_together_and_forgets_the_oldest(logger: logging.Logger) -> None:
    lines = _ManyLines()
    logger.handlers[:] = [lines]
    told = _Told()
    for _ in range(30):
        _many(told, [("fd00::1", 1000 + number, _NOW, 1.0, 0.5, 1, 2) for number in range(128)])
    ids = [json.loads(text)["id"] for text in (lines.texts[0], lines.texts[-4_000], lines.texts[-1])]
    found = [find_record(told.log.archive(), each) for each in ids]
    assert found == [None, json.loads(lines.texts[-4_000]), json.loads(lines.texts[-1])]
