"""Two sockets joined without a tunnel: what one application does is what the other one sees."""

import random
import select
import socket
import time

import pytest

from node_agent.relay import Ending, Outcome
from node_agent.relay.loop import ARENA_BYTES
from tests.background import in_background
from tests.relay_builder import (
    JoinedPlain,
    RelayBench,
    random_chunks,
    read_all,
    reset,
    send_until_stuck,
    was_reset,
)

_COMPLETE = Outcome(ending=Ending.COMPLETE)
_SMALL_BUFFER_BYTES = 16 * 1024


def _turned(joined: JoinedPlain, turned: bool) -> tuple[socket.socket, socket.socket]:
    return (joined.second, joined.first) if turned else (joined.first, joined.second)


def _send_all(sock: socket.socket, chunks: list[bytes]) -> None:
    for chunk in chunks:
        sock.sendall(chunk)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_in_both_directions_at_once(bench: RelayBench, seed: int) -> None:
    rng = random.Random(seed)
    joined = bench.plain(buffer_bytes=rng.choice([None, _SMALL_BUFFER_BYTES]))
    up, down = rng.randbytes(rng.choice([1, 4_000_000])), rng.randbytes(rng.choice([1, 4_000_000]))
    up_chunks = random_chunks(rng, up, most_bytes=1 << 20)
    down_chunks = random_chunks(rng, down, most_bytes=1 << 20)
    received: list[bytes] = []
    with in_background(
        lambda: _send_all(joined.first, up_chunks),
        lambda: _send_all(joined.second, down_chunks),
        lambda: received.append(read_all(joined.first)),
    ):
        assert read_all(joined.second) == up
    assert received == [down]
    assert joined.finish.wait() == _COMPLETE
    assert (joined.pair.up_bytes, joined.pair.down_bytes) == (len(up), len(down))


@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_one_that_shuts_its_side_still_receives(bench: RelayBench, turned: bool) -> None:
    one, other = _turned(joined := bench.plain(), turned)
    one.sendall(b"question")
    one.shutdown(socket.SHUT_WR)
    assert read_all(other) == b"question"
    for number in range(10):
        other.sendall(b"%d" % number)
    other.close()
    assert read_all(one) == b"0123456789"
    assert joined.finish.wait() == _COMPLETE


def test_one_byte_writes_arrive_in_order(bench: RelayBench) -> None:
    joined = bench.plain()
    payload = random.Random(1).randbytes(20_000)
    with in_background(lambda: _send_all(joined.first, [payload[at : at + 1] for at in range(len(payload))])):
        assert read_all(joined.second) == payload
    joined.second.close()
    assert joined.finish.wait() == _COMPLETE


@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "stopped"])
@pytest.mark.parametrize("sending", [False, True], ids=["idle", "sending"])
@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_reset_travels_whatever_is_on_its_way(bench: RelayBench, turned: bool, sending: bool, blocked: bool) -> None:
    """``sending``: the end that will be reset has filled the path; ``blocked``: the end that resets has."""
    one, other = _turned(joined := bench.plain(buffer_bytes=_SMALL_BUFFER_BYTES), turned)
    for full, sock in ((blocked, one), (sending, other)):
        sock.setblocking(False)
        if full:
            send_until_stuck(sock.send, b"x" * 65536, most_bytes=1 << 26)
    reset(one)
    other.settimeout(60)
    assert joined.finish.wait().ending is (Ending.PEER_RESET if turned else Ending.PLAIN_RESET)
    assert was_reset(other)


@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_reset_after_its_own_end_travels(bench: RelayBench, turned: bool) -> None:
    one, other = _turned(joined := bench.plain(), turned)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    reset(one)
    assert joined.finish.wait().ending is (Ending.PEER_RESET if turned else Ending.PLAIN_RESET)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        other.sendall(b"x")


