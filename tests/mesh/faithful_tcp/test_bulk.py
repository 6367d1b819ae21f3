"""Point 5: much of it, both ways, with readers that stop; and as little of it at a time as can be."""

import hashlib
import random
import socket
import time

import pytest

from tests.background import in_background
from tests.faithful import KINDS, Bulk, Ground, Way, sha256_to_end

pytestmark = pytest.mark.mesh

_GB = 1 << 30
_MB = 1 << 20
_AGENT_MAY_GROW_BYTES = 16 * _MB


@pytest.mark.parametrize("kind", KINDS)
def test_a_gigabyte_in_each_direction_at_once(ground: Ground, kind: str) -> None:
    size = _GB if kind == "tunnel" else _GB // 4
    way = ground.way(kind, "ipv4")
    client, server, port = way.open()
    up, down = Bulk(size, seed=1), Bulk(size, seed=2)
    received: list[str] = []
    with ground.costs_less_than(_AGENT_MAY_GROW_BYTES):
        with in_background(
            lambda: up.send(client), lambda: down.send(server), lambda: received.append(sha256_to_end(client))
        ):
            assert sha256_to_end(server) == up.sha256
        assert received == [down.sha256]
    server.close()
    client.close()
    way.assert_closed(port, "ok", sent=size, received=size)


@pytest.mark.parametrize("by_server", [False, True], ids=["client-writes", "server-writes"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_stops_stops_the_writer(ground: Ground, kind: str, by_server: bool) -> None:
    """A gigabyte offered to a reader that has stopped costs the agents nothing; it reads on, and nothing is missing."""
    size = _GB if kind == "tunnel" and not by_server else _GB // 4
    way = ground.way(kind, "ipv4")
    client, server, port = way.open()
    writer, reader = (server, client) if by_server else (client, server)
    bulk = Bulk(size, seed=3)
    with ground.costs_less_than(_AGENT_MAY_GROW_BYTES):
        with in_background(lambda: bulk.send(writer)):
            stuck_at = _wait_until_stuck(bulk)
            assert stuck_at < size // 2, "nothing stopped the writer"
            digest = sha256_to_end(reader)
        assert digest == bulk.sha256
    reader.close()
    way.assert_closed(port, "ok", sent=size if by_server else 0, received=0 if by_server else size)


def test_a_slow_reader_slows_the_writer(way: Way) -> None:
    client, server, port = way.open()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    bulk = Bulk(192 * _MB, seed=4)  # more than the kernel's buffers take on the way
    digest = hashlib.sha256()
    read_bytes = 0
    with in_background(lambda: bulk.send(client)):
        while piece := server.recv(64 * 1024):
            digest.update(piece)
            read_bytes += len(piece)
            if read_bytes < 8 * _MB:
                assert bulk.sent_bytes < bulk.size, "the writer was through when the reader had hardly begun"
                time.sleep(0.001)  # this is the slowness
    assert digest.hexdigest() == bulk.sha256
    server.close()
    client.close()
    way.assert_closed(port, "ok", sent=0, received=bulk.size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_million_bytes_written_one_by_one_arrive_in_order(ground: Ground, kind: str) -> None:
    way = ground.way(kind, "ipv6")
    client, server, port = way.open()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    size = 1_000_000 if kind == "tunnel" else 100_000
    payload = random.Random(5).randbytes(size)
    sent = 0

    def write() -> None:
        nonlocal sent
        send = client.send
        view = memoryview(payload)
        for at in range(size):
            send(view[at : at + 1])
            sent += 1
        client.close()

    received: list[bytes] = []
    with in_background(write):
        while piece := server.recv(65536):
            received.append(piece)
    assert sent == size
    assert b"".join(received) == payload
    server.close()
    way.assert_closed(port, "ok", sent=0, received=size)


def _wait_until_stuck(bulk: Bulk) -> int:
    """Return how much the writer could send by the time that nothing moves any more."""
    quiet_s = 0.3
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < quiet_s:
        if bulk.sent_bytes != seen:
            seen, since = bulk.sent_bytes, time.monotonic()
        time.sleep(0.01)
    return seen
