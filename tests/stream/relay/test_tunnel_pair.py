"""One side of a tunnel: what the application does becomes frames, and frames become what the application sees."""

import random
import select
import socket
from contextlib import suppress

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import MAX_DATA_BYTES, FrameType, encode_reset
from node_agent.relay import Ending, Outcome
from node_agent.relay.loop import ARENA_BYTES
from tests.background import in_background
from tests.relay_builder import (
    DEADLINE_S,
    EOF,
    RESET,
    JoinedTunnel,
    RelayBench,
    data,
    frame,
    random_chunks,
    read_all,
    reset,
    send_until_stuck,
    was_reset,
)

_COMPLETE = Outcome(ending=Ending.COMPLETE)
_SMALL_BUFFER_BYTES = 16 * 1024


def _end_up(joined: JoinedTunnel, expected: bytes = b"") -> None:
    """The application ends its direction; the peer hears ``expected`` and EOF."""
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (expected, FrameType.EOF)


# -- the ordinary life ---------------------------------------------------------


@pytest.mark.parametrize("source_side", [True, False], ids=["source", "destination"])
def test_bytes_travel_both_ways_and_both_ends_are_clean(bench: RelayBench, source_side: bool) -> None:
    joined = bench.tunnel(source_side=source_side)
    joined.app.sendall(b"question")
    assert joined.peer.read_frame() == (FrameType.DATA, b"question")
    joined.peer.send(data(b"answer"))
    assert joined.app.recv(100) == b"answer"
    joined.peer.send(EOF)
    assert joined.app.recv(100) == b""
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE
    assert (joined.pair.up_bytes, joined.pair.down_bytes) == (8, 6)