@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_the_one_that_was_reset_is_named_although_the_other_was_sending(bench: RelayBench, turned: bool) -> None:
    """The relay may learn of the reset when it writes to that socket for the other one."""
    for _ in range(20):
        one, other = _turned(joined := bench.plain(), turned)
        one.sendall(b"hello")
        assert other.recv(5) == b"hello"

        def reset_while_written_to(one: socket.socket = one, other: socket.socket = other) -> None:
            other.sendall(b"x" * 1000)
            reset(one)

        bench.loop.call_soon(reset_while_written_to)
        assert joined.finish.wait().ending is (Ending.PEER_RESET if turned else Ending.PLAIN_RESET)
        assert was_reset(other)


def test_bytes_before_a_reset_do_not_make_it_a_clean_end(bench: RelayBench) -> None:
    for size in (1, 1000, 100_000):
        joined = bench.plain()
        joined.first.sendall(b"x" * size)
        reset(joined.first)
        assert was_reset(joined.second)
        assert joined.finish.wait().ending is Ending.PLAIN_RESET


def test_cut_resets_both_sides(bench: RelayBench) -> None:
    joined = bench.plain()
    joined.first.sendall(b"x")
    assert joined.second.recv(1) == b"x"
    joined.pair.cut(None)
    assert joined.finish.wait().ending is Ending.CUT
    assert was_reset(joined.first)
    assert was_reset(joined.second)
    joined.pair.cut(None)
    bench.loop.call_soon(lambda: None)
    assert joined.finish.is_empty


@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_reader_that_stops_stops_the_writer_and_loses_nothing(bench: RelayBench, turned: bool) -> None:
    one, other = _turned(joined := bench.plain(buffer_bytes=_SMALL_BUFFER_BYTES), turned)
    payload = random.Random(6).randbytes(1 << 24)
    sent = 0

    def send(_: bytes) -> int:
        nonlocal sent
        done = one.send(payload[sent : sent + 65536])
        sent += done
        return done

    one.setblocking(False)
    send_until_stuck(send, b"", most_bytes=len(payload))
    assert sent < 4 << 20, "the writer was not stopped"
    assert 0 < joined.pair.held_bytes <= ARENA_BYTES
    one.shutdown(socket.SHUT_WR)
    assert read_all(other) == payload[:sent]
    other.close()
    assert joined.finish.wait() == _COMPLETE
    assert joined.pair.held_bytes == 0


@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_one_that_has_gone_is_heard_to_its_last_byte(bench: RelayBench, turned: bool) -> None:
    """HUP with bytes unread: the other side was blocked when this one closed both ways."""
    one, other = _turned(joined := bench.plain(buffer_bytes=_SMALL_BUFFER_BYTES), turned)
    other.shutdown(socket.SHUT_WR)
    assert one.recv(1) == b""
    one.setblocking(False)
    sent = send_until_stuck(one.send, b"y" * 4096, most_bytes=1 << 24)
    one.close()
    assert read_all(other) == b"y" * sent
    assert joined.finish.wait() == _COMPLETE


def test_idle_pairs_cost_no_processor_time(bench: RelayBench) -> None:
    """Half-closed, hung up and blocked: level-triggered events that nobody takes away must not spin the loop."""
    half = bench.plain()
    half.first.shutdown(socket.SHUT_WR)
    assert half.second.recv(1) == b""
    gone = bench.plain(buffer_bytes=_SMALL_BUFFER_BYTES)
    gone.second.shutdown(socket.SHUT_WR)
    assert gone.first.recv(1) == b""
    gone.first.setblocking(False)
    send_until_stuck(gone.first.send, b"y" * 4096, most_bytes=1 << 24)
    gone.first.close()
    tunnel = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    tunnel.app.setblocking(False)
    send_until_stuck(tunnel.app.send, b"y" * 4096, most_bytes=1 << 24)
    tunnel.app.shutdown(socket.SHUT_WR)

    began_s = time.process_time()
    select.select([], [], [], 0.4)
    assert time.process_time() - began_s < 0.1
