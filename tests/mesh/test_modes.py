"""Point 3: where the mesh ends, in either direction, and what PeerAuthentication makes of it."""

import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.mesh_builder import Mesh, Pod, in_namespace, read_all, wait_for

pytestmark = pytest.mark.mesh

_PORT: Final = 8080
_OTHER_PORT: Final = 8090
_VERSIONS: Final = ("ipv4", "ipv6")
_NODE_2_GATEWAY: Final = "10.247.2.1"
_NOBODYS: Final = {"ipv4": "10.247.2.200", "ipv6": "fd52:4647:0:2::200"}


@dataclass
class Server:
    """A program that says who it is and whom it sees, and counts whom it saw."""

    pod: Pod
    accepted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for port in (_PORT, _OTHER_PORT):
            self.pod.serve(port, self._answer)

    def _answer(self, connection: socket.socket, peer: str) -> None:
        self.accepted.append(peer)
        connection.sendall(f"{self.pod.name} {peer}\n".encode())


@dataclass(frozen=True)
class Cast:
    """Who takes part: one pod of each kind on each side."""

    client: Pod
    old_client: Pod
    server: Server
    old_server: Server
    service: Mapping[str, str]
    old_service: Mapping[str, str]


@pytest.fixture(scope="module")
def company(session_mesh: Mesh) -> Iterator[Cast]:
    server = session_mesh.pod("store", node=2, service_account="store", labels={"app": "store"})
    old_server = session_mesh.pod("old", node=2, labels={"app": "old"}, mesh=False)
    try:
        yield Cast(
            client=session_mesh.pod("cart", node=1, service_account="cart"),
            old_client=session_mesh.pod("old-client", node=1, mesh=False),
            server=Server(server),
            old_server=Server(old_server),
            service=_service(session_mesh, "store"),
            old_service=_service(session_mesh, "old"),
        )
    finally:
        session_mesh.reset()


def _service(mesh: Mesh, app: str) -> Mapping[str, str]:
    return dict(zip(_VERSIONS, mesh.service(app, app=app, port=80, target_port=_PORT), strict=True))


@pytest.fixture
def cast(company: Cast, session_mesh: Mesh) -> Cast:
    session_mesh.begin_test()
    company.server.accepted.clear()
    company.old_server.accepted.clear()
    return company


@pytest.fixture
def lab(session_mesh: Mesh) -> Mesh:
    return session_mesh


# -- from an enrolled pod outwards ------------------------------------------------


@pytest.mark.parametrize("version", _VERSIONS)
def test_enrolled_to_not_enrolled_passes_in_plaintext_and_says_so(lab: Mesh, cast: Cast, version: str) -> None:
    address = getattr(cast.client, version)

    assert cast.client.ask_whoami(getattr(cast.old_server.pod, version), _PORT) == ["old", address]

    record = lab.record(1, direction="outbound")
    assert record["connection_security_policy"] == "none"
    assert record["source_workload"] == "default/cart"
    assert record["source_identity"] == cast.client.identity
    assert record["destination_workload"] == "default/old"
    assert record["destination_identity"] is None
    assert record["sent_bytes"] == len(f"old {address}\n")
    assert record["close_reason"] == "ok"
    assert lab.records(2) == [], "nobody captures a pod that is not enrolled"


@pytest.mark.parametrize("version", _VERSIONS)
def test_enrolled_to_a_service_of_pods_that_are_not_enrolled(lab: Mesh, cast: Cast, version: str) -> None:
    assert cast.client.ask_whoami(cast.old_service[version], 80) == ["old", getattr(cast.client, version)]

    record = lab.record(1, direction="outbound")
    assert (record["service"], record["connection_security_policy"]) == ("default/old:80", "none")
    assert record["destination_workload"] == "default/old"


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("node", [0, 1, 2])
def test_enrolled_to_an_address_outside_passes_in_plaintext(lab: Mesh, cast: Cast, node: int, version: str) -> None:
    outside = lab.node(node)
    outside.serve_whoami(_PORT)
    try:
        words = cast.client.ask_whoami(getattr(outside, version), _PORT)
    finally:
        outside.close()

    assert words == [f"node-{node}", getattr(cast.client, version)]
    record = lab.record(1, direction="outbound")
    assert record["connection_security_policy"] == "none"
    assert record["destination_workload"] is None
    assert record["service"] is None
    assert record["close_reason"] == "ok"


