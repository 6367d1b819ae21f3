"""Connect-time balancing with agents: services outside of the mesh need no proxy, and nothing else does without it."""

import threading
import time
from contextlib import suppress

import pytest

from tests.mesh_builder import WORKERS, Mesh, Pod, read_all, wait_for

pytestmark = pytest.mark.mesh

_PORT = 8080
_LONG_S = 60.0
_AT_CONNECT = "{ringfence.io/balance: connect}"
_LIMITED = """\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {name: limited, namespace: default}
spec: {targetRef: {kind: Service, name: web}, limits: {maxConnections: 100}}
"""
_CHECKED = """\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {name: checked, namespace: default}
spec:
  targetRef: {kind: Service, name: web}
  healthCheck: {interval: 5s, timeout: 5s, unhealthyThreshold: 1, healthyThreshold: 1}
"""


class _Stage:
    """A client in the mesh, and a service of two pods that are not."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.client = mesh.pod("client", service_account="client")
        self.servers = [self.server(f"web-{node}", node) for node in (1, 2)]
        self.cluster4, self.cluster6 = mesh.service(
            "web", app="web", port=80, target_port=_PORT, annotations=_AT_CONNECT
        )

    def server(self, name: str, node: int, *, mesh: bool = False) -> Pod:
        made = self.mesh.pod(name, node=node, labels={"app": "web"}, mesh=mesh)
        made.serve_whoami(_PORT)
        return made

    def why_not(self, service: str = "web") -> str | None:
        """What the agent says; None: it is balanced."""
        answer = self.mesh.ringfence(1, "explain", "default/client", f"default/{service}:80")
        (traffic,) = answer["traffic"]
        said = traffic["at_connect"]
        assert said["balanced"] is (said["why_not"] is None)
        why: str | None = said["why_not"]
        return why

    def wait_until_balanced(self) -> None:
        wait_for("the service to be balanced", lambda: self.why_not() is None, deadline_s=_LONG_S)

    def wait_until_with_the_agent(self, why: str) -> None:
        wait_for(f"{why!r}", lambda: why in (self.why_not() or ""), deadline_s=_LONG_S)

    def balanced(self) -> int:
        return int(self.mesh.metric(1, "ringfence_connect_balanced_total"))

    def ask(self, ip: str) -> list[str]:
        """Who answered, and whom it has seen."""
        with self.client.connect(ip, 80) as connection:
            assert connection.getpeername()[:2] == (ip, 80)
            return read_all(connection).decode().split()


@pytest.fixture
def stage(mesh: Mesh) -> _Stage:
    return _Stage(mesh)


def test_a_service_outside_of_the_mesh_is_reached_without_the_agent(stage: _Stage) -> None:
    mesh, client = stage.mesh, stage.client
    stage.wait_until_balanced()
    before = stage.balanced()
    seen = set()
    for ip in (stage.cluster4, stage.cluster6, f"::ffff:{stage.cluster4}") * 8:
        name, address, *_ = stage.ask(ip)
        seen.add(name)
        assert address.removeprefix("::ffff:") == (client.ipv6 if ip == stage.cluster6 else client.ipv4)
    assert seen <= {"web-1", "web-2"}
    assert stage.balanced() == before + 24
    assert mesh.metric(1, "ringfence_connect_services") == 2

    # Nobody is there any more: refused at once, by the kernel.
    for server in list(stage.servers):
        mesh.delete_pod(server)
    for ip in (stage.cluster4, stage.cluster6):
        wait_for("nobody to be there", lambda: _is_refused(client, ip), deadline_s=_LONG_S)  # noqa: B023
    assert mesh.metric(1, "ringfence_connect_refused_total")
    assert mesh.records(1) == []


def _is_refused(client: Pod, ip: str) -> bool:
    try:
        client.connect(ip, 80, timeout_s=2.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # to the address of a pod that has just gone
    return False


def test_what_needs_the_agent_goes_through_it(stage: _Stage) -> None:
    mesh, client = stage.mesh, stage.client
    secret = mesh.pod("secret", node=2, labels={"app": "secret"})
    secret.serve_whoami(_PORT)
    cluster4, _ = mesh.service("secret", app="secret", port=80, target_port=_PORT, annotations=_AT_CONNECT)
    stage.wait_until_balanced()
    before = stage.balanced()

    # In the mesh: a tunnel, whatever is asked for.
    with client.connect(cluster4, 80) as connection:
        assert read_all(connection).split()[0] == b"secret"
    assert mesh.record(1, service="default/secret:80")["connection_security_policy"] == "mutual_tls"
    wait_for("the reason", lambda: stage.why_not("secret") == "its endpoint default/secret is in the mesh")

    with mesh.applied(_LIMITED):
        stage.wait_until_with_the_agent("its TrafficPolicy wants limits, rate limits or faults")
        stage.ask(stage.cluster4)
    stage.wait_until_balanced()

    # One endpoint that is in the mesh is enough.
    another = stage.server("web-3", 2, mesh=True)
    stage.wait_until_with_the_agent("its endpoint default/web-3 is in the mesh")
    for _ in range(8):
        stage.ask(stage.cluster4)
    assert stage.balanced() == before
    wait_for("their records", lambda: len(mesh.records(1, direction="outbound", service="default/web:80")) == 9)
    for record in mesh.records(1, direction="outbound", service="default/web:80"):
        is_enrolled = record["destination_workload"] == "default/web-3"
        assert record["connection_security_policy"] == ("mutual_tls" if is_enrolled else "none")
    mesh.delete_pod(another)
    stage.wait_until_balanced()
    stage.ask(stage.cluster6)
    assert stage.balanced() == before + 1


def test_changes_and_health_are_followed_and_no_connect_fails(stage: _Stage) -> None:
    mesh, client = stage.mesh, stage.client
    stage.wait_until_balanced()
    failures: list[OSError] = []
    served: list[str] = []
    over = threading.Event()

    def connect_all_the_time() -> None:
        while not over.is_set():
            try:
                served.append(stage.ask(stage.cluster4)[0])
            except OSError as error:
                failures.append(error)
            time.sleep(0.002)

    def next_ones() -> set[str]:
        count = len(served)
        wait_for("ten more connections", lambda: len(served) >= count + 10 or failures, deadline_s=_LONG_S)
        return set(served[count + 1 :])  # the first may have begun before

    thread = threading.Thread(target=connect_all_the_time)
    thread.start()
    try:
        for _ in range(3):
            for server in stage.servers:
                mesh.apply(_slice(server))
                wait_for(f"{server.name} alone", lambda: next_ones() == {server.name}, deadline_s=_LONG_S)  # noqa: B023
        with mesh.stopped("agent-1", how="kill"):
            assert next_ones() == {"web-2"}
        assert next_ones() == {"web-2"}
        mesh.apply(_slice(*stage.servers))
        wait_for("both", lambda: next_ones() == {"web-1", "web-2"}, deadline_s=_LONG_S)
    finally:
        over.set()
        thread.join()
    assert not failures
    assert mesh.records(1, direction="outbound") == []
    wait_for("nobody by IPv6", lambda: _is_refused(client, stage.cluster6), deadline_s=_LONG_S)

    with mesh.applied(_CHECKED):
        if int(WORKERS) > 1:
            stage.wait_until_with_the_agent("its TrafficPolicy wants health checks")
            return
        stage.servers[0].close()
        wait_for("the dead one to be found out", lambda: _health(mesh) == "unhealthy", deadline_s=_LONG_S)

        def is_without_the_dead_one() -> bool:
            before = stage.balanced()
            served = []
            with suppress(OSError):
                served = [stage.ask(stage.cluster4)[0] for _ in range(10)]
            return served == ["web-2"] * 10 and stage.balanced() == before + 10

        wait_for("it to be left out at connect", is_without_the_dead_one, deadline_s=_LONG_S)

    # Without checks the first connects that fail are told to the agent, which ejects.
    wait_for("a connect to fail", lambda: _is_refused(client, stage.cluster4), deadline_s=_LONG_S)
    wait_for(
        "no connect to fail any more",
        lambda: not any(_is_refused(client, stage.cluster4) for _ in range(20)),
        deadline_s=_LONG_S,
    )


def _health(mesh: Mesh) -> str:
    """What the agent holds of web-1."""
    rows = [row for row in mesh.ringfence(1, "endpoints", "web") if row["workload"] == "default/web-1"]
    return str(rows[0]["health"])


def _slice(*servers: Pod) -> str:
    """Who serves it, by IPv4 only."""
    addresses = ", ".join(f"{{addresses: [{each.ipv4}]}}" for each in servers)
    return (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
        "metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}\n"
        f'addressType: IPv4\nports: [{{name: "", port: {_PORT}, protocol: TCP}}]\nendpoints: [{addresses}]\n'
    )
