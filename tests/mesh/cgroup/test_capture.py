"""Point 2 of the BPF work: a workload is a cgroup of a node whose network it shares with others."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from bpf import preconditions, syscalls
from bpf.abi import abi
from bpf.pins import Pins, State, open_state
from tests.cgroup_sockets import in_cgroup
from tests.mesh_builder import LAB_NAME, ROOT, STATE_DIR, Mesh, Pod, in_namespace, read_all, wait_for
from tests.welcoming import welcome_all

pytestmark = pytest.mark.mesh

_PORT: Final = 8080
_CONNECTS: Final = int(os.environ.get("RINGFENCE_TEST_CONNECTS", "2000"))
_CLIENTS: Final = 4
_SO_MARK: Final = 36
_RINGFENCE: Final = str(ROOT / ".venv/bin/ringfence")
_STRICT: Final = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture
def client(mesh: Mesh) -> Pod:
    return mesh.pod("client", node=1, service_account="client")


@pytest.fixture
def server(mesh: Mesh) -> Pod:
    made = mesh.pod("server", node=2, service_account="server")
    made.serve_whoami(_PORT)
    return made


def _pins(node: int) -> Path:
    return Path(f"/sys/fs/bpf/ringfence_lab_{LAB_NAME}_node{node}")


def _status(mesh: Mesh, node: int) -> Any:
    return mesh.ringfence(node, "bpf", "status")


def _entries(mesh: Mesh, node: int) -> dict[str, int]:
    return {each["name"]: each["entries"] for each in _status(mesh, node)["maps"]}


def _links(node: int) -> dict[str, int]:
    found = {}
    for path in _pins(node).glob("links/*/*"):
        fd = syscalls.open_pin(path)
        found[f"{path.parent.name}/{path.name}"] = syscalls.link_info(fd).id
        os.close(fd)
    return found


def test_a_program_is_told_that_it_is_connected_to_what_it_asked_for(mesh: Mesh, client: Pod, server: Pod) -> None:
    for asked in (server.ipv4, server.ipv6, f"::ffff:{server.ipv4}"):
        with client.connect(asked, _PORT) as connection:
            assert connection.getpeername()[:2] == (asked, _PORT)
            assert read_all(connection).split()[0] == b"server"
    records = wait_for("three records", lambda: found if len(found := mesh.records(1)) == 3 else None)
    for record in records:
        assert record["connection_security_policy"] == "mutual_tls"
        assert record["source_identity"] == client.identity
    destinations = [f"{server.ipv4}:{_PORT}", f"[{server.ipv6}]:{_PORT}", f"{server.ipv4}:{_PORT}"]
    assert [record["original_destination"] for record in records] == destinations


def test_every_connection_finds_where_it_was_going_and_nothing_is_left_behind(
    mesh: Mesh, client: Pod, server: Pod
) -> None:
    """Some of them hang up before the agent has accepted: their destination has to be known all the same."""
    each = _CONNECTS // _CLIENTS
    command = [sys.executable, "-c", _STORM, server.ipv4, str(_PORT), str(each)]
    storms = [client.spawn(*command, stdout=subprocess.PIPE) for _ in range(_CLIENTS)]
    for storm in storms:
        out, _ = storm.communicate(timeout=900)
        assert out == b"%d\n" % each

    wait_for("all of them recorded", lambda: len(mesh.records(1, direction="outbound")) == _CLIENTS * each)
    records = mesh.records(1, direction="outbound")
    assert {record["original_destination"] for record in records} == {f"{server.ipv4}:{_PORT}"}
    wait_for("empty maps", lambda: _entries(mesh, 1)["flows"] == _entries(mesh, 1)["originals"] == 0)


_STORM: Final = """
import socket, sys
ip, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
good = 0
for number in range(count):
    with socket.create_connection((ip, port), 20) as connection:
        if number % 4:
            good += connection.recv(100)[:6] == b"server"
        else:
            good += 1
