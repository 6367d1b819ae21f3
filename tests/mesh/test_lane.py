"""The same-node lane: what goes straight to the application is as whole, as judged and as recorded as what does not."""

import collections
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.pins import Pins
from tests.forged import next_syn_source, send_syn, without_the_labs_own_rule
from tests.lane_stage import PORT as _PORT
from tests.lane_stage import LaneStage, counted_on_the_lane, if_counted
from tests.mesh_builder import CAPTURE, LAB_NAME, LabCommandError, Mesh, read_all, wait_for

_NAMESPACE = """apiVersion: v1
kind: Namespace
metadata: {name: lane, labels: {ringfence.io/mesh: enabled}, annotations: {ringfence.io/same-node: lane}}
"""
_DENY_CLIENT = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: lane}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/lane/sa/client]}}]}]
"""
_NO_CLIENT = "AuthorizationPolicy/lane/no-client"


@pytest.fixture(scope="module")
def session_mesh(session_mesh: Mesh) -> Iterator[Mesh]:
    session_mesh.up("--workers", "1", nodes=1, capture="inpod-bpf")  # with more there is no lane
    session_mesh.lab("apply", "-", stdin=_NAMESPACE)
    yield session_mesh
    session_mesh.up(capture=CAPTURE)


@pytest.fixture
def stage(mesh: Mesh) -> LaneStage:
    return LaneStage(mesh)


def test_a_transfer_is_whole_each_way_and_its_records_are_exact(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server
    cluster4, cluster6 = mesh.service("server", app="server", port=80, target_port=_PORT, namespace="lane")
    ways = {server.ipv4: _PORT, server.ipv6: _PORT, cluster4: 80, cluster6: 80, f"::ffff:{server.ipv4}": _PORT}
    before, taken_before = counted_on_the_lane(mesh), stage.taken()
    for ip, port in ways.items():
        stage.learn(ip, port)
    taken = stage.taken()
    counted = wait_for(
        "those of learning to be counted",
        lambda: if_counted(counted_on_the_lane(mesh), before, number=taken - taken_before),
    )

    sizes = {ip: 3_000_001 + number for number, ip in enumerate(ways)}
    for ip, port in ways.items():
        stage.echo(ip, port, size=sizes[ip])
    with stage.client.connect(cluster4, 80) as connection:
        assert connection.getpeername() == (cluster4, 80)
        assert connection.getsockname()[0] == stage.client.ipv4
        live = wait_for(
            "the open connection to be shown",
            lambda: [row for row in mesh.ringfence(1, "connections") if row["state"] == "open"],
        )
        assert {row["direction"] for row in live} == {"outbound", "inbound"}

    assert stage.taken() == taken + len(ways) + 1
    for ip, port in ways.items():
        size = sizes[ip]
        out = mesh.record(1, direction="outbound", sent_bytes=size, received_bytes=size)
        into = mesh.record(1, direction="inbound", sent_bytes=size, received_bytes=size)
        endpoint = f"[{server.ipv6}]:{_PORT}" if ip in (server.ipv6, cluster6) else f"{server.ipv4}:{_PORT}"
        asked = ip.removeprefix("::ffff:")
        assert out["original_destination"] == (f"[{asked}]:{port}" if ":" in asked else f"{asked}:{port}")
        assert out["service"] == ("lane/server:80" if port == 80 else None)
        assert out["endpoint"] == into["original_destination"] == endpoint
        for record in (out, into):
            assert record["source_workload"] == "lane/client"
            assert record["destination_workload"] == "lane/server"
            assert record["source_identity"] == "spiffe://cluster.local/ns/lane/sa/client"
            assert record["destination_identity"] == "spiffe://cluster.local/ns/lane/sa/server"
            assert record["close_reason"] == "ok"
    wait_for("every entry to be gone", stage.is_empty)
    total = sum(sizes.values())
    after = counted_on_the_lane(mesh)
    assert {key: after[key] - counted.get(key, 0) for key in after} == {
        (reporter, what): number
        for reporter in ("source", "destination")
        for what, number in (
            ("connections_opened", len(ways) + 1),
            ("connections_closed", len(ways) + 1),
            ("sent_bytes", total),
            ("received_bytes", total),
        )
    }


def test_a_reset_and_a_refusal_are_recorded_as_what_they_are(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server

    def abort(connection: socket.socket, _peer: str) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server.serve(8081, abort)
    stage.learn(server.ipv4)
    taken = stage.taken()
    with stage.client.connect(server.ipv4, _PORT) as connection:
        connection.sendall(b"12345")
        assert connection.recv(5) == b"12345"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert stage.taken() == taken + 1
    for direction in ("outbound", "inbound"):
        record = mesh.record(1, direction=direction, close_reason="downstream_reset")
        assert (record["received_bytes"], record["sent_bytes"]) == (5, 5)

    for turn in range(2):  # through the agent, then by the lane
        with stage.client.connect(server.ipv4, 8081) as connection:
            connection.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        wait_for("two records each", lambda: len(mesh.records(1, close_reason="upstream_reset")) == 2 * turn + 2)  # noqa: B023
    assert stage.taken() == taken + 2

    # A program that is gone: the first one finds out, and the next goes through the agent again.
    listener = server.listen(8082)
    with listener, stage.client.connect(server.ipv4, 8082) as connection:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"x")
        assert read_all(connection) == b"x"
    with pytest.raises(ConnectionRefusedError):
        stage.client.connect(server.ipv4, 8082)
    assert stage.taken() == taken + 3
    wait_for("both records", lambda: len(mesh.records(1, close_reason="connect_refused")) == 2)
    assert not stage.entries()["lanes"]
    wait_for("every entry to be gone", stage.is_empty)


def test_what_needs_the_agent_never_takes_the_lane(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server
    taken = stage.taken()

    def stays_with_the_agent() -> None:
        for _ in range(3):
            stage.echo(server.ipv4)
        assert stage.taken() == taken
        assert not stage.entries()["lanes"]

    strict = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        "metadata: {name: strict, namespace: lane}\nspec: {mtls: {mode: STRICT}}\n"
    )
    with mesh.applied(strict):
        stays_with_the_agent()
    mesh.lab("apply", "-", stdin=_NAMESPACE.replace("same-node: lane", "same-node: tunnel"))
    try:
        stays_with_the_agent()
    finally:
        mesh.lab("apply", "-", stdin=_NAMESPACE)
    with mesh.applied(_DENY_CLIENT):
        for _ in range(3):
            assert _is_denied(stage, server.ipv4)
        assert stage.taken() == taken
        assert not stage.entries()["lanes"]
    stage.learn(server.ipv4)
    with mesh.applied(strict):  # and what has taken it does so no longer
        taken = stage.taken()
        stays_with_the_agent()


def _is_denied(stage: LaneStage, ip: str) -> bool:
    try:
        with stage.client.connect(ip, _PORT) as connection:
            connection.sendall(b"x")
            return not connection.recv(1)
    except OSError:
        return True


def test_a_policy_cuts_what_is_open_and_refuses_what_is_new(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server
    for ip in (server.ipv4, server.ipv6):
        stage.learn(ip)
    taken = stage.taken()
    open_ones = [stage.client.connect(ip, _PORT) for ip in (server.ipv4, server.ipv6, f"::ffff:{server.ipv4}")]
    assert stage.taken() >= taken + 2
    for each in open_ones:
        each.sendall(b"x")
        assert each.recv(1) == b"x"

    with mesh.applied(_DENY_CLIENT):
        for each in open_ones:  # within a second on an idle machine
            with each, pytest.raises(ConnectionAbortedError):
                each.recv(1)
        assert _is_denied(stage, server.ipv4)
        wait_for("the records", lambda: len(mesh.records(1, close_reason="policy_denied", received_bytes=1)) == 6)
        cut = mesh.records(1, close_reason="policy_denied", received_bytes=1)
        assert {each["policy"] for each in cut} == {"lane/no-client"}
        wait_for("every entry to be gone", stage.is_empty)
    stage.learn(server.ipv4)


def test_a_revoked_identity_loses_what_is_open_on_the_lane_and_comes_back_when_it_is_undone(stage: LaneStage) -> None:
    mesh, server, client = stage.mesh, stage.server, stage.client
    other = mesh.pod("other", namespace="lane", service_account="other")
    stage.learn(server.ipv4)
    stage.learn(server.ipv6)
    open_ones = [client.connect(ip, _PORT) for ip in (server.ipv4, server.ipv6)]
    spared = other.connect(server.ipv4, _PORT)
    for each in (*open_ones, spared):
        each.sendall(b"x")
        assert each.recv(1) == b"x"
    revoke = ("ringfence", "ca", "revoke", "identity", str(client.identity), "--reason", "laptop left on the train")

    mesh.lab(*revoke)
    try:
        for each in open_ones:
            with each, pytest.raises(ConnectionAbortedError):  # of the lane: a tunnel's end would be a reset
                each.recv(1)
        cut = wait_for(
            "both records of both",
            lambda: _if_all(mesh.records(1, close_reason="identity_revoked", received_bytes=1), 4),
        )
        assert sorted(each["direction"] for each in cut) == ["inbound", "inbound", "outbound", "outbound"]
        for record in cut:
            assert record["response_flags"] == "IDENTITY_ERROR"
            assert record["source_workload"] == "lane/client"
            assert f"{client.identity}: this identity is revoked" in record["detail"]
            assert "laptop left on the train" in record["detail"]
        taken = stage.taken()
        for ip in (server.ipv4, server.ipv6):
            assert _is_denied(stage, ip)
        assert stage.taken() == taken
        with spared:  # somebody else's, through the agent or by the lane
            spared.sendall(b"y")
            assert spared.recv(1) == b"y"
    finally:
        mesh.lab(*revoke, "--undo")
    wait_for("a certificate", lambda: not _is_denied(stage, server.ipv4), deadline_s=30)
    stage.learn(server.ipv4)

    # A single certificate says nothing of the lane, which nobody proves by certificates: what is open may stay.
    certs = {each["identity"]: each["serial"] for each in mesh.ringfence(1, "certs")}
    with client.connect(server.ipv4, _PORT) as connection:
        mesh.lab("ringfence", "ca", "revoke", "serial", certs[client.identity], "--reason", "copied")
        try:
            wait_for(
                "another certificate",
                lambda: (
                    {each["identity"]: each["serial"] for each in mesh.ringfence(1, "certs")}[client.identity]
                    not in (None, certs[client.identity])
                ),
                deadline_s=30,
            )
            connection.sendall(b"z")
            assert connection.recv(1) == b"z"
            stage.learn(server.ipv4)
        finally:
            mesh.lab("ringfence", "ca", "revoke", "serial", certs[client.identity], "--undo")
    wait_for("every entry to be gone", stage.is_empty)


def _if_all(records: list[dict[str, Any]], number: int) -> list[dict[str, Any]] | None:
    return records if len(records) == number else None


def test_no_connection_that_the_last_policy_denies_survives_a_race_with_it(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server
    stage.learn(server.ipv4)
    taken = stage.taken()
    held: collections.deque[socket.socket] = collections.deque()
    over = threading.Event()

    def connect_all_the_time() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                held.append(stage.client.connect(server.ipv4, _PORT, timeout_s=2.0))
            if len(held) > 300:
                held.popleft().close()
            time.sleep(0.005)

    clients = [threading.Thread(target=connect_all_the_time) for _ in range(3)]
    for thread in clients:
        thread.start()
    try:
        for _ in range(4):
            mesh.lab("apply", "-", stdin=_DENY_CLIENT)
            mesh.lab("delete", _NO_CLIENT)
        mesh.lab("apply", "-", stdin=_DENY_CLIENT)
    finally:
        over.set()
        for thread in clients:
            thread.join()
    try:
        assert stage.taken() > taken + 20
        wait_for("every one to be cut", lambda: not any(map(_is_alive, held)))
    finally:
        for each in held:
            each.close()
        with contextlib.suppress(LabCommandError):
            mesh.lab("delete", _NO_CLIENT)
    wait_for("every entry to be gone", stage.is_empty)
    assert not mesh.metric(1, "ringfence_lane_lost_total")


def _is_alive(connection: socket.socket) -> bool:
    connection.settimeout(2.0)
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b"x"
    except OSError:
        return False


def test_a_forged_source_address_does_not_leave_the_pod(stage: LaneStage) -> None:
    mesh, server, client = stage.mesh, stage.server, stage.client
    stage.learn(server.ipv4)
    strangers = [mesh.pod("stranger", namespace="lane"), mesh.pod("outsider", namespace="lane", mesh=False)]
    stage.learn(server.ipv4)  # a new pod is guarded before the lane is used again
    with without_the_labs_own_rule():
        for stranger in strangers:
            for own, forged, target in (
                (stranger.ipv4, (client.ipv4, server.ipv4), server.ipv4),
                (stranger.ipv6, (client.ipv6, server.ipv6), server.ipv6),
            ):
                with server.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))) as seen:
                    seen.settimeout(60)
                    for source in (*forged, own):  # the last one shows that what came before would have been seen
                        send_syn(stranger, source, target, _PORT)
                    assert next_syn_source(seen, target, _PORT) == own


def test_without_the_agent_what_is_open_goes_on_and_is_recorded_when_it_is_back(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server
    stage.learn(server.ipv4)
    taken = stage.taken()
    staying = stage.client.connect(server.ipv4, _PORT)
    leaving = stage.client.connect(server.ipv4, _PORT)
    assert stage.taken() == taken + 2
    with mesh.stopped("agent-1", how="kill"):
        for each in (staying, leaving):
            each.sendall(b"on and on")
            assert each.recv(9) == b"on and on"
        leaving.close()
        with pytest.raises(ConnectionRefusedError):
            stage.client.connect(server.ipv4, _PORT)
    with staying:
        for direction in ("outbound", "inbound"):
            record = mesh.record(1, direction=direction, received_bytes=9)
            assert (record["sent_bytes"], record["source_workload"]) == (9, "lane/client")
            assert record["destination_workload"] == "lane/server"
        staying.sendall(b"and on")
        assert staying.recv(6) == b"and on"
        staying.settimeout(60)
        with mesh.applied(_DENY_CLIENT), pytest.raises(ConnectionAbortedError):  # who was here before it can be cut
            staying.recv(1)
    wait_for("every entry to be gone", stage.is_empty)


def test_a_pod_that_goes_leaves_nothing_behind(stage: LaneStage) -> None:
    mesh, server = stage.mesh, stage.server
    stage.learn(server.ipv4)
    with stage.client.connect(server.ipv4, _PORT) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        server.delete()
        connection.settimeout(60)
        with contextlib.suppress(ConnectionError):  # whichever came first: the end of the program, or of its pod
            assert not connection.recv(1)
    wait_for("the records", lambda: len(mesh.records(1, received_bytes=1, close_reason="workload_removed")) == 2)
    wait_for("every entry to be gone", lambda: stage.is_empty() and not stage.entries()["lanes"])
    links = Pins(_pins()).links
    wait_for("the addresses of one pod", lambda: stage.entries()["pod_addresses"] == 2)
    wait_for("the filter of one veth", lambda: len(list(links.glob("veth-*"))) == 1)


def _pins() -> Path:
    return Path(f"/sys/fs/bpf/ringfence_lab_{LAB_NAME}_node1")
