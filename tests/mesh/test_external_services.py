"""Places outside of the mesh, by the names that a DNS server of the lab tells."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.dns_server import DnsServer, listen
from tests.mesh_builder import STATE_DIR, Mesh, Pod, in_namespace, wait_for

pytestmark = pytest.mark.mesh

_ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example]
  ports: [{number: 9000, name: tls, protocol: TLS}]
  resolution: DNS
"""

_POLICY = """\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {{name: api}}
spec:
  targetRef: {{kind: ServiceEntry, name: api}}
  loadBalancing: {{policy: round-robin}}
  {spec}
"""


@pytest.fixture
def outside(mesh: Mesh) -> Iterator[list[Pod]]:
    """Two servers that are no pods: nodes, on port 9000."""
    servers = [mesh.node(0), mesh.node(2)]
    for each in servers:
        each.serve_whoami(9000)
    yield servers
    for each in servers:
        each.close()


@pytest.fixture
def dns(mesh: Mesh) -> Iterator[DnsServer]:
    server = DnsServer({}, lambda: in_namespace(mesh.node_netns(2), partial(listen, "10.247.0.12")))
    yield server
    server.close()


@contextmanager
def _asks(mesh: Mesh, dns: DnsServer, *, policy: str = "allow-any") -> Iterator[None]:
    """Agent 1 asks this server, and lets out what ``policy`` says."""
    path = STATE_DIR / "agent-1" / "agent.toml"
    before = path.read_text()
    try:
        path.write_text(
            f'{before}\n[proxy]\noutbound_traffic_policy = "{policy}"\n[dns]\nservers = ["10.247.0.12:{dns.port}"]\n'
        )
        mesh.lab("restart", "agent-1")
        yield
    finally:
        path.write_text(before)
        mesh.lab("restart", "agent-1")


def _known(mesh: Mesh, name: str) -> set[str]:
    """The addresses that agent 1 connects to."""
    return {row["address"] for row in mesh.ringfence(1, "endpoints") if row["service"] == f"default/{name}"}


def test_what_is_declared_is_balanced_and_all_that_registry_only_lets_out(
    mesh: Mesh, outside: list[Pod], dns: DnsServer
) -> None:
    first, second = outside
    dns.zone["api.example"] = [(5, "CNAME", "cdn.example.")]
    dns.zone["cdn.example"] = [
        (5, kind, ip) for each in outside for kind, ip in (("A", each.ipv4), ("AAAA", each.ipv6))
    ]
    client = mesh.pod("client", node=1)
    second.serve_whoami(9001)
    mesh.apply(_ENTRY)
    mesh.apply(_POLICY.format(spec=""))
    with _asks(mesh, dns, policy="registry-only"):
        wait_for("the addresses", lambda: len(_known(mesh, "api")) == 4)
        for ip, names in ((first.ipv4, {"node-0", "node-2"}), (second.ipv6, {"node-0", "node-2"})):
            answers = Counter(client.ask_whoami(ip, 9000)[0] for _ in range(20))
            assert set(answers) == names, "whichever address was asked for"
        record = mesh.records(1, direction="outbound", service="default/api:9000")[-1]
        assert record["connection_security_policy"] == "none"
        assert record["close_reason"] == "ok"
        assert (
            mesh.metric(1, "istio_tcp_connections_opened_total", destination_service="api.default.svc.cluster.local")
            == 40
        )

        with pytest.raises(ConnectionResetError):
            client.ask_whoami(second.ipv4, 9001)
        assert mesh.record(1, close_reason="destination_not_allowed")["service"] is None


def test_an_address_that_refuses_is_noticed_by_nobody(mesh: Mesh, outside: list[Pod], dns: DnsServer) -> None:
    first, second = outside
    dns.zone["api.example"] = [(5, "A", first.ipv4), (5, "A", second.ipv4)]
    client = mesh.pod("client", node=1)
    mesh.apply(_ENTRY)
    mesh.apply(_POLICY.format(spec="outlierDetection: {consecutiveConnectFailures: 2, maxEjectionPercent: 50}"))
    with _asks(mesh, dns):
        wait_for("the addresses", lambda: len(_known(mesh, "api")) == 2)
        first.close()
        wait_for(
            "the ejection",
            lambda: (
                client.ask_whoami(first.ipv4, 9000)[0] == "node-2"
                and any(row["health"] != "healthy" for row in mesh.ringfence(1, "endpoints", "api"))
            ),
        )
        assert all(record["close_reason"] == "ok" for record in mesh.records(1, service="default/api:9000"))


def test_dns_that_changes_moves_connections_and_dns_that_fails_moves_nothing(
    mesh: Mesh, outside: list[Pod], dns: DnsServer
) -> None:
    first, second = outside
    dns.zone["smtp.example"] = [(0, "A", first.ipv4)]
    client = mesh.pod("client", node=1)
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: mail}\n"
        "spec: {type: ExternalName, externalName: smtp.example, ports: [{port: 9000}]}\n"
    )
    with _asks(mesh, dns, policy="registry-only"):
        wait_for("the address", lambda: _known(mesh, "mail") == {f"{first.ipv4}:9000"})
        assert client.ask_whoami(first.ipv4, 9000)[0] == "node-0"

        dns.zone["smtp.example"] = [(0, "A", second.ipv4)]
        wait_for("the other address", lambda: _known(mesh, "mail") == {f"{second.ipv4}:9000"})
        assert client.ask_whoami(first.ipv4, 9000)[0] == "node-2", "an application may know the old address for a while"

        dns.mood = "refused"
        wait_for("the warning", lambda: _warned(mesh, "smtp.example can not be resolved: no usable answer"))
        assert client.ask_whoami(second.ipv4, 9000)[0] == "node-2"

        dns.mood = "good"
        wait_for("the end of the warning", lambda: not _warned(mesh, "smtp.example"))


def test_dns_takes_no_address_of_the_mesh(mesh: Mesh, outside: list[Pod], dns: DnsServer) -> None:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_whoami(9000)
    dns.zone["api.example"] = [(5, "A", server.ipv4), (5, "A", outside[1].ipv4)]
    mesh.apply(_ENTRY)
    with _asks(mesh, dns):
        wait_for("the addresses", lambda: len(_known(mesh, "api")) == 2)
        assert client.ask_whoami(server.ipv4, 9000)[0] == "server"
        assert (
            mesh.record(1, direction="outbound", destination_workload="default/server")["connection_security_policy"]
            == "mutual_tls"
        )
        assert {client.ask_whoami(outside[1].ipv4, 9000)[0] for _ in range(10)} == {"node-2"}


def test_a_name_that_does_not_exist_is_told_and_disturbs_nobody(mesh: Mesh, dns: DnsServer) -> None:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_whoami(8080)
    mesh.apply(_ENTRY)
    with _asks(mesh, dns):
        wait_for("the warning", lambda: _warned(mesh, "api.example can not be resolved: DNS says"))
        assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
        (row,) = (row for row in mesh.ringfence(1, "services") if row["name"] == "api")
        assert (row["kind"], row["hosts"], row["endpoints"]) == ("ServiceEntry", ["api.example"], 0)


def _warned(mesh: Mesh, words: str) -> bool:
    return any(words in line for line in mesh.ringfence(1, "status")["warnings"])