def test_the_counters_know_plaintext_from_mutual_tls(lab: Mesh, cast: Cast) -> None:
    name, labels = "istio_tcp_connections_opened_total", {"source_workload": "cart", "reporter": "source"}

    def opened() -> dict[str, float]:
        return {each: lab.metric(1, name, connection_security_policy=each, **labels) for each in ("none", "mutual_tls")}

    before = opened()
    cast.client.ask_whoami(cast.old_server.pod.ipv4, _PORT)
    cast.client.ask_whoami(cast.server.pod.ipv4, _PORT)
    wait_for("both records", lambda: len(lab.records(1)) == 2)
    assert opened() == {kind: count + 1 for kind, count in before.items()}


# -- from outside to an enrolled pod, without a policy -----------------------------


@pytest.mark.parametrize("version", _VERSIONS)
def test_not_enrolled_to_enrolled_is_accepted_by_default(lab: Mesh, cast: Cast, version: str) -> None:
    address = getattr(cast.old_client, version)

    assert cast.old_client.ask_whoami(getattr(cast.server.pod, version), _PORT) == ["store", address]

    record = lab.record(2, direction="inbound")
    assert record["connection_security_policy"] == "none"
    assert record["source_workload"] == "default/old-client"
    assert record["source_identity"] is None, "nobody proved it"
    assert record["destination_workload"] == "default/store"
    assert record["original_destination"].endswith(f":{_PORT}")
    assert record["sent_bytes"] == len(f"store {address}\n")
    assert record["close_reason"] == "ok"
    assert lab.records(1) == []


@pytest.mark.parametrize("version", _VERSIONS)
def test_not_enrolled_to_enrolled_over_a_service(lab: Mesh, cast: Cast, version: str) -> None:
    assert cast.old_client.ask_whoami(cast.service[version], 80) == ["store", getattr(cast.old_client, version)]
    assert lab.record(2, direction="inbound")["connection_security_policy"] == "none"


@pytest.mark.parametrize("node", [0, 1, 2])
def test_a_node_reaches_an_enrolled_pod_in_plaintext(lab: Mesh, cast: Cast, node: int) -> None:
    """Node 2 is the pod's own: health probes come from there."""
    outside = lab.node(node)
    seen = outside.ask_whoami(cast.server.pod.ipv4, _PORT)
    assert seen == ["store", _NODE_2_GATEWAY if node == 2 else outside.ipv4]
    assert lab.record(2, direction="inbound")["source_workload"] is None


# -- PeerAuthentication --------------------------------------------------------------


def _policy(
    name: str,
    mode: str | None,
    *,
    namespace: str = "default",
    app: str | None = None,
    ports: Mapping[int, str] | None = None,
) -> str:
    spec: list[str] = []
    if app is not None:
        spec.append(f"  selector: {{matchLabels: {{app: {app}}}}}\n")
    if mode is not None:
        spec.append(f"  mtls: {{mode: {mode}}}\n")
    if ports is not None:
        spec.append("  portLevelMtls:\n" + "".join(f"    {port}: {{mode: {each}}}\n" for port, each in ports.items()))
    body = "spec:\n" + "".join(spec) if spec else "spec: {}\n"
    metadata = f"metadata: {{name: {name}, namespace: {namespace}}}\n"
    return f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n{metadata}{body}---\n"


_STRICT_SCOPES: Final = {
    "mesh": _policy("mesh", "STRICT", namespace="istio-system"),
    "namespace": _policy("here", "STRICT"),
    "workload": _policy("store", "STRICT", app="store"),
    "port": _policy("port", None, app="store", ports={_PORT: "STRICT"}),
    "narrower than mesh": _policy("mesh", "PERMISSIVE", namespace="istio-system") + _policy("here", "STRICT"),
    "narrower than namespace": _policy("here", "DISABLE") + _policy("store", "STRICT", app="store"),
    "port narrower than workload": _policy("store", "DISABLE", app="store", ports={_PORT: "STRICT"}),
    "unset inherits from the namespace": _policy("here", "STRICT") + _policy("store", "UNSET", app="store"),
    "absent inherits from the mesh": _policy("mesh", "STRICT", namespace="istio-system") + _policy("here", None),
    "unset port inherits": _policy("store", "STRICT", app="store", ports={_PORT: "UNSET"}),
}

