"""Point 5: a connection that says nothing stays; what our sockets are set to, so that a vanished peer is noticed.

Nobody waits an hour here.  What could end an idle connection is a timer: trio's
(tests/stream/relay/test_idle.py lets an hour pass by its clock), the sockets'
own (looked at here) and conntrack's, which remembers our redirections (set to a
second here).
"""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faithful import KINDS, Ground, Way, sockets_of, tcp_state
from tests.mesh_builder import Pod, in_namespace, read_all

pytestmark = pytest.mark.mesh

_AGENT_PORTS = {15001, 15006, 15008}
_ESTABLISHED = 1
_CONNTRACK_S = 1


@contextmanager
def _forgetful_conntrack(pods: tuple[Pod, ...]) -> Iterator[None]:
    """Conntrack of the pods forgets half-closed connections, and all but open ones, after a second."""
    files = [
        Path(f"/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{state}")
        for state in ("fin_wait", "close_wait", "last_ack", "time_wait")
    ]

    def exchange(values: list[str]) -> list[str]:
        before = [file.read_text() for file in files]
        for file, value in zip(files, values, strict=True):
            file.write_text(value)
        return before

    before = [in_namespace(pod.netns, lambda: exchange([str(_CONNTRACK_S)] * len(files))) for pod in pods]
    try:
        yield
    finally:
        for pod, values in zip(pods, before, strict=True):
            in_namespace(pod.netns, lambda: exchange(values))  # noqa: B023


def test_half_closed_connection_outlives_the_memory_of_conntrack(ground: Ground) -> None:
    """By default it is a minute: a query whose client has said all it had to say, and that takes longer."""
    with _forgetful_conntrack(ground.pods()):
        waiting = []
        for kind in KINDS:
            for version in ("ipv4", "ipv6"):
                for by_server in (False, True):
                    client, server, _ = ground.way(kind, version).open()
                    one, other = (server, client) if by_server else (client, server)
                    one.sendall(b"query")
                    one.shutdown(socket.SHUT_WR)
                    assert read_all(other) == b"query"
                    waiting.append((one, other))
        time.sleep(_CONNTRACK_S + 1.5)  # conntrack collects within a second
        for _, other in waiting:
            other.sendall(b"answer")
            other.close()
        assert [read_all(one) for one, _ in waiting] == [b"answer"] * len(waiting)


def test_nagle_is_off_and_keepalive_on(way: Way) -> None:
    client, server, port = way.open()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    seen: dict[str, int] = {}
    for node in way.recorders:
        with ExitStack() as stack:
            for sock in [each for pid in way.agent_pids(node) for each in stack.enter_context(sockets_of(pid))]:
                if tcp_state(sock) != _ESTABLISHED:
                    continue
                local, remote = sock.getsockname()[1], sock.getpeername()[1]
                role = _role(local, remote, port)
                if role is None:
                    continue
                seen[f"{node} {role}"] = seen.get(f"{node} {role}", 0) + 1
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), role
                if role == "application":
                    continue  # it lives on this kernel: it can not vanish without a word
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), role
                times = [
                    sock.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                ]
                assert times == [180, 180, 9], role
    expected = {
        "tunnel": {"1 captured", "1 tunnel", "2 tunnel", "2 application"},
        "to-outside": {"1 captured", "1 application"},
        "from-outside": {"2 captured", "2 application"},
    }
    assert expected[way.kind] <= seen.keys()


def _role(local: int, remote: int, port: int) -> str | None:
    if 15008 in (local, remote):
        return "tunnel"
    if local in _AGENT_PORTS:
        return "captured"
    return "application" if remote == port else None


@pytest.mark.parametrize("kind", KINDS)
def test_keepalive_timers_run_on_idle_connections(ground: Ground, kind: str) -> None:
    way = ground.way(kind, "ipv4")
    client, server, _ = way.open()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    pod, port = (way.server, 15006) if kind == "from-outside" else (way.client, 15001)
    listed = pod.run("ss", "-Htno", "state", "established", f"( sport = :{port} )").stdout.decode().splitlines()
    assert listed
    assert all("timer:(keepalive," in line for line in listed), listed
    if kind == "tunnel":
        for pod, side in ((way.client, "dport"), (way.server, "sport")):
            listed = pod.run("ss", "-Htno", "state", "established", f"( {side} = :15008 )").stdout.decode().splitlines()
            assert listed
            assert all("timer:(keepalive," in line for line in listed), listed