print(good)
"""


def test_what_is_no_tcp_and_what_stays_on_the_loopback_is_untouched(mesh: Mesh, client: Pod) -> None:
    outside = mesh.node(2)

    def answer() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((outside.ipv4, _PORT))
        made.settimeout(60)
        return made

    def datagram() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.connect((outside.ipv4, _PORT))
        made.settimeout(60)
        return made

    with in_namespace(outside.netns, answer) as far, client.inside(datagram) as near:
        near.send(b"question")
        question, address = far.recvfrom(100)
        far.sendto(question, address)
        assert near.recv(100) == b"question"
        assert near.getpeername() == (outside.ipv4, _PORT)
    client.serve_whoami(_PORT)
    with (
        client.listen(_PORT + 1) as listener,
        client.inside(lambda: socket.create_connection(("127.0.0.1", _PORT + 1))),
    ):
        listener.accept()[0].close()
    assert mesh.records(1) == []


def test_a_socket_with_the_agents_mark_is_not_captured(mesh: Mesh, client: Pod) -> None:
    outside = mesh.pod("outside", node=2, mesh=False)
    outside.serve_whoami(_PORT)

    def marked() -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, _SO_MARK, abi().constants["AGENT_MARK"])
        made.settimeout(60)
        made.connect((outside.ipv4, _PORT))
        return made

    with client.inside(marked) as connection:
        assert read_all(connection).split()[0] == b"outside"
    assert mesh.records(1) == []


def test_agent_killed_stays_closed_also_for_who_takes_its_port_and_the_next_one_finds_the_same_links(
    mesh: Mesh, client: Pod, server: Pod
) -> None:
    assert client.ask_whoami(server.ipv4, _PORT)[0] == "server"
    before = _links(1)
    assert len(before) == 7
    with mesh.stopped("agent-1", how="kill"):
        with in_namespace(client.netns, lambda: socket.create_server((client.ipv4, 15001))) as thief:
            thief.settimeout(0.5)
            for ip in (server.ipv4, server.ipv6):
                with pytest.raises(ConnectionRefusedError):
                    client.connect(ip, _PORT)
            with pytest.raises(TimeoutError):
                thief.accept()
        assert _links(1) == before
    assert _links(1) == before
    assert client.ask_whoami(server.ipv4, _PORT)[0] == "server"


def test_agent_killed_lets_no_plaintext_in(mesh: Mesh, server: Pod) -> None:
    old = mesh.pod("old", node=1, mesh=False)
    assert old.ask_whoami(server.ipv4, _PORT) == ["server", old.ipv4]
    with mesh.stopped("agent-2", how="kill"), pytest.raises(ConnectionRefusedError):
        old.connect(server.ipv4, _PORT)


def _reaches(pod: Pod, ip: str, port: int) -> bool:
    try:
        pod.connect(ip, port, timeout_s=0.5).close()
    except OSError:
        return False
    return True


def test_a_program_that_listens_on_all_addresses_is_reached_through_the_agent_alone(mesh: Mesh) -> None:
    old = mesh.pod("old", node=1, mesh=False)
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    neighbour = mesh.pod("neighbour", node=2)
    with server.listen(_PORT) as listener:  # on every address of node 2
        threading.Thread(target=welcome_all, args=(listener,), daemon=True).start()
        with client.connect(server.ipv4, _PORT) as connection:
            assert read_all(connection) == b"welcome"
        assert _reaches(old, server.ipv4, _PORT), "PERMISSIVE, and recorded"
        assert mesh.record(2, source_workload="default/old")["connection_security_policy"] == "none"

        node = mesh.node(2)
        assert not _reaches(old, node.ipv4, _PORT), "the node's own address is no way round"
        assert not _reaches(old, node.ipv6, _PORT)
        assert not _reaches(node, node.ipv4, _PORT), "neither from the node itself"
        # Judged by the policies of the neighbour, so nothing for the server.
        with client.connect(neighbour.ipv4, _PORT, timeout_s=60) as connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        with mesh.applied(_STRICT):
            assert not _is_answered(old, server.ipv4)
            with client.connect(server.ipv4, _PORT) as connection:
                assert read_all(connection) == b"welcome"
        listener.shutdown(socket.SHUT_RDWR)  # or the thread would hold it


def _is_answered(pod: Pod, ip: str) -> bool:
    try:
        with pod.connect(ip, _PORT) as connection:
            return bool(read_all(connection))
    except OSError:
        return False


def test_a_service_that_is_restarted_waits_until_its_new_cgroup_is_captured(
    mesh: Mesh, client: Pod, server: Pod
) -> None:
    assert client.cgroup is not None
    before = _links(1)
    for _ in range(2):
        client.cgroup.rmdir()
        client.cgroup.mkdir()
        done = _wait_in(client.cgroup, "default/client", "--timeout", "10")
        assert done.returncode == 0, done
        assert client.ask_whoami(server.ipv4, _PORT)[0] == "server"
        after = _links(1)
        assert after.keys() == before.keys()
        assert set(after.values()).isdisjoint(before.values())
        before = after
    assert _entries(mesh, 1)["workloads"] == 1
    elsewhere = _wait_in(preconditions.cgroup_root(), "default/client", "--timeout", "0.1")
    assert elsewhere.returncode == 1
    assert "the cgroup of this process is not captured as that of default/client: it is /; look at" in elsewhere.stderr


def _wait_in(cgroup: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``ringfence bpf wait`` as systemd runs ExecStartPre: in the unit's cgroup."""
    options = ("--pins", str(_pins(1)), "--agent", str(STATE_DIR / "agent-1/agent.sock"))
    script = f'echo $$ > {cgroup}/cgroup.procs; exec {_RINGFENCE} bpf wait "$@"'
    return subprocess.run(
        ["sh", "-c", script, "sh", *arguments, *options], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_workload_that_leaves_the_mesh_is_free_and_leaves_nothing(mesh: Mesh) -> None:
    leaver = mesh.pod("leaver", node=1)
    outside = mesh.node(2)
    outside.serve_whoami(_PORT)
    try:
        assert any(name.startswith("cgroup-default_leaver/") for name in _links(1))
        path = STATE_DIR / "manifests/workload.default.leaver.yaml"
        text = path.read_text()
        path.write_text(text.replace('"labels": {', '"labels": {"ringfence.io/mesh": "disabled"', 1))
        wait_for("it to be free", lambda: not _links(1))
        assert leaver.ask_whoami(outside.ipv4, _PORT) == ["node-2", leaver.ipv4]
        assert mesh.records(1) == []
        assert _entries(mesh, 1)["workloads"] == 0
        wait_for("no rules", lambda: b"inet ringfence" not in _tables(leaver.netns))
    finally:
        outside.close()


def _tables(netns: Path) -> bytes:
    list_tables: Callable[[], Any] = lambda: subprocess.run(["nft", "list", "tables"], capture_output=True, check=True)  # noqa: E731
    output: bytes = in_namespace(netns, list_tables).stdout
    return output


@pytest.fixture
def full(client: Pod) -> Iterator[None]:
    """No place left in ``originals``."""
    pins = Pins(_pins(1))
    state = open_state(pins)
    assert state is not None
    map_ = syscalls.Map(syscalls.open_pin(pins.map(State.read(state).active_slot, "originals")))
    state.close()
    keys = [(1 << 63 | number).to_bytes(8, sys.byteorder) for number in range(map_.info.max_entries)]
    filled = []
    try:
        for key in keys:
            map_.put(key, bytes(map_.info.value_bytes))
            filled.append(key)
        yield
    finally:
        for key in filled:
            map_.delete(key)
        map_.close()


@pytest.mark.usefixtures("full")
def test_when_no_more_can_be_remembered_a_connect_is_refused(mesh: Mesh, client: Pod, server: Pod) -> None:
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.ipv4, _PORT)
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.ipv6, _PORT)
    assert mesh.records(1) == []