def test_application_that_shuts_its_side_still_receives(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.sendall(b"all of it")
    _end_up(joined, b"all of it")
    for number in range(10):
        joined.peer.send(data(b"late %d;" % number))
    joined.peer.send(EOF)
    assert read_all(joined.app) == b"".join(b"late %d;" % number for number in range(10))
    assert joined.finish.wait() == _COMPLETE


def test_peer_that_shuts_its_side_still_receives(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    assert joined.app.recv(1) == b""
    joined.app.sendall(b"late " * 50_000)
    _end_up(joined, b"late " * 50_000)
    assert joined.finish.wait() == _COMPLETE


def test_tunnel_is_open_and_usable_after_a_complete_connection(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE
    joined.tunnel.setblocking(True)
    joined.tunnel.sendall(b"next connection")
    assert joined.peer.tls.recv(100) == b"next connection"


def test_nothing_at_all_is_a_complete_connection(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.close()
    assert joined.peer.read_frame() == (FrameType.EOF, b"")
    joined.peer.send(EOF)
    assert joined.finish.wait() == _COMPLETE


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_in_random_writes_arrive_whole(bench: RelayBench, seed: int) -> None:
    rng = random.Random(seed)
    payload = rng.randbytes(3_000_000)
    joined = bench.tunnel(buffer_bytes=rng.choice([None, _SMALL_BUFFER_BYTES]))
    frames = b"".join(map(data, random_chunks(rng, payload, most_bytes=MAX_DATA_BYTES))) + EOF
    writes = random_chunks(rng, frames, most_bytes=1 << 20)

    def peer_sends() -> None:
        for write in writes:
            joined.peer.send(write)

    with in_background(peer_sends):
        assert read_all(joined.app) == payload
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE
    assert (joined.pair.up_bytes, joined.pair.down_bytes) == (0, len(payload))


# -- frames and TLS records have nothing to do with each other --------------------


def test_frames_one_byte_a_record(bench: RelayBench) -> None:
    joined = bench.tunnel()
    stream = data(b"a") + data(b"bcd" * 100) + data(b"e") + EOF
    for at in range(len(stream)):
        joined.peer.send(stream[at : at + 1])
    assert read_all(joined.app) == b"a" + b"bcd" * 100 + b"e"
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE


def test_frames_split_at_every_position(bench: RelayBench) -> None:
    stream = data(b"hello") + data(b"!") + EOF
    for at in range(1, len(stream)):
        joined = bench.tunnel()
        joined.peer.send(stream[:at])
        joined.peer.send(stream[at:])
        assert read_all(joined.app) == b"hello!", at
        _end_up(joined)
        assert joined.finish.wait() == _COMPLETE, at


def test_thousands_of_one_byte_frames_in_one_record(bench: RelayBench) -> None:
    joined = bench.tunnel()
    payload = random.Random(1).randbytes(3000)
    joined.peer.send(b"".join(data(payload[at : at + 1]) for at in range(len(payload))) + EOF)
    assert read_all(joined.app) == payload
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE


def test_one_byte_frames_that_fill_many_arenas(bench: RelayBench) -> None:
    joined = bench.tunnel()
    payload = random.Random(2).randbytes(200_000)
    frames = b"".join(data(payload[at : at + 1]) for at in range(len(payload))) + EOF
    assert len(frames) > 3 * ARENA_BYTES
    with in_background(lambda: joined.peer.send(frames)):
        assert read_all(joined.app) == payload
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE


def test_largest_frame(bench: RelayBench) -> None:
    joined = bench.tunnel()
    payload = random.Random(3).randbytes(MAX_DATA_BYTES)
    with in_background(lambda: joined.peer.send(data(payload) + EOF)):
        assert read_all(joined.app) == payload
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE


def test_bytes_already_inside_tls_at_the_start_are_not_forgotten(bench: RelayBench) -> None:
    joined = bench.tunnel(start=False)
    joined.peer.send(b"VERDICT!" + data(b"banner") + EOF)
    joined.tunnel.settimeout(DEADLINE_S)
    assert joined.tunnel.recv(8) == b"VERDICT!"
    joined.tunnel.setblocking(False)
    bench.loop.call_soon(joined.pair.start)
    assert read_all(joined.app) == b"banner"
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE


# -- the next connection behind EOF -------------------------------------------------


def test_what_follows_the_last_eof_is_left_over(bench: RelayBench) -> None:
    joined = bench.tunnel()
    _end_up(joined)
    following = frame(FrameType.OPEN, b"the next connection")
    joined.peer.send(data(b"last words") + EOF + following)
    assert read_all(joined.app) == b"last words"
    assert joined.finish.wait() == Outcome(ending=Ending.COMPLETE, leftover=following)


def test_leftover_survives_an_application_that_reads_late(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    _end_up(joined)
    payload = random.Random(4).randbytes(200_000)
    following = frame(FrameType.OPEN, b"the next connection")
    with in_background(lambda: joined.peer.send(data(payload) + EOF + following)):
        assert read_all(joined.app) == payload
    outcome = joined.finish.wait()
    assert outcome.ending is Ending.COMPLETE
    # What the relay did not take out of TLS is still in the tunnel.
    rest = b""
    joined.tunnel.settimeout(DEADLINE_S)
    while len(outcome.leftover + rest) < len(following):
        rest += joined.tunnel.recv(100)
    assert outcome.leftover + rest == following


# -- what a peer must not send --------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(EOF + data(b"more"), id="data-after-eof"),
        pytest.param(EOF + EOF, id="second-eof"),
        pytest.param(frame(FrameType.DATA), id="empty-data"),
        pytest.param((3 << 24 | (MAX_DATA_BYTES + 1)).to_bytes(4, "big"), id="length-over-the-limit"),
        pytest.param(b"\x03\xff\xff\xff", id="longest-length"),
        pytest.param(frame(FrameType.EOF, b"x"), id="eof-with-payload"),
        pytest.param(frame(FrameType.OPEN, b"x"), id="open-in-the-middle"),
        pytest.param(frame(FrameType.VERDICT, b"x"), id="second-verdict"),
        pytest.param(frame(0), id="type-0"),
        pytest.param(frame(6), id="type-6"),
        pytest.param(frame(255), id="type-255"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
    ],
)
def test_broken_protocol_resets_the_application(bench: RelayBench, stream: bytes) -> None:
    joined = bench.tunnel()
    joined.peer.send(stream)
    assert joined.finish.wait().ending is Ending.PROTOCOL_ERROR
    assert was_reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.read_end()


# -- resets and truncation ------------------------------------------------------------


def test_reset_frame_resets_the_application(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(RESET)
    assert joined.finish.wait().ending is Ending.PEER_RESET
    assert was_reset(joined.app)


@pytest.mark.parametrize("reason", [CloseReason.DRAINED, CloseReason.WORKLOAD_REMOVED])
def test_reset_that_an_agent_caused_says_why(bench: RelayBench, reason: CloseReason) -> None:
    joined = bench.tunnel()
    joined.peer.send(encode_reset(reason))
    assert joined.finish.wait() == Outcome(ending=Ending.PEER_RESET, reason=reason)
    assert was_reset(joined.app)


def test_reset_after_eof_resets_an_application_that_still_sends(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    assert joined.app.recv(1) == b""
    joined.peer.send(RESET)
    assert joined.finish.wait().ending is Ending.PEER_RESET
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        joined.app.sendall(b"x")


def test_application_reset_becomes_a_reset_frame(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.sendall(b"before")
    assert joined.peer.read_frame() == (FrameType.DATA, b"before")
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.read_end()
    assert joined.finish.wait().ending is Ending.PLAIN_RESET


def test_application_reset_after_its_eof_becomes_a_reset_frame(bench: RelayBench) -> None:
    joined = bench.tunnel()
    _end_up(joined)
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET


def test_application_that_closes_with_bytes_unread_is_a_reset(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(data(b"nobody reads this"))
    joined.app.recv(1, socket.MSG_PEEK)
    joined.app.close()
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET


@pytest.mark.parametrize("sent", [b"", data(b"half"), data(b"longer")[:7], b"\x03\x00"])
@pytest.mark.parametrize("how", ["close_notify", "fin", "rst"])
def test_tunnel_that_ends_without_eof_never_looks_complete(bench: RelayBench, sent: bytes, how: str) -> None:
    joined = bench.tunnel()
    if sent:
        joined.peer.send(sent)
    if how == "close_notify":
        joined.peer.tls.setblocking(False)
        with suppress(OSError):
            joined.peer.tls.unwrap()
        joined.peer.tls.close()
    elif how == "fin":
        joined.peer.tls.close()
    else:
        reset(joined.peer.tls)
    assert was_reset(joined.app)
    assert joined.finish.wait().ending is Ending.TUNNEL_LOST


def test_tunnel_that_ends_after_eof_is_lost_while_the_application_still_sends(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    assert joined.app.recv(1) == b""
    joined.peer.tls.close()
    assert joined.finish.wait().ending is Ending.TUNNEL_LOST
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        joined.app.sendall(b"x")


def test_cut_resets_both_sides(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.sendall(b"x")
    assert joined.peer.read_frame() == (FrameType.DATA, b"x")
    joined.pair.cut(None)
    assert joined.finish.wait().ending is Ending.CUT
    assert was_reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.read_end()


def test_cut_of_what_is_over_is_harmless(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.pair.cut(None)
    assert joined.finish.wait().ending is Ending.CUT
    joined.pair.cut(None)
    other = bench.tunnel()
    other.peer.send(EOF)
    _end_up(other)
    assert other.finish.wait() == _COMPLETE
    assert joined.finish.is_empty


def test_reset_is_told_although_the_peer_was_sending(bench: RelayBench) -> None:
    """The RESET frame must not be wiped out by the RST of a socket that is closed with bytes unread."""
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    joined.peer.tls.setblocking(False)
    send_until_stuck(joined.peer.tls.send, data(b"x" * 1000), most_bytes=1 << 26)
    reset(joined.app)
    joined.peer.tls.settimeout(20)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET


@pytest.mark.parametrize("how", ["reset-frame", "fin", "rst"])
def test_reset_reaches_an_application_that_does_not_read(bench: RelayBench, how: str) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    if how == "rst":
        joined.peer.tls.setblocking(False)
        send_until_stuck(joined.peer.tls.send, data(b"x" * 1000), most_bytes=1 << 24)
        reset(joined.peer.tls)
    else:
        while not joined.pair._down.held:  # the tunnel itself is not full, so its end can arrive
            joined.peer.send(data(b"x" * 1000))
        if how == "reset-frame":
            joined.peer.send(RESET)
        joined.peer.tls.close()
    ending = joined.finish.wait().ending
    assert ending is (Ending.PEER_RESET if how == "reset-frame" else Ending.TUNNEL_LOST)
    assert was_reset(joined.app)


def test_peer_that_takes_nothing_hears_of_a_reset_within_seconds(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    joined.app.setblocking(False)
    send_until_stuck(joined.app.send, b"x" * 65536, most_bytes=1 << 26)
    reset(joined.app)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET
    watch = select.poll()
    watch.register(joined.peer.tls, select.POLLERR)
    assert watch.poll(10_000)


def test_peer_that_resumes_at_once_hears_the_reset_behind_the_bytes(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    joined.app.setblocking(False)
    send_until_stuck(joined.app.send, b"x" * 65536, most_bytes=1 << 26)
    reset(joined.app)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET
    _, last = joined.peer.read_stream()
    assert last == FrameType.RESET


def test_last_bytes_and_reset_together_are_a_reset(bench: RelayBench) -> None:
    for size in (1, 1000, 100_000):
        joined = bench.tunnel(start=False)
        joined.app.sendall(b"x" * size)
        reset(joined.app)
        bench.loop.call_soon(joined.pair.start)
        _, last = joined.peer.read_stream()
        assert last == FrameType.RESET
        assert joined.finish.wait().ending is Ending.PLAIN_RESET


# -- back-pressure ----------------------------------------------------------------------


def test_application_that_does_not_read_stops_the_peer(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
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
    _end_up(joined)
    assert joined.finish.wait() == _COMPLETE


def test_peer_that_does_not_read_stops_the_application(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
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
    assert joined.finish.wait() == _COMPLETE


def test_application_that_has_gone_is_heard_to_its_last_byte(bench: RelayBench) -> None:
    """HUP with bytes unread: the tunnel was blocked when the application closed both ways."""
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
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
    assert joined.finish.wait() == _COMPLETE


def test_a_stopped_reader_does_not_stop_its_neighbour(bench: RelayBench) -> None:
    stopped = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    stopped.peer.tls.setblocking(False)
    send_until_stuck(stopped.peer.tls.send, data(b"x" * 60_000), most_bytes=1 << 26)
    other = bench.tunnel()
    for number in range(100):
        other.peer.send(data(b"%d" % number))
        assert other.app.recv(100) == b"%d" % number
    other.peer.send(EOF)
    _end_up(other)
    assert other.finish.wait() == _COMPLETE
