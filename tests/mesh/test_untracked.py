"""What is redirected is tracked by conntrack, and nothing else; and that this opens no way around the agent."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from typing import Final

import pytest

from node_agent.capture import rules
from tests.faithful import read_exactly
from tests.forged import ACK, SYN, next_syn_source, send_syn, without_the_labs_own_rule
from tests.mesh_builder import Mesh, Pod, read_all, wait_for
from tests.mesh_lab import in_namespace

pytestmark = pytest.mark.mesh

_PORT: Final = 8080
_TUNNELS: Final = 15008
_VERSIONS: Final = ("ipv4", "ipv6")
_STRICT: Final = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
"""


def _run(pod: Pod, *command: str, stdin: str = "") -> str:
    def run() -> str:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=30).stdout

    return in_namespace(pod.netns, run)


def _tracked(pod: Pod) -> list[str]:
    """What conntrack knows in a pod."""
    return [line for family in _VERSIONS for line in _run(pod, "conntrack", "-L", "-f", family).splitlines()]


@contextmanager
def _rules_of_a_kernel_without_nft_socket(*pods: Pod) -> Iterator[None]:
    for pod in pods:
        _run(pod, "nft", "-f", "-", stdin=rules.install(knows_sockets=False))
    try:
        yield
    finally:
        for pod in pods:
            _run(pod, "nft", "-f", "-", stdin=rules.install())


def test_only_what_is_redirected_is_tracked(mesh: Mesh) -> None:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_echo(_PORT)
    with ExitStack() as stack:
        for version in _VERSIONS:
            for _ in range(5):
                connection = stack.enter_context(client.connect(getattr(server, version), _PORT))
                connection.sendall(b"a")
                assert connection.recv(1) == b"a"
        tracked = _tracked(client)
        if mesh.capture == "inpod":
            assert len(tracked) == 10
            assert all("sport=15001" in line for line in tracked), "redirected to the agent"
        assert not _tracked(server)


def test_connections_go_on_when_the_rules_change(mesh: Mesh) -> None:
    """From those of a kernel that lacks something to those of one that has it, and back; each kind of tunnel."""
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_echo(_PORT)
    if mesh.capture != "inpod":  # then there are no rules in a pod
        assert not _run(client, "nft", "list", "ruleset")
        return

    def goes_on(connection: socket.socket) -> None:
        sent = b"x" * 200_000  # more than a shared tunnel lets be under way
        connection.sendall(sent)
        assert read_exactly(connection, len(sent)) == sent

    with ExitStack() as stack:

        def connect() -> list[socket.socket]:
            made = [stack.enter_context(client.connect(getattr(server, version), _PORT)) for version in _VERSIONS]
            for each in made:
                goes_on(each)
            return made

        before = connect()
        with _rules_of_a_kernel_without_nft_socket(client, server):
            under = connect()
            assert any(f"dport={_TUNNELS}" in line for line in _tracked(client)), "both ways are"
            for each in before:
                goes_on(each)
        for each in (*before, *under, *connect()):
            goes_on(each)
            each.shutdown(socket.SHUT_WR)
            assert read_all(each) == b""


def _heard(pod: Pod, ip: str) -> bytes:
    """What the program says to somebody who dials it from the port of tunnels."""
    try:
        with pod.connect(ip, _PORT, source_port=_TUNNELS) as connection:
            connection.sendall(b"let me in")
            return connection.recv(9)
    except ConnectionError:
        return b""


def test_the_source_port_of_tunnels_opens_nothing(mesh: Mesh) -> None:
    """Whoever answers from port 15008 is an agent; who begins from there is anybody."""
    server, outsider = mesh.pod("server", node=2), mesh.pod("outsider", node=1, mesh=False)
    server.serve_echo(_PORT)
    with mesh.applied(_STRICT):
        for version in _VERSIONS:
            assert not _heard(outsider, getattr(server, version))
        wait_for("both records", lambda: len(mesh.records(2, close_reason="plaintext_refused")) == len(_VERSIONS))
        if mesh.capture == "inpod":
            # An ACK of no connection: were it not redirected, it could guess its way past SYN cookies.
            for version in _VERSIONS:
                send_syn(
                    outsider,
                    getattr(outsider, version),
                    getattr(server, version),
                    _PORT,
                    source_port=_TUNNELS,
                    flags=ACK,
                )

            def redirected() -> bool:
                found = [line for line in _tracked(server) if f"sport={_TUNNELS} dport={_PORT}" in line]
                return len(found) == len(_VERSIONS) and all("sport=15006" in line for line in found)

            wait_for("both to be redirected", redirected)