_OPEN_SCOPES: Final = {
    "DISABLE for the mesh": _policy("mesh", "DISABLE", namespace="istio-system"),
    "DISABLE for the namespace": _policy("here", "DISABLE"),
    "DISABLE for the workload": _policy("store", "DISABLE", app="store"),
    "PERMISSIVE workload in a STRICT mesh": _policy("mesh", "STRICT", namespace="istio-system")
    + _policy("store", "PERMISSIVE", app="store"),
    "PERMISSIVE namespace in a STRICT mesh": _policy("mesh", "STRICT", namespace="istio-system")
    + _policy("here", "PERMISSIVE"),
    "PERMISSIVE port of a STRICT workload": _policy("store", "STRICT", app="store", ports={_PORT: "PERMISSIVE"}),
    "STRICT for another workload": _policy("other", "STRICT", app="other"),
    "STRICT for another namespace": _policy("elsewhere", "STRICT", namespace="elsewhere"),
    "STRICT for another port": _policy("port", None, app="store", ports={_OTHER_PORT: "STRICT"}),
    "UNSET everywhere": _policy("mesh", "UNSET", namespace="istio-system") + _policy("here", "UNSET"),
}


def _assert_refused(lab: Mesh, cast: Cast, version: str = "ipv4", *, port: int = _PORT) -> dict[str, Any]:
    """The client sees a RST, the application nothing, the operator a reason; returns the record."""
    seen_before = len(lab.records(2, close_reason="plaintext_refused"))
    _assert_reset(cast.old_client, getattr(cast.server.pod, version), port)
    records = wait_for("a record", lambda: lab.records(2, close_reason="plaintext_refused")[seen_before:])
    assert len(records) == 1
    record = records[0]
    assert record["direction"] == "inbound"
    assert record["source_workload"] == "default/old-client"
    assert record["destination_workload"] == "default/store"
    assert record["response_flags"] == "DENY"
    assert "STRICT" in record["detail"]
    assert record["connect_ms"] is None
    assert cast.server.accepted == []
    return record


def _assert_reset(client: Pod, ip: str, port: int) -> None:
    try:
        with client.connect(ip, port) as connection:
            connection.sendall(b"let me in")
            data = connection.recv(100)
    except (ConnectionResetError, BrokenPipeError):
        return
    raise AssertionError(f"expected a RST from {ip} port {port}, got {data!r}")


@pytest.mark.parametrize("scope", _STRICT_SCOPES)
def test_strict_refuses_plaintext_and_only_that(lab: Mesh, cast: Cast, scope: str) -> None:
    with lab.applied(_STRICT_SCOPES[scope]):
        _assert_refused(lab, cast)
        _assert_refused(lab, cast, "ipv6")
        assert cast.client.ask_whoami(cast.server.pod.ipv4, _PORT) == ["store", cast.client.ipv4]
        assert cast.client.ask_whoami(cast.service["ipv6"], 80) == ["store", cast.client.ipv6]
    # What is deleted is no longer in force, for the very next connection.
    assert cast.old_client.ask_whoami(cast.server.pod.ipv4, _PORT) == ["store", cast.old_client.ipv4]


@pytest.mark.parametrize("scope", _OPEN_SCOPES)
def test_what_is_not_strict_accepts_plaintext_and_tunnels(lab: Mesh, cast: Cast, scope: str) -> None:
    with lab.applied(_OPEN_SCOPES[scope]):
        assert cast.old_client.ask_whoami(cast.server.pod.ipv4, _PORT) == ["store", cast.old_client.ipv4]
        assert cast.client.ask_whoami(cast.server.pod.ipv4, _PORT) == ["store", cast.client.ipv4]
    assert lab.record(1, direction="outbound")["connection_security_policy"] == "mutual_tls"
    policies = wait_for("two records", lambda: found if len(found := lab.records(2)) == 2 else None)
    assert {record["connection_security_policy"] for record in policies} == {"none", "mutual_tls"}


def test_strict_on_one_port_leaves_the_others_open(lab: Mesh, cast: Cast) -> None:
    with lab.applied(_policy("port", "PERMISSIVE", app="store", ports={_PORT: "STRICT"})):
        _assert_refused(lab, cast)
        assert cast.old_client.ask_whoami(cast.server.pod.ipv4, _OTHER_PORT) == ["store", cast.old_client.ipv4]


