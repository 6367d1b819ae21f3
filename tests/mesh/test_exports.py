"""Spans and access records where they are wanted: one trace across both agents, whole records in every sink.

Agent 1 traces every connection that leaves its pods, agent 2 none of its own:
what is traced is the source's decision.
"""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from tests.mesh_builder import LAB_NAME, ROOT, STATE_DIR, Mesh, Pod, in_namespace, read_all, wait_for
from tests.mesh_faults import is_reset
from tests.otlp_collector import OtlpCollector, Span

pytestmark = pytest.mark.mesh

VALIDATOR: Final = Draft202012Validator(
    json.loads((ROOT / "node_agent/telemetry/access_record.schema.json").read_text())
)
PORT: Final = 8080
COLLECTOR: Final = ("10.247.0.10", 4318)  # on the CA's node, which both agents reach
RATIOS: Final = {1: 1.0, 2: 0.0}
RECORDS: Final = Path(f"/run/ringfence-test-records-{LAB_NAME}")  # apart from the lab, which could not remove a mount
CLIENT, SERVER = 3, 2
_RESET: Final = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER


def collector_in_the_lab(mesh: Mesh) -> OtlpCollector:
    return OtlpCollector(in_namespace(mesh.node_netns(0), lambda: socket.create_server(COLLECTOR, reuse_port=True)))


def record_path(node: int) -> Path:
    return RECORDS / f"agent-{node}" / "access.log"


def written(node: int) -> list[dict[str, Any]]:
    """What an agent's file of records holds, oldest first, rotated ones included."""
    current = record_path(node)
    old = sorted(current.parent.glob("access.log.*"), key=lambda path: -int(path.suffix[1:]))
    return [json.loads(line) for path in (*old, current) if path.exists() for line in path.read_text().splitlines()]


def forget_records() -> None:
    for directory in RECORDS.glob("agent-*"):
        if directory.is_mount():
            subprocess.run(["umount", "--lazy", directory], check=True)
    shutil.rmtree(RECORDS, ignore_errors=True)


@pytest.fixture(scope="module")
def exporting(session_mesh: Mesh) -> Iterator[Mesh]:
    """Both agents with a collector, a file and their standard output as sinks."""
    before = {path: path.read_text() for path in sorted(STATE_DIR.glob("agent-*/agent.toml"))}
    forget_records()  # a run that was killed may have left some
    try:
        for path, text in before.items():
            node = int(path.parent.name.removeprefix("agent-"))
            record_path(node).parent.mkdir(parents=True)
            path.write_text(
                f"{text}\n[tracing]\nendpoint = 'http://{COLLECTOR[0]}:{COLLECTOR[1]}'\n"
                f"sample_ratio = {RATIOS[node]}\ntimeout_s = 1\n"
                f"[access_log]\nsinks = ['stdout', 'file', 'otlp']\nopened_record = true\n"
                f"file = '{record_path(node)}'\nrotate_bytes = 20000\nkeep_files = 50\n"
            )
            session_mesh.lab("restart", path.parent.name)
        yield session_mesh
    finally:
        for path, text in before.items():
            path.write_text(text)
            session_mesh.lab("restart", path.parent.name)
        forget_records()


@pytest.fixture
def collector(exporting: Mesh) -> Iterator[OtlpCollector]:
    with collector_in_the_lab(exporting) as made:
        yield made


@pytest.fixture
def mesh(exporting: Mesh) -> Iterator[Mesh]:
    exporting.begin_test()
    yield exporting
    exporting.reset()


@contextmanager
def connected(client: Pod, server: Pod) -> Iterator[socket.socket]:
    """A connection that has carried a byte both ways."""
    with client.connect(server.ipv4, PORT) as connection:
        connection.sendall(b"?")
        assert connection.recv(1) == b"?"
        yield connection


def exchange(client: Pod, ip: str, payload: bytes = b"hello") -> None:
    with client.connect(ip, PORT) as connection:
        connection.sendall(payload)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == payload


def spans_of(collector: OtlpCollector, *record_ids: str) -> list[Span]:
    def look() -> list[Span] | None:
        found = {span.attributes["ringfence.record.id"]: span for span in collector.spans}
        return [found[each] for each in record_ids] if found.keys() >= set(record_ids) else None

    return wait_for("the spans", look)


