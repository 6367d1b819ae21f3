"""A tunnel's pair when somebody resets, cuts or breaks: no truncated stream looks whole, and who can be told is."""

import select
import socket
from contextlib import suppress

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import FrameType, encode_reset
from node_agent.relay import Ending, Outcome
from tests.relay_builder import (
    COMPLETE,
    EOF,
    RESET,
    SMALL_BUFFER_BYTES,
    RelayBench,
    data,
    end_up,
    reset,
    send_until_stuck,
    was_reset,
)


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
    end_up(joined)
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
    end_up(other)
    assert other.finish.wait() == COMPLETE
    assert joined.finish.is_empty


def test_reset_is_told_although_the_peer_was_sending(bench: RelayBench) -> None:
    """The RESET frame must not be wiped out by the RST of a socket that is closed with bytes unread."""
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    joined.peer.tls.setblocking(False)
    send_until_stuck(joined.peer.tls.send, data(b"x" * 1000), most_bytes=1 << 26)
    reset(joined.app)
    joined.peer.tls.settimeout(20)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET


@pytest.mark.parametrize("how", ["reset-frame", "fin", "rst"])
def test_reset_reaches_an_application_that_does_not_read(bench: RelayBench, how: str) -> None:
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
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
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    joined.app.setblocking(False)
    send_until_stuck(joined.app.send, b"x" * 65536, most_bytes=1 << 26)
    reset(joined.app)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET
    watch = select.poll()
    watch.register(joined.peer.tls, select.POLLERR)
    assert watch.poll(10_000)


def test_peer_that_resumes_at_once_hears_the_reset_behind_the_bytes(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
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
