"""Point 1: enrolled to enrolled, by every way of naming the destination, on both IP versions."""

import socket

import pytest

from tests.mesh_builder import Mesh, wait_for

pytestmark = pytest.mark.mesh


@pytest.mark.parametrize("server_node", [1, 2], ids=["same-node", "other-node"])
@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_pod_address_carries_both_identities(mesh: Mesh, server_node: int, version: str) -> None:
    client = mesh.pod("client", node=1, service_account="cart")
    server = mesh.pod("server", node=server_node, service_account="store")
    server.serve_whoami(8080)
    destination = getattr(server, version)

    assert client.ask_whoami(destination, 8080) == ["server", getattr(client, version)]

    source = mesh.record(1, direction="outbound")
    target = mesh.record(server_node, direction="inbound")
    for record in (source, target):
        assert record["source_identity"] == client.identity == "spiffe://cluster.local/ns/default/sa/cart"
        assert record["destination_identity"] == server.identity == "spiffe://cluster.local/ns/default/sa/store"
        assert record["source_workload"] == "default/client"
        assert record["destination_workload"] == "default/server"
        assert record["connection_security_policy"] == "mutual_tls"
        assert record["close_reason"] == "ok"
        assert record["sent_bytes"] == len(f"server {getattr(client, version)}\n")
        assert record["received_bytes"] == 0


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_multipath_tcp_is_no_way_around(mesh: Mesh, version: str) -> None:
    """A program gets it by asking for another protocol number, and the packets are TCP's."""
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)

    def ask() -> bytes:
        family = socket.AF_INET if version == "ipv4" else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as made:
            made.settimeout(60)
            made.connect((getattr(server, version), 8080))
            return made.recv(100)

    assert client.inside(ask).split() == [b"server", getattr(client, version).encode()]
    assert mesh.record(2, direction="inbound")["connection_security_policy"] == "mutual_tls"


@pytest.mark.parametrize("version", [0, 1], ids=["ipv4", "ipv6"])
def test_service_address_spreads_over_both_nodes(mesh: Mesh, version: int) -> None:
    client = mesh.pod("client", node=1)
    for node in (1, 2):
        mesh.pod(f"web-{node}", node=node, labels={"app": "web"}).serve_whoami(8080)
    address = mesh.service("web", app="web", port=80, target_port=8080)[version]

    answers = [client.ask_whoami(address, 80)[0] for _ in range(40)]

    assert set(answers) == {"web-1", "web-2"}
    records = wait_for(
        "40 records", lambda: found if len(found := mesh.records(1, direction="outbound")) == 40 else None
    )
    assert {record["service"] for record in records} == {"default/web:80"}


def test_service_name_reaches_the_service(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("web-0", node=2, labels={"app": "web"})
    server.serve_whoami(8080)
    mesh.service("web", app="web", port=80, target_port=8080)

    for name in ("web", "web.default.svc.cluster.local"):
        done = client.run("sh", "-c", f"nc -w 5 {name} 80 </dev/null")
        assert done.stdout.split()[0] == b"web-0"


def test_counters_move_with_the_connection(mesh: Mesh) -> None:
    client = mesh.pod("counted", node=1, service_account="counted")
    server = mesh.pod("server", node=2)
    server.serve_echo(8080)
    labels = {"source_workload": "counted", "source_principal": str(client.identity)}

    with client.connect(server.ipv4, 8080) as connection:
        connection.sendall(b"x" * 1000)
        assert len(connection.recv(1000, 0x100)) == 1000
        wait_for(
            "an open connection",
            lambda: mesh.metric(1, "istio_tcp_connections_opened_total", reporter="source", **labels) == 1,
        )
        assert mesh.metric(1, "istio_tcp_connections_closed_total", reporter="source", **labels) == 0
    mesh.record(2, direction="inbound")
    mesh.record(1, direction="outbound")

    for node, reporter in ((1, "source"), (2, "destination")):
        seen = {
            name: mesh.metric(node, f"istio_tcp_{name}_total", reporter=reporter, **labels)
            for name in ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")
        }
        assert seen == {"connections_opened": 1, "connections_closed": 1, "sent_bytes": 1000, "received_bytes": 1000}
