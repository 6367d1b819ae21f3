"""A tunnel's pair when somebody does not read: who writes is stopped, and nobody else."""

import random
import socket

from node_agent.frames import FrameType
from tests.background import in_background
from tests.relay_builder import (
    COMPLETE,
    EOF,
    SMALL_BUFFER_BYTES,
    RelayBench,
    data,
    end_up,
    read_all,
    send_until_stuck,
)


def test_application_that_does_not_read_stops_the_peer(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    payload = random.Random(5).randbytes(60_000)
    joined.peer.tls.setblocking(False)
    sent = send_until_stuck(joined.peer.tls.send, data(payload), most_bytes=1 << 26)
    assert sent < 4 << 20, "the writer was not stopped"

    joined.peer.tls.settimeout(20)
    received: list[bytes] = []
    with in_background(lambda: received.append(read_all(joined.app))):
        # OpenSSL owes us the frame that it could not write in one go: it must be offered again.
        joined.peer.send(data(payload) + EOF)
    count = sent // len(data(payload)) + 1
    assert received == [payload * count]
    end_up(joined)
    assert joined.finish.wait() == COMPLETE


def test_peer_that_does_not_read_stops_the_application(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    payload = random.Random(6).randbytes(1 << 26)
    view = memoryview(payload)
    joined.app.setblocking(False)
    sent = 0

    def send(_: bytes) -> int:
        nonlocal sent
        done = joined.app.send(view[sent : sent + 65536])
        sent += done
        return done

    assert send_until_stuck(send, b"", most_bytes=1 << 26) < 4 << 20, "the writer was not stopped"
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (payload[:sent], FrameType.EOF)
    joined.peer.send(EOF)
    assert joined.finish.wait() == COMPLETE


def test_application_that_has_gone_is_heard_to_its_last_byte(bench: RelayBench) -> None:
    """HUP with bytes unread: the tunnel was blocked when the application closed both ways."""
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    joined.peer.send(EOF)
    assert joined.app.recv(1) == b""
    payload = random.Random(9).randbytes(1 << 22)
    joined.app.setblocking(False)
    sent = 0

    def send(_: bytes) -> int:
        nonlocal sent
        done = joined.app.send(payload[sent : sent + 4096])
        sent += done
        return done

    send_until_stuck(send, b"", most_bytes=1 << 22)
    joined.app.close()
    assert joined.peer.read_stream() == (payload[:sent], FrameType.EOF)
    assert joined.finish.wait() == COMPLETE


def test_a_stopped_reader_does_not_stop_its_neighbour(bench: RelayBench) -> None:
    stopped = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    stopped.peer.tls.setblocking(False)
    send_until_stuck(stopped.peer.tls.send, data(b"x" * 60_000), most_bytes=1 << 26)
    other = bench.tunnel()
    for number in range(100):
        other.peer.send(data(b"%d" % number))
        assert other.app.recv(100) == b"%d" % number
    other.peer.send(EOF)
    end_up(other)
    assert other.finish.wait() == COMPLETE