def address(span: Span, what: str) -> str | None:
    if f"{what}.address" not in span.attributes:
        return None
    ip, port = span.attributes[f"{what}.address"], span.attributes[f"{what}.port"]
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def assert_is_of(span: Span, record: dict[str, Any]) -> None:
    """The span says what the access record says."""
    attributes = span.attributes
    assert (span.trace_id, span.span_id) == (record["trace_id"], record["span_id"])
    assert span.kind == (CLIENT if record["direction"] == "outbound" else SERVER)
    assert address(span, "source") == record["source_address"]
    assert address(span, "server") == record["original_destination"]
    assert address(span, "destination") == record["endpoint" if span.kind == CLIENT else "original_destination"]
    for key in (
        "source_workload", "source_identity", "destination_workload", "destination_identity",
    ):  # fmt: skip
        assert attributes.get(f"ringfence.{key.replace('_', '.')}") == record[key], key
    for key in (
        "service", "connection_security_policy", "policy", "fault", "sent_bytes", "received_bytes", "attempts",
        "close_reason", "response_flags",
    ):  # fmt: skip
        assert attributes.get(f"ringfence.{key}") == record[key], key
    connect_ms = attributes.get("ringfence.connect_ms")
    assert (connect_ms if connect_ms is None else round(connect_ms, 3)) == record["connect_ms"]
    is_ok = record["close_reason"] == "ok"
    assert attributes.get("error.type") == (None if is_ok else record["close_reason"])
    assert (span.status, span.status_text) == ((0, "") if is_ok else (2, record["detail"]))
    assert (span.end_ns - span.start_ns) / 1e6 == pytest.approx(record["duration_ms"], abs=0.01)
    assert attributes["network.transport"] == "tcp"


def wait_until_idle(mesh: Mesh, node: int) -> None:
    wait_for("no open connection", lambda: not mesh.metric(node, "ringfence_connections_open"))


def wait_for_drops(mesh: Mesh, node: int, before: float) -> None:
    wait_for("spans to be dropped", lambda: mesh.metric(node, "ringfence_spans_dropped_total") > before)


def is_warned(mesh: Mesh, words: str) -> bool:
    """Whether the status of agent 1 says that something is being lost."""
    return any(words in line for line in mesh.ringfence(1, "status")["warnings"])


