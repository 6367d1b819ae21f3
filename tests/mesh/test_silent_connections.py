"""Point 4, many at once: ten thousand connections that prove nothing cost little, harm nobody and are gone in time."""

import errno
import os
import resource
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mesh_builder import Mesh, Pod, in_namespace, wait_for
from tests.mesh_stage import PORT, Stage, staged
from tests.tunnel_peer import DATA, EOF, TUNNEL_PORT, dial, peer_context

pytestmark = pytest.mark.mesh

_MANY: Final = 10_000
_MAX_PENDING: Final = 2048  # max_pending_handshakes, its default
_GOOD_MEANWHILE: Final = 10  # of either kind
_HANDSHAKE_TIMEOUT_S: Final = 3.0
_HALF_A_HELLO: Final = bytes.fromhex("16030100f1010000ed0303")
_MAX_GROWTH_KB: Final = {
    "silent": 24 << 10,  # 2048 tasks and sockets
    "garbage": 24 << 10,
    "half a hello": 192 << 10,  # also 2048 TLS states, 46 KB each in OpenSSL 3.0
    "a whole hello": 24 << 10,  # what the ones before have left is used again
    "half a hello again": 24 << 10,
}


@pytest.fixture(scope="module")
def stage(session_mesh: Mesh) -> Iterator[Stage]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with staged(session_mesh, handshake_timeout_s=_HANDSHAKE_TIMEOUT_S) as made:
            yield made
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _connect_all(pod: Pod, ip: str, count: int, said: bytes) -> list[socket.socket]:
    """So many connections, made at once; each says ``said`` as soon as it is up."""

    def begin() -> list[socket.socket]:
        made = []
        for _ in range(count):
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            made.append(one)
            assert one.connect_ex((ip, TUNNEL_PORT)) in (0, errno.EINPROGRESS)
        return made

    connections = in_namespace(pod.netns, begin)
    poller = select.epoll()
    by_fd = {one.fileno(): one for one in connections}
    for fd in by_fd:
        poller.register(fd, select.EPOLLOUT)
    limit = time.monotonic() + 60
    while by_fd and time.monotonic() < limit:
        for fd, _ in poller.poll(1):
            poller.unregister(fd)
            try:
                by_fd.pop(fd).send(said)
            except OSError:
                pass  # up, and cut already
    poller.close()
    assert not by_fd, f"{len(by_fd)} could not connect"
    return connections


def _rss_kb(pid: int) -> int:
    """Without the pages of libraries, which an agent lets go of when it idles and that come back with its work."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError(f"no RssAnon of {pid}")


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


_FEWER: Final = {"a whole hello": 2500, "half a hello again": 2500}  # past the bound too, at less CPU


def _hello(stage: Stage) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = peer_context(None, stage.root).wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("kind", _MAX_GROWTH_KB)
def test_ten_thousand_connections_that_prove_nothing(stage: Stage, kind: str) -> None:
    said = {"silent": b"", "garbage": b"\xff" * 64, "a whole hello": _hello(stage)}.get(kind, _HALF_A_HELLO)
    count = _FEWER.get(kind, _MANY)
    stage.begin_test()
    stage.good_connection()
    pid = stage.mesh.agent_pid(2)
    rss_kb, descriptors = _rss_kb(pid), _descriptors(pid)
    peak_kb = rss_kb

    connections = _connect_all(stage.attacker, stage.server.ipv4, count, said)
    try:
        slowest_s = 0.0
        for _ in range(_GOOD_MEANWHILE):
            for connect in (stage.good_connection, lambda: _fresh_tunnel(stage)):
                begin = time.monotonic()
                connect()
                slowest_s = max(slowest_s, time.monotonic() - begin)
            peak_kb = max(peak_kb, _rss_kb(pid))

        records = wait_for("all records", lambda: _records(stage, count), deadline_s=30)
        wait_for("the descriptors to be given back", lambda: _descriptors(pid) <= descriptors + 4)
        still_open = [one for one in connections if not _is_closed(one)]
    finally:
        for one in connections:
            one.close()

    print(
        f"{kind}: RSS +{peak_kb - rss_kb} KB, then +{_rss_kb(pid) - rss_kb} KB, "
        f"slowest good connection {slowest_s * 1000:.0f} ms, {dict(records)}"
    )
    assert still_open == []
    assert peak_kb - rss_kb < _MAX_GROWTH_KB[kind]
    assert _rss_kb(pid) - rss_kb < _MAX_GROWTH_KB[kind]
    assert sum(records.values()) == count
    if kind == "garbage":
        assert set(records) <= {"not_tls", "overloaded"}
        assert records["not_tls"] > _MANY - 10 * _MAX_PENDING
    else:
        assert set(records) <= {"handshake_timeout", "overloaded"}
        # Those past the bound are dropped at once, and not after the time is over.
        assert kind == "a whole hello" or records["handshake_timeout"] <= _MAX_PENDING
    came = Counter(stage.application.accepted)
    assert came == {stage.client.ipv4: _GOOD_MEANWHILE + 1, stage.attacker.ipv4: _GOOD_MEANWHILE}, "the good ones"
    stage.good_connection()


def _fresh_tunnel(stage: Stage) -> None:
    """A good peer with a handshake of its own; the enrolled client has a tunnel already."""
    with dial(stage.attacker, stage.server.ipv4, peer_context(stage.leaf("peer"), stage.root)) as peer:
        destination, source = (stage.server.ipv4, PORT), (stage.attacker.ipv4, 40000)
        assert peer.open(destination=destination, source=source) == "ok"
        peer.send(DATA, b"good")
        assert peer.read() == (DATA, b"good")
        peer.send(EOF)
        assert peer.read() == (EOF, b"")


def _records(stage: Stage, count: int) -> Counter[str] | None:
    found = [record for record in stage.mesh.records(2) if record["source_identity"] is None]
    return Counter(record["close_reason"] for record in found) if len(found) >= count else None


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed; TLS may have said an alert before."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
