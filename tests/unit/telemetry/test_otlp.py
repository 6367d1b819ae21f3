"""What a collector gets, and what becomes of the agent when it gets nothing."""

import json
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConfigError, ConnectionFailure
from node_agent.export_config import Collector
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, PeerAddress, ServicePort, Workload
from node_agent.telemetry.access_log import ACCESS_LOGGER, AccessLog
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.otlp_collector import Source, read_headers
from node_agent.telemetry.otlp_queue import OtlpQueue
from node_agent.telemetry.otlp_records import RecordHandler, RecordSender
from node_agent.telemetry.otlp_spans import SpanSender
from node_agent.telemetry.tracing import FinishedSpan, TraceParent, Tracer
from tests.otlp_collector import LOGS, TRACES, Answer, OtlpCollector

NASTY = "x\n\x00\x1b]0;owned\x07\"}\\',\u202e\ud800<script>"
SOURCE = Source(service_name="mesh", version="1.2.3", node="n1", trust_domain="cluster.local", worker=None)


def wait_for(look: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not look():
        assert time.monotonic() < limit
        time.sleep(0.005)


def collector_at(url: str, *, timeout_s: float = 5.0, headers_file: Path | None = None) -> Collector:
    return Collector(url=url, timeout_s=timeout_s, headers_file=headers_file, ca_file=None)


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as made:
        yield made


def workload(name: str, *, uid: str = "u", labels: dict[str, str] | None = None) -> Workload:
    return Workload(
        uid=uid,
        name=ObjectName("shop", name),
        service_account=name,
        node="n1",
        addresses=("10.0.0.1",),
        identity=SpiffeId.workload("cluster.local", "shop", "cart"),
        enrolled=True,
        labels=labels or {},
    )


class Bench:
    """An access log whose spans and records go to a list; monotonic 100 is 1,700,000,000 since the epoch."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.now = 100.0
        self.spans: list[FinishedSpan] = []
        self.tracer = Tracer(sample_ratio=ratio, rng=random.Random(7), now=lambda: self.now)
        self.log = AccessLog(
            metrics=Metrics(),
            node="n1",
            now=lambda: self.now,
            wall=lambda: 1_700_000_000.0 + self.now - 100,
            tracer=self.tracer,
            on_span=self.spans.append,
            opened_record=True,
        )

    def outbound(self, *, source: Workload | None = None, failure: ConnectionFailure | None = None) -> str:
        """One connection; returns what its OPEN would say."""
        with self.log.connection("outbound") as record:
            source = source or workload("cart")
            record.note(source=source, source_address=PeerAddress("10.0.0.1", 4444), source_identity=source.identity)
            record.note(original_destination=OriginalDestination("10.1.0.1", 80))
            record.note(service=ServicePort(service=ObjectName("shop", "web"), port=80))
            self.now += 0.25
            record.chose(
                endpoint=EndpointAddress("10.0.0.2", 8080),
                destination=workload("web"),
                destination_identity=SpiffeId.workload("cluster.local", "shop", "web"),
                security="mutual_tls",
            )
            self.now += 0.5
            if failure is not None:
                raise failure
            record.opened()
            record.sent_bytes, record.received_bytes = 300, 70
            self.now += 0.25
        return record.trace_parent

    def inbound(self, trace_parent: str, destination: Workload | None = None) -> None:
        with self.log.connection("inbound", trace_parent=trace_parent) as record:
            record.note(
                source_address=PeerAddress("fd00::1", 4444), original_destination=OriginalDestination("fd00::2", 80)
            )
            record.note(destination=destination or workload("web-6f9c-x2x", labels={"pod-template-hash": "6f9c"}))
            record.opened()


@pytest.fixture
def access_records() -> Iterator[list[str]]:
    """The texts that are logged as access records."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, keep = logging.getLogger(ACCESS_LOGGER), Keep()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(keep)
    yield found
    logger.removeHandler(keep)
    logger.setLevel(before[0])
    logger.propagate = before[1]


# -- what arrives -------------------------------------------------------------------


def test_two_ends_of_a_connection_are_one_trace_with_the_attributes_of_the_conventions(
    collector: OtlpCollector,
) -> None:
    bench = Bench()
    bench.inbound(bench.outbound())
    sender = SpanSender(collector_at(collector.url + TRACES), SOURCE)
    assert sender.send(bench.spans) is None

    client, server = collector.spans
    assert client.trace_id == server.trace_id
    assert (client.parent_id, server.parent_id) == ("", client.span_id)
    assert (client.kind, server.kind) == (3, 2), "CLIENT and SERVER of trace.proto"
    assert (client.name, server.name) == ("connect shop/web:80", "accept shop/web")
    assert (client.status, server.status) == (0, 0)
    assert (client.start_ns, client.end_ns) == (1_700_000_000 * 10**9, 1_700_000_001 * 10**9)
    assert [(name, at_ns - client.start_ns) for name, at_ns, _ in client.events] == [
        ("ringfence.endpoint.chosen", 250_000_000),
        ("ringfence.opened", 750_000_000),
    ]
    assert client.events[0][2] == {"ringfence.endpoint": "10.0.0.2:8080"}
    assert client.attributes == {
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.peer.address": "10.0.0.2",
        "source.address": "10.0.0.1",
        "source.port": 4444,
        "destination.address": "10.0.0.2",
        "destination.port": 8080,
        "server.address": "10.1.0.1",
        "server.port": 80,
        "ringfence.record.id": bench.spans[0].record_id,
        "ringfence.source.workload": "shop/cart",
        "ringfence.source.identity": "spiffe://cluster.local/ns/shop/sa/cart",
        "ringfence.destination.workload": "shop/web",
        "ringfence.destination.identity": "spiffe://cluster.local/ns/shop/sa/web",
        "ringfence.service": "shop/web:80",
        "ringfence.connection_security_policy": "mutual_tls",
        "ringfence.sent_bytes": 300,
        "ringfence.received_bytes": 70,
        "ringfence.attempts": 0,
        "ringfence.close_reason": "ok",
        "ringfence.response_flags": "-",
    }
    assert server.attributes["network.type"] == "ipv6"
    assert server.attributes["network.peer.address"] == "fd00::1"
    assert (server.attributes["destination.address"], server.attributes["destination.port"]) == ("fd00::2", 80)
    assert client.scope == "ringfence"
    assert client.resource == {
        "service.name": "mesh",
        "service.version": "1.2.3",
        "service.instance.id": "n1",
        "k8s.node.name": "n1",
        "ringfence.trust_domain": "cluster.local",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": client.resource["telemetry.sdk.version"],
    }


def test_a_connection_that_failed_is_an_error_with_its_reason_as_type(collector: OtlpCollector) -> None:
    bench = Bench()
    bench.outbound(failure=ConnectionFailure(CloseReason.CONNECT_REFUSED, "connect to 10.0.0.2: refused"))
    SpanSender(collector_at(collector.url + TRACES), SOURCE).send(bench.spans)

    [span] = collector.spans
    assert span.attributes["error.type"] == span.attributes["ringfence.close_reason"] == "connect_refused"
    assert (span.status, span.status_text) == (2, "connect to 10.0.0.2: refused")


def test_an_untraced_connection_leaves_no_span_and_its_record_names_no_trace(access_records: list[str]) -> None:
    bench = Bench(ratio=0.0)
    told = TraceParent.parse(bench.outbound())
    assert told is not None
    assert not told.sampled
    bench.inbound(str(told))
    assert bench.spans == []
    assert {json.loads(text)["trace_id"] for text in access_records} == {None}


def test_records_arrive_as_they_are_logged_and_name_the_span(
    collector: OtlpCollector, access_records: list[str]
) -> None:
    bench = Bench()
    bench.outbound(failure=ConnectionFailure(CloseReason.UPSTREAM_RESET))
    bench.outbound()
    assert RecordSender(collector_at(collector.url + LOGS), SOURCE).send(access_records) is None

    failed, opened, closed = collector.logs
    written = [json.loads(text) for text in access_records]
    assert [log.body for log in collector.logs] == [
        {key: value for key, value in record.items() if value is not None} for record in written
    ]
    assert [log.event_name.rpartition(".")[2] for log in collector.logs] == ["closed", "opened", "closed"]
    assert [log.severity for log in collector.logs] == ["WARN", "INFO", "INFO"]
    assert opened.body["id"] == closed.body["id"] != failed.body["id"]
    assert (closed.trace_id, closed.span_id) == (written[2]["trace_id"], written[2]["span_id"])
    assert f"{bench.spans[1].trace.trace_id:032x}" == closed.trace_id
    assert closed.time_ns == 1_700_000_001_750 * 10**6
    assert closed.resource["service.name"] == "mesh"


def test_names_and_details_with_control_characters_break_nothing(
    collector: OtlpCollector, access_records: list[str]
) -> None:
    bench = Bench()
    nasty = workload(NASTY, labels={"pod-template-hash": NASTY})
    bench.outbound(source=nasty, failure=ConnectionFailure(CloseReason.PEER_UNAVAILABLE, NASTY))
    bench.inbound("", destination=nasty)
    source = Source(service_name=NASTY, version="1", node=NASTY, trust_domain=NASTY, worker=2)
    assert SpanSender(collector_at(collector.url + TRACES), source).send(bench.spans) is None
    assert RecordSender(collector_at(collector.url + LOGS), source).send(access_records) is None

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from texts(inner)
        elif isinstance(value, str):
            yield value

    shown = r"x\n\x00\x1b]0;owned\x07" + "\"}\\'," + r"\u202e\ud800<script>"
    assert [span.attributes.get("ringfence.source.workload") for span in collector.spans] == ["shop/" + shown, None]
    assert collector.spans[1].name == "accept shop/" + shown
    assert collector.spans[0].status_text == shown
    for span in collector.spans:
        assert all(
            text.isprintable() for text in (*texts(dict(span.attributes)), *texts(dict(span.resource)), span.name)
        )
    for log in collector.logs:
        assert all(text.isprintable() for text in texts(dict(log.body)))
    assert collector.logs[0].body["detail"] == shown
    for text in access_records:
        assert text.isascii()
        assert text.isprintable()
        assert json.loads(text)["schema"] == 1
    assert json.loads(access_records[0])["source_workload"] == "shop/" + NASTY


# -- a collector that is not as it should be --------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(status=400), "the collector answers 400 Bad Request"),
        (Answer(status=401), "the collector answers 401 Unauthorized"),
        (Answer(status=302, headers={"Location": "/elsewhere"}), "the collector answers 302 Found"),
        (Answer(status=503, headers={"Retry-After": "86400"}), "the collector answers 503 Service Unavailable"),
    ],
)
def test_what_the_collector_does_not_take_is_told(collector: OtlpCollector, answer: Answer, says: str) -> None:
    collector.answer = answer
    bench = Bench()
    bench.outbound()
    assert SpanSender(collector_at(collector.url + TRACES), SOURCE).send(bench.spans) == says
    assert collector.requests == 1, "not asked again, and no redirect followed"


