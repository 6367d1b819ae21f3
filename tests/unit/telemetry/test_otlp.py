"""What a collector gets, and what becomes of the agent when it gets nothing."""

import json
from collections.abc import Iterator
from typing import Any

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.telemetry.otlp_collector import Source
from node_agent.telemetry.otlp_records import record_sender
from node_agent.telemetry.otlp_spans import span_sender
from node_agent.telemetry.tracing import TraceParent
from tests.otlp_bench import NASTY, SOURCE, Bench, collector_at, workload
from tests.otlp_collector import LOGS, TRACES, OtlpCollector

# -- what arrives -------------------------------------------------------------------


def test_two_ends_of_a_connection_are_one_trace_with_the_attributes_of_the_conventions(
    collector: OtlpCollector,
) -> None:
    bench = Bench()
    bench.inbound(bench.outbound())
    sender = span_sender(collector_at(collector.url + TRACES), SOURCE)
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
    span_sender(collector_at(collector.url + TRACES), SOURCE).send(bench.spans)

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
    assert record_sender(collector_at(collector.url + LOGS), SOURCE).send(access_records) is None

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
    assert span_sender(collector_at(collector.url + TRACES), source).send(bench.spans) is None
    assert record_sender(collector_at(collector.url + LOGS), source).send(access_records) is None

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
