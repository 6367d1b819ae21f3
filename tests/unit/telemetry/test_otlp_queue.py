"""The queue before the thread that sends: bounded, in order, and no reason to wait."""

import logging
import threading

import pytest

from node_agent.telemetry.access_log import ACCESS_LOGGER
from node_agent.telemetry.otlp_queue import OtlpQueue
from node_agent.telemetry.otlp_records import RecordHandler
from node_agent.telemetry.otlp_spans import span_sender
from tests.otlp_bench import SOURCE, Bench, collector_at, wait_for
from tests.otlp_collector import TRACES, Answer, OtlpCollector

# -- the queue --------------------------------------------------------------------------


class Recipient:
    """A ``send`` in the test's hand."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.calls = 0
        self.problem: str | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def send(self, items: list[int]) -> str | None:
        self.calls += 1
        self.may_go_on.wait(30)
        if self.problem is None:
            self.got += items
        return self.problem

    def queue(self, *, max_items: int = 1000) -> OtlpQueue[int]:
        return OtlpQueue(what="spans to a test", send=self.send, abort=self.may_go_on.set, max_items=max_items)


def test_all_that_is_put_arrives_once_and_in_order() -> None:
    recipient = Recipient()
    queue = recipient.queue()
    for number in range(900):
        queue.put(number)
    queue.close(10)
    assert recipient.got == list(range(900))
    assert (queue.exported, queue.dropped) == (900, 0)
    assert recipient.calls < 20


def test_a_collector_that_hangs_costs_a_bounded_queue_and_no_time() -> None:
    recipient = Recipient()
    recipient.may_go_on.clear()
    queue = recipient.queue(max_items=500)
    for number in range(300):
        queue.put(number)
    wait_for(lambda: recipient.calls == 1)
    for number in range(100_000):
        queue.put(number)
    assert len(queue._queue) == 500
    assert queue.exported == 0
    queue.close(0.2)  # aborts: the first batch gets through, and the rest
    wait_for(lambda: not queue._thread.is_alive())
    assert queue.exported == len(recipient.got)
    assert queue.exported + queue.dropped == 100_300


def test_what_is_refused_is_counted_and_told_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    recipient = Recipient()
    recipient.problem = "no room"
    queue = recipient.queue()
    queue.put(1)
    wait_for(lambda: queue.problem == "spans to a test are being lost: no room")
    recipient.problem = None
    queue.put(2)
    queue.close(10)
    assert queue.problem is None
    assert (queue.exported, queue.dropped) == (1, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "can not send spans to a test: no room; connections are not affected, what is lost is counted",
        "spans to a test are sent again",
    ]


def test_an_exception_of_a_library_ends_a_batch_and_not_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def send(items: list[int]) -> str | None:
        calls.append(items)
        if len(calls) == 1:
            raise ValueError("a bug")
        return None

    queue = OtlpQueue(what="spans", send=send, abort=lambda: None)
    queue.put(1)
    wait_for(lambda: queue.dropped == 1)
    queue.put(2)
    queue.close(10)
    assert calls == [[1], [2]]
    assert queue.exported == 1
    assert "a bug" in caplog.text


def test_going_down_waits_for_a_dead_collector_only_so_long(collector: OtlpCollector) -> None:
    collector.answer = Answer(hold=threading.Event())
    sender = span_sender(collector_at(collector.url + TRACES, timeout_s=3600), SOURCE)
    queue = OtlpQueue(what="spans", send=sender.send, abort=sender.abort)
    bench = Bench()
    for _ in range(300):
        bench.outbound()
    for span in bench.spans:
        queue.put(span)
    wait_for(lambda: collector.requests == 1)
    closing = threading.Thread(target=queue.close, args=(0.2,), daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive(), "not the hour that the collector might take"
    assert queue.dropped == 300 - 256
    assert collector.answer.hold is not None
    collector.answer.hold.set()
    queue._thread.join(60)


def test_the_handler_of_the_access_log_puts_texts_into_the_queue(access_records: list[str]) -> None:
    got: list[str] = []

    def send(items: list[str]) -> str | None:
        got.extend(items)
        return None

    queue = OtlpQueue(what="records", send=send, abort=lambda: None)
    handler = RecordHandler(queue)
    logging.getLogger(ACCESS_LOGGER).addHandler(handler)
    try:
        Bench().outbound()
    finally:
        logging.getLogger(ACCESS_LOGGER).removeHandler(handler)
    queue.close(10)
    assert got == access_records
    assert len(got) == 2