def without_nulls(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def test_a_connection_is_one_trace_of_two_spans_that_say_what_its_records_say(
    mesh: Mesh, collector: OtlpCollector
) -> None:
    server = mesh.pod("web", node=2, labels={"app": "web"})
    server.serve_echo(PORT)
    client = mesh.pod("cart", node=1, service_account="cart")
    v4, v6 = mesh.service("web", app="web", port=PORT, target_port=PORT)
    exchange(client, v4, b"x" * 1000)
    exchange(client, v6)

    records = wait_for("four records", lambda: found if len(found := mesh.records(1) + mesh.records(2)) == 8 else None)
    closed = [record for record in records if record["event"] == "closed"]
    spans = spans_of(collector, *(record["id"] for record in closed))
    for span, record in zip(spans, closed, strict=True):
        assert_is_of(span, record)
    for source in (span for span in spans if span.kind == CLIENT):
        [destination] = [each for each in spans if each.parent_id == source.span_id]
        assert source.parent_id == ""
        assert destination.trace_id == source.trace_id
        assert (destination.kind, destination.name) == (SERVER, "accept default/web")
        assert source.name == "connect default/web:8080"
        assert source.start_ns <= destination.start_ns
        assert [name for name, _, _ in destination.events] == ["ringfence.opened"]
    first, second = sorted((each for each in spans if each.kind == CLIENT), key=lambda each: each.start_ns)
    assert first.trace_id != second.trace_id
    tunnel = ["ringfence.tunnel.connected", "ringfence.tunnel.proven"]
    for span in (first, second):
        phases = [name for name, _, _ in span.events]
        assert phases[0] == "ringfence.endpoint.chosen"
        assert phases[-2:] == ["ringfence.tunnel.asked", "ringfence.opened"]
        times = [span.start_ns, *(at_ns for _, at_ns, _ in span.events), span.end_ns]
        assert times == sorted(times)
    assert [name for name, _, _ in first.events][1:3] == tunnel, "the second one may use its tunnel"
    nodes = {span.resource["k8s.node.name"]: span.kind for span in spans}
    assert sorted(nodes.values()) == [SERVER, CLIENT]
    assert len(nodes) == 2


def test_the_source_decides_whether_a_connection_is_traced(mesh: Mesh, collector: OtlpCollector) -> None:
    one, two = mesh.pod("one", node=1), mesh.pod("two", node=2)
    outside = mesh.pod("outside", node=2, mesh=False)
    for pod in (one, two, outside):
        pod.serve_echo(PORT)
    exchange(two, one.ipv4)  # agent 2 traces nothing, and agent 1 follows
    exchange(two, outside.ipv4)
    exchange(one, outside.ipv4)  # traced, and there is no second agent
    exchange(one, two.ipv4)

    def ended(node: int, direction: str, source: str) -> list[dict[str, Any]]:
        found = mesh.records(node, event="closed", direction=direction, source_workload=f"default/{source}")
        return found if len(found) == (2 if direction == "outbound" else 1) else []

    untraced = wait_for("records", lambda: ended(2, "outbound", "two"))
    untraced += wait_for("records", lambda: ended(1, "inbound", "two"))
    traced = wait_for("records", lambda: ended(1, "outbound", "one")) + wait_for(
        "records", lambda: ended(2, "inbound", "one")
    )
    assert {(record["trace_id"], record["span_id"]) for record in untraced} == {(None, None)}
    spans = spans_of(collector, *(record["id"] for record in traced))
    assert len({span.trace_id for span in spans}) == 2
    ids = {span.attributes["ringfence.record.id"] for span in collector.spans}
    assert not ids & {record["id"] for record in untraced}


def test_every_sink_gets_every_record_and_all_are_valid_however_connections_end(
    mesh: Mesh, collector: OtlpCollector
) -> None:
    server = mesh.pod("web", node=2, labels={"app": "web"})
    client = mesh.pod("cart", node=1)
    stranger = mesh.pod("stranger", node=1, mesh=False)
    victim = mesh.pod("victim", node=2)
    server.serve_echo(PORT)
    victim.serve_echo(PORT)
    nobody, _ = mesh.service("nobody", app="nobody", port=PORT, target_port=PORT)

    def reset_by_the_server(connection: socket.socket, _peer: str) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    server.serve(8081, reset_by_the_server)
    refused = [(client, server.ipv4, 9999), (client, nobody, PORT), (client, server.ipv4, 15006)]
    exchange(client, server.ipv4)
    exchange(stranger, server.ipv4)
    with connected(client, server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with client.connect(server.ipv4, 8081) as connection:
        connection.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    for pod, ip, port in refused:
        assert is_reset(pod, ip, port)
    with stranger.connect(server.ipv4, 15008) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            read_all(connection)
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        "metadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n"
    )
    with pytest.raises(OSError, match="refused|reset"):
        exchange(stranger, server.ipv4)
    with connected(client, victim) as connection:
        victim.delete()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)

    expected = {
        "ok", "downstream_reset", "upstream_reset", "connect_refused", "no_endpoints", "destination_not_allowed",
        "not_tls", "plaintext_refused", "workload_removed",
    }  # fmt: skip

    def seen() -> set[str]:
        return {record["close_reason"] for node in (1, 2) for record in mesh.records(node)} - {None}

    wait_for(f"all of {expected}", lambda: seen() >= expected)
    for node in (1, 2):
        wait_until_idle(mesh, node)
        logged = mesh.records(node)
        for record in logged:
            VALIDATOR.validate(record)
        ids = [(record["id"], record["event"]) for record in logged]
        assert len(set(ids)) == len(ids)
        closed = {record["id"]: record for record in logged if record["event"] == "closed"}
        for record in logged:
            same = ("source_address", "original_destination", "direction", "span_id", "destination_identity")
            assert {key: record[key] for key in same} == {key: closed[record["id"]][key] for key in same}
        wanted = {(record["id"], record["event"]): record for record in logged}
        in_file = {(record["id"], record["event"]): record for record in written(node)}
        assert {key: in_file.get(key) for key in wanted} == wanted
        assert record_path(node).stat().st_mode & 0o777 == 0o640

        def at_the_collector(wanted: dict[Any, Any] = wanted) -> dict[Any, Any] | None:
            found = {(log.body["id"], log.body["event"]): dict(log.body) for log in collector.logs}
            return found if found.keys() >= wanted.keys() else None

        arrived = wait_for("the collector's records", at_the_collector)
        assert {key: arrived[key] for key in wanted} == {key: without_nulls(each) for key, each in wanted.items()}
        for stream in ("stdout", "stderr", "file"):
            assert mesh.metric(node, "ringfence_log_lines_dropped_total", stream=stream) == 0