@pytest.mark.parametrize("version", _VERSIONS)
def test_strict_refuses_plaintext_over_a_service(lab: Mesh, cast: Cast, version: str) -> None:
    with lab.applied(_STRICT_SCOPES["namespace"]):
        _assert_reset(cast.old_client, cast.service[version], 80)
        assert lab.record(2, direction="inbound")["close_reason"] == "plaintext_refused"
        assert cast.client.ask_whoami(cast.service[version], 80) == ["store", getattr(cast.client, version)]


@pytest.mark.parametrize("node", [0, 2])
def test_strict_refuses_the_nodes_too(lab: Mesh, cast: Cast, node: int) -> None:
    with lab.applied(_STRICT_SCOPES["namespace"]):
        _assert_reset(lab.node(node), cast.server.pod.ipv4, _PORT)
        assert lab.record(2, direction="inbound")["close_reason"] == "plaintext_refused"
    assert cast.server.accepted == []


def test_strict_is_no_business_of_pods_that_are_not_enrolled(lab: Mesh, cast: Cast) -> None:
    with lab.applied(_STRICT_SCOPES["mesh"]):
        assert cast.old_client.ask_whoami(cast.old_server.pod.ipv4, _PORT)[0] == "old"
        assert cast.client.ask_whoami(cast.old_server.pod.ipv4, _PORT)[0] == "old"


def test_a_change_of_mode_takes_effect_for_the_next_connection(lab: Mesh, cast: Cast) -> None:
    for mode in ("STRICT", "PERMISSIVE", "STRICT", "DISABLE"):
        with lab.applied(_policy("store", mode, app="store")):
            cast.server.accepted.clear()
            if mode == "STRICT":
                _assert_refused(lab, cast)
            else:
                assert cast.old_client.ask_whoami(cast.server.pod.ipv4, _PORT)[0] == "store"


def test_a_mode_that_becomes_strict_ends_plaintext_that_is_running_and_spares_tunnels(lab: Mesh, cast: Cast) -> None:
    """What may not begin may not go on: whoever asks for STRICT wants no plaintext, also none of yesterday."""
    cast.server.pod.serve_echo(7000)
    with (
        cast.old_client.connect(cast.server.pod.ipv4, 7000) as plain,
        cast.client.connect(cast.server.pod.ipv4, 7000) as tunnelled,
    ):
        for running in (plain, tunnelled):
            running.sendall(b"a")
            assert running.recv(1) == b"a"
        with lab.applied(_STRICT_SCOPES["namespace"]):
            with pytest.raises(ConnectionResetError):
                plain.recv(1)
            _assert_reset(cast.old_client, cast.server.pod.ipv4, 7000)
            tunnelled.sendall(b"b")
            assert tunnelled.recv(1) == b"b"
        tunnelled.shutdown(socket.SHUT_WR)
        assert read_all(tunnelled) == b""


# -- enrolment changes ---------------------------------------------------------------


def test_a_pod_may_be_enrolled_and_taken_out_while_it_runs(lab: Mesh, cast: Cast) -> None:
    """Each time the very next connection goes the new way, from both kinds of clients, and none is lost between."""
    pod = lab.pod("wanderer", node=2, service_account="wanderer", mesh=False)
    Server(pod)
    for label, policy in (("enabled", "mutual_tls"), ("disabled", "none"), ("enabled", "mutual_tls")):
        lab.begin_test()
        lab.apply(
            "apiVersion: v1\nkind: Pod\n"
            f"metadata: {{name: wanderer, namespace: default, labels: {{ringfence.io/mesh: {label}}}}}\n"
            "spec: {serviceAccountName: wanderer}\n"
        )
        wait_for(f"{label} to be in force", lambda: _reaches(cast.client, pod))
        assert cast.client.ask_whoami(pod.ipv4, _PORT) == ["wanderer", cast.client.ipv4]
        assert cast.client.ask_whoami(pod.ipv6, _PORT) == ["wanderer", cast.client.ipv6]
        assert cast.old_client.ask_whoami(pod.ipv4, _PORT) == ["wanderer", cast.old_client.ipv4]
        records = wait_for("records", lambda: found if len(found := lab.records(1, close_reason="ok")) >= 3 else None)
        assert {record["connection_security_policy"] for record in records} == {policy}
        # What did not work in between was refused: it was never sent the other way.
        assert {record["connection_security_policy"] for record in lab.records(1)} == {policy}