def test_a_new_version_takes_over_while_connections_go_on(mesh: Mesh, client: Pod, server: Pod) -> None:
    server.serve_echo(_PORT + 1)
    with client.connect(server.ipv4, _PORT + 1) as connection:
        before = _status(mesh, 1)["generation"]
        subprocess.run([_RINGFENCE, "bpf", "load", "--pins", str(_pins(1))], check=True, capture_output=True)
        assert _status(mesh, 1)["generation"] == before + 1
        connection.sendall(b"still here")
        assert connection.recv(100) == b"still here"
        assert connection.getpeername() == (server.ipv4, _PORT + 1)
    assert client.ask_whoami(server.ipv4, _PORT)[0] == "server"
    refused = subprocess.run(
        [_RINGFENCE, "bpf", "unload", "--pins", str(_pins(1))], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "an agent uses" in refused.stderr


def test_unload_leaves_the_node_as_it_was(mesh: Mesh, client: Pod) -> None:
    assert client.cgroup is not None
    where = client.cgroup
    mesh.lab("stop", "agent-1")
    try:
        assert b"inet ringfence" in _tables(client.netns)
        mesh.lab("ringfence", "1", "bpf", "unload")
        assert not _pins(1).exists()
        assert b"inet ringfence" not in _tables(client.netns)
        assert b"0x111" not in _rules(client.netns)
        assert where.is_dir(), "the cgroup is not ours"
        outside = mesh.node(2)
        outside.serve_whoami(_PORT)
        try:
            assert client.ask_whoami(outside.ipv4, _PORT)[0] == "node-2"
        finally:
            outside.close()
        mesh.lab("ringfence", "1", "bpf", "load")
    finally:
        mesh.lab("start", "agent-1")


@pytest.mark.usefixtures("client")
def test_an_agent_whose_programs_are_taken_away_says_so(mesh: Mesh) -> None:
    mesh.lab("ringfence", "1", "bpf", "unload", "--force")
    try:
        errors = wait_for("an error", lambda: [each for each in mesh.log(1) if each.get("level") == "error"])
        assert [each["message"].startswith("the BPF programs are not those") for each in errors] == [True]
        assert "run `ringfence bpf load`" in errors[0]["message"]
    finally:
        mesh.lab("ringfence", "1", "bpf", "load")
        mesh.lab("restart", "agent-1")


def _rules(netns: Path) -> bytes:
    list_rules: Callable[[], Any] = lambda: subprocess.run(["ip", "rule"], capture_output=True, check=True)  # noqa: E731
    output: bytes = in_namespace(netns, list_rules).stdout
    return output


def test_a_process_of_no_workload_does_not_get_out_by_a_workloads_socket(client: Pod, server: Pod) -> None:
    made = client.inside(socket.socket)
    with made:
        made.settimeout(60)
        with pytest.raises(ConnectionRefusedError):
            made.connect((server.ipv4, _PORT))
    assert client.cgroup is not None
    nested = client.cgroup / "nested"
    nested.mkdir()
    try:
        inner = in_cgroup(nested, client.netns, lambda: socket.create_connection((server.ipv4, _PORT), 10))
        with inner:
            assert read_all(inner).split()[0] == b"server"
    finally:
        wait_for("an empty cgroup", lambda: not (nested / "cgroup.procs").read_text())
        nested.rmdir()