def test_a_collector_that_dies_costs_spans_which_are_counted_and_connections_do_not_notice(mesh: Mesh) -> None:
    server = mesh.pod("web", node=2)
    server.serve_echo(PORT)
    client = mesh.pod("cart", node=1)
    dropped = {node: mesh.metric(node, "ringfence_spans_dropped_total") for node in (1, 2)}
    for _ in range(50):
        exchange(client, server.ipv4)
    for node, before in dropped.items():
        wait_for_drops(mesh, node, before)
    assert {record["close_reason"] for node in (1, 2) for record in mesh.records(node, event="closed")} == {"ok"}
    problems = [line["message"] for line in mesh.log(1) if line.get("logger") == "ringfence.otlp"]
    assert len(problems) <= 2 * int(os.environ.get("RINGFENCE_TEST_WORKERS", "1")), "one for spans, one for records"
    assert not [line for line in mesh.log(1) if line.get("logger", "").startswith(("opentelemetry", "urllib3"))]
    for what in ("spans to http", "access records to http"):
        wait_for("the status to say so", lambda: is_warned(mesh, what), deadline_s=60)  # noqa: B023
    with collector_in_the_lab(mesh) as back:
        exchange(client, server.ipv4)
        record = wait_for("the record", lambda: mesh.records(1, event="closed"))[-1]
        assert record["trace_id"] is not None
        wait_for("the spans to come again", lambda: back.spans, deadline_s=60)
        wait_for("the records to come again", lambda: back.logs, deadline_s=60)

        def is_well() -> bool:
            exchange(client, server.ipv4)  # each worker process finds out for itself
            return not is_warned(mesh, "are being lost")

        wait_for("the status to be well again", is_well, deadline_s=120)


def test_records_follow_a_file_that_was_renamed_and_sighup_is_no_reason_to_go(mesh: Mesh) -> None:
    server = mesh.pod("web", node=2)
    server.serve_echo(PORT)
    client = mesh.pod("cart", node=1)
    pids = mesh.agent_pids(1)
    path = record_path(1)
    exchange(client, server.ipv4)
    wait_for("a file", path.exists)
    renamed = path.with_name("renamed")
    inode = path.rename(renamed).stat().st_ino
    for pid in pids:
        os.kill(pid, signal.SIGHUP)

    def holds_it() -> list[int]:
        return [
            pid
            for pid in pids
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if os.path.exists(fd) and fd.stat().st_ino == inode
        ]

    wait_for("nobody to hold the old file", lambda: not holds_it())
    before = renamed.read_text()
    exchange(client, server.ipv4)
    wait_for("a new record", lambda: path.exists() and path.read_text().endswith("\n"))
    assert renamed.read_text() == before
    assert mesh.agent_pids(1) == pids
    renamed.unlink()


def test_a_full_disk_costs_records_which_are_counted_and_connections_go_on(mesh: Mesh) -> None:
    server = mesh.pod("web", node=2)
    server.serve_echo(PORT)
    client = mesh.pod("cart", node=1)

    def dropped() -> float:
        return mesh.metric(1, "ringfence_log_lines_dropped_total", stream="file")

    directory = record_path(1).parent
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k,mode=0700", "tmpfs", directory], check=True)
    try:
        before = dropped()
        for _ in range(60):  # two records of a kilobyte each
            exchange(client, server.ipv4)
        wait_for("records to be dropped", lambda: dropped() > before)
        records = wait_for(
            "the records on standard output",
            lambda: found if len(found := mesh.records(1, event="closed")) == 60 else None,
        )
        assert {record["close_reason"] for record in records} == {"ok"}
        kept = written(1)  # every line is JSON
        assert 10 < len(kept) < 120
        more = 0
        while not is_warned(mesh, "file of [access_log] are being lost: No space left on device") and more < 200:
            exchange(client, server.ipv4)  # one that still fitted in has ended the warning
            more += 1
        assert more < 200
        count = 60 + more
        wait_for("their records", lambda: len(mesh.records(1, event="closed")) == count)
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
    exchange(client, server.ipv4)
    last = wait_for("the record", lambda: mesh.records(1, event="closed")[count:])[0]
    wait_for("it in the file", lambda: last in written(1))


def test_an_agent_that_is_killed_leaves_an_opened_record_and_one_that_goes_its_last_spans(
    mesh: Mesh, collector: OtlpCollector
) -> None:
    server = mesh.pod("web", node=2)
    server.serve_echo(PORT)
    client = mesh.pod("cart", node=1)
    with connected(client, server) as connection:
        source = connection.getsockname()[:2]
        opened = mesh.record(1, event="opened", source_address=f"{source[0]}:{source[1]}")
        wait_for("it in the file", lambda: opened in written(1))
        assert opened["trace_id"]
        with mesh.stopped("agent-1", how="kill"):
            assert opened in written(1)
            assert not [record for record in written(1) if record["id"] == opened["id"] and record["event"] == "closed"]

    exchange(client, server.ipv4)
    mesh.lab("restart", "agent-1")  # by SIGTERM, within the second that spans are gathered for
    last = mesh.records(1, event="closed", close_reason="ok")[-1]
    [span] = spans_of(collector, last["id"])
    assert_is_of(span, last)