def _reaches(client: Pod, pod: Pod) -> bool:
    try:
        return client.ask_whoami(pod.ipv4, _PORT) != []
    except ConnectionError:
        return False


# -- what must never be sent in plaintext ----------------------------------------------


@pytest.mark.parametrize("version", _VERSIONS)
def test_an_address_of_the_pod_network_that_no_workload_has_is_refused(lab: Mesh, cast: Cast, version: str) -> None:
    """Somebody does listen there, in plaintext: a pod whose manifest has not arrived, or a squatter."""
    with _Squatter(lab, version) as squatter:
        _assert_reset(cast.client, _NOBODYS[version], _PORT)
        assert squatter.accepted == 0

    record = lab.record(1, direction="outbound")
    assert record["close_reason"] == "unknown_destination"
    assert "not sent in plaintext" in record["detail"]


@pytest.mark.parametrize("version", _VERSIONS)
def test_an_endpoint_in_the_pod_network_that_is_no_workload_is_refused(lab: Mesh, cast: Cast, version: str) -> None:
    """An EndpointSlice may arrive before its Pod does."""
    manifest = f"""\
apiVersion: v1
kind: Service
metadata: {{name: early, namespace: default}}
spec: {{ipFamilyPolicy: PreferDualStack, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: early-1, namespace: default, labels: {{kubernetes.io/service-name: early}}}}
addressType: {version.replace("ipv", "IPv")}
ports: [{{port: {_PORT}}}]
endpoints: [{{addresses: ["{_NOBODYS[version]}"], conditions: {{ready: true}}}}]
"""
    with lab.applied(manifest), _Squatter(lab, version) as squatter:
        (row,) = [row for row in lab.ringfence(1, "services") if row["name"] == "early"]
        (ip,) = [ip for ip in row["cluster_ips"] if (":" in ip) == (version == "ipv6")]
        _assert_reset(cast.client, ip, 80)
        assert squatter.accepted == 0

    record = lab.record(1, direction="outbound")
    assert record["service"] == "default/early:80"
    assert record["close_reason"] == "unknown_destination"


class _Squatter:
    """Puts an address of node 2's pod network on that node, and listens."""

    def __init__(self, lab: Mesh, version: str) -> None:
        self._node = lab.node(2)
        self._address = f"{_NOBODYS[version]}/{32 if version == 'ipv4' else 128}"
        self.accepted = 0

    def _ip(self, verb: str) -> None:
        import subprocess

        command = ["ip", "address", verb, self._address, "dev", "lo"]
        in_namespace(self._node.netns, lambda: subprocess.run(command, check=True))

    def __enter__(self) -> "_Squatter":
        self._ip("add")
        self._listener = self._node.listen(_PORT)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._ip("del")

    def _accept(self) -> None:
        try:
            while True:
                self._listener.accept()[0].close()
                self.accepted += 1
        except OSError:
            return


# -- the agent's own listeners ------------------------------------------------------------


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.9.9", "::1", "own-ipv4", "own-ipv6"])
@pytest.mark.parametrize("port", [15001, 15006])
def test_a_pod_that_dials_the_agents_listeners_of_its_own_is_refused(lab: Mesh, cast: Cast, ip: str, port: int) -> None:
    address = getattr(cast.client, ip.removeprefix("own-")) if ip.startswith("own-") else ip
    before = lab.ringfence(1, "status")["connections"]["total"]

    _assert_reset(cast.client, address, port)

    record = lab.record(1)
    assert record["close_reason"] in ("destination_not_allowed", "unknown_destination")
    assert lab.ringfence(1, "status")["connections"]["total"] == before + 1, "it did not go round in circles"


@pytest.mark.parametrize("port", [15001, 15006])
@pytest.mark.parametrize("version", _VERSIONS)
def test_the_listeners_of_an_agent_are_no_destination(lab: Mesh, cast: Cast, version: str, port: int) -> None:
    ip = getattr(cast.server.pod, version)
    _assert_reset(cast.old_client, ip, port)
    _assert_reset(cast.client, ip, port)
    assert lab.record(2, direction="inbound")["close_reason"] == "destination_not_allowed"
    assert lab.record(1, direction="outbound")["close_reason"] == "destination_not_allowed"