def test_an_answer_that_never_ends_costs_no_memory(collector: OtlpCollector) -> None:
    collector.answer = Answer(body=b"x" * 50_000_000)
    bench = Bench()
    bench.outbound()
    sender = SpanSender(collector_at(collector.url + TRACES), SOURCE)
    assert sender.send(bench.spans) is None
    assert sender.send(bench.spans) is None, "over another connection"


def test_nobody_there_is_told_in_the_kernels_words() -> None:
    with OtlpCollector() as gone:
        url = gone.url
    bench = Bench()
    bench.outbound()
    problem = SpanSender(collector_at(url + TRACES, timeout_s=0.2), SOURCE).send(bench.spans)
    assert problem is not None
    assert problem.endswith("[Errno 111] Connection refused")


def test_neither_a_proxy_nor_headers_are_taken_from_the_environment_of_requests(
    collector: OtlpCollector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    headers = tmp_path / "headers"
    headers.write_text("# for the collector\n\nAuthorization: Bearer s3cret token \nX-Scope-OrgID:mesh\n")
    headers.chmod(0o600)
    bench = Bench()
    bench.outbound()
    sender = SpanSender(collector_at(collector.url + TRACES, headers_file=headers), SOURCE)
    assert sender.send(bench.spans) is None
    [got] = collector.headers
    assert got["authorization"] == "Bearer s3cret token"
    assert got["x-scope-orgid"] == "mesh"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Authorization Bearer s3cret\n", "line 1: expected Name: value"),
        ("A: b\n\nB: s3cret\x07\n", "line 3: expected Name: value"),
        ("A: s3cret\nA: s3cret\n", "line 2: a is there twice"),
        ("Content-Length: 3\n", "line 1: content-length is set by the agent itself"),
        ("A: " + "s3cret" * 20_000, "longer than 65536 bytes"),
        ("A: s3cr\xe9t\n", "line 1: expected Name: value"),
    ],
)
def test_a_broken_headers_file_is_told_by_line_and_its_secrets_are_not(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "headers"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_headers(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "s3cr" not in str(caught.value)


def test_a_headers_file_that_others_may_read_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_headers(path)
    path.write_text("A: b\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="its mode is 0640, so others may read it; chmod 600"):
        read_headers(path)


def test_a_ca_file_without_certificates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    for there in (path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="ca_file .*: expected certificates in PEM"):
            SpanSender(Collector(url="https://c:1/v1/traces", timeout_s=1, headers_file=None, ca_file=there), SOURCE)


def test_over_https_the_collector_has_to_prove_its_name(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    roots = {}
    for name, each in (("right", authority), ("wrong", other)):
        roots[name] = tmp_path / f"{name}.pem"
        each.cert_pem.write_to_path(roots[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    bench = Bench()
    bench.outbound()

    def send(url: str, ca_file: Path | None) -> str | None:
        where = Collector(url=url + TRACES, timeout_s=0.5, headers_file=None, ca_file=ca_file)
        return SpanSender(where, SOURCE).send(bench.spans)

    with OtlpCollector(socket.create_server(("0.0.0.0", 0)), tls=context) as collector:
        url = f"https://127.0.0.1:{collector.address[1]}"
        assert send(url, roots["right"]) is None
        for ca_file in (roots["wrong"], None):
            problem = send(url, ca_file)
            assert problem is not None
            assert "CERTIFICATE_VERIFY_FAILED" in problem
        problem = send(url.replace("127.0.0.1", "127.0.0.2"), roots["right"])
        assert problem is not None
        assert "IP address mismatch" in problem
    assert len(collector.spans) == 1


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
    wait_for(lambda: queue.dropped == 1)
    recipient.problem = None
    queue.put(2)
    queue.close(10)
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
    sender = SpanSender(collector_at(collector.url + TRACES, timeout_s=60), SOURCE)
    queue = OtlpQueue(what="spans", send=sender.send, abort=sender.abort)
    bench = Bench()
    for _ in range(300):
        bench.outbound()
    for span in bench.spans:
        queue.put(span)
    wait_for(lambda: collector.requests == 1)
    began = time.monotonic()
    queue.close(0.2)
    assert time.monotonic() - began < 5, "not the minute that the collector might take"
    assert queue.dropped == 300 - 256
    assert collector.answer.hold is not None
    collector.answer.hold.set()
    queue._thread.join(10)


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