def test_a_program_with_the_agents_marks_leaves_the_pod_only_as_itself(mesh: Mesh) -> None:
    """CAP_NET_RAW is enough to set them, and to send from any address and port."""
    thief, victim = mesh.pod("thief", node=1), mesh.pod("victim", node=1)
    target = mesh.pod("target", node=1)
    with without_the_labs_own_rule():
        for version in _VERSIONS:
            own, forged, to = (getattr(each, version) for each in (thief, victim, target))
            with target.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))) as seen:
                seen.settimeout(60)
                every = product(
                    (0, rules.AGENT_MARK, rules.RETURN_MARK),
                    ("", "eth0"),
                    (_PORT, _TUNNELS),
                    (45000, _TUNNELS),
                    (SYN, ACK),
                )
                for mark, device, port, source_port, flags in every:
                    with suppress(PermissionError):  # the rules tell it that, or the packet is lost
                        send_syn(
                            thief, forged, to, port, source_port=source_port, flags=flags, mark=mark, device=device
                        )
                # The last one shows that what came before would have been seen.
                send_syn(thief, own, to, _PORT, mark=rules.AGENT_MARK)
                assert next_syn_source(seen, to, _PORT) == own


def test_who_comes_from_outside_as_the_pod_itself_is_dropped(mesh: Mesh) -> None:
    """Also at the tunnels' port; no answer of any kind comes back."""
    server, outsider = mesh.pod("server", node=1), mesh.pod("outsider", node=1, mesh=False)
    server.serve_echo(_PORT)
    before = {version: len(_tracked(server)) for version in _VERSIONS}
    with without_the_labs_own_rule():
        for version in _VERSIONS:
            own = getattr(server, version)
            for port in (_PORT, _TUNNELS):
                for source_port in (45000, _TUNNELS):
                    send_syn(outsider, own, own, port, source_port=source_port)
    assert {version: len(_tracked(server)) for version in _VERSIONS} == before
    assert not mesh.records(1)


def test_the_mark_of_the_way_back_leads_nobody_out_of_the_pod(mesh: Mesh) -> None:
    """Bound to the pod's device it does not lead back, either; then what is said has to be redirected as all else."""
    client, outsider = mesh.pod("client", node=1), mesh.pod("outsider", node=2, mesh=False)
    outsider.serve_echo(_PORT)
    for version in _VERSIONS:
        to = getattr(outsider, version)

        def make(family: int = socket.AF_INET6 if ":" in to else socket.AF_INET) -> socket.socket:
            return socket.socket(family)

        with client.inside(make) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, rules.RETURN_MARK)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            connection.settimeout(0.5)
            with pytest.raises(OSError):  # noqa: PT011  # the redirection does not reach a socket that is bound so
                connection.connect((to, _PORT))


def test_the_agents_listeners_serve_nobody_who_was_not_redirected(mesh: Mesh) -> None:
    """The mark of the way back leads any address to the pod itself, and to no entry of conntrack."""
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_echo(_PORT)

    def dial(ip: str, port: int) -> bytes:
        with client.inside(lambda: socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, rules.RETURN_MARK)
            connection.settimeout(60)
            try:
                connection.connect((ip, port))
                connection.sendall(b"let me in")
                return connection.recv(9)
            except OSError:
                return b""

    for version in _VERSIONS:
        for ip in (getattr(client, version), getattr(server, version)):
            for port in (15001, 15006):
                assert dial(ip, port) == b""
    with client.connect(server.ipv4, _PORT) as connection:
        connection.sendall(b"and it goes on")
        assert connection.recv(14) == b"and it goes on"
    assert not mesh.records(2, direction="inbound", connection_security_policy="none")
