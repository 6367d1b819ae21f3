"""A connection that is metered: it waits as it is told, loses nothing, and hears what has to be heard."""

import random
import socket
import threading
import time

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import FrameType
from node_agent.relay import Ending
from tests.background import in_background
from tests.relay_builder import (
    DEADLINE_S,
    EOF,
    QUIET_S,
    RelayBench,
    data,
    random_chunks,
    read_all,
    reset,
    send_until_stuck,
    was_reset,
)

_FOR_EVER_S = 3600.0


class _Fixed:
    """Pauses for the same time after whatever was moved; ``until`` lifts that."""

    def __init__(self, pause_s: float, *, most_bytes: int = 16 * 1024) -> None:
        self.pause_s = pause_s
        self.most_bytes = most_bytes
        self.asked = 0
        self.paused = threading.Event()

    def moved(self, moved_bytes: int) -> float | CloseReason:
        self.asked += 1
        if moved_bytes and self.pause_s:
            self.paused.set()
            self._since = time.monotonic()
            return self.pause_s
        if self.paused.is_set():
            return max(0.0, self._since + self.pause_s - time.monotonic())
        return 0.0


class _Enough:
    """Cuts after so many bytes."""

    most_bytes = 1024

    def __init__(self, left: int) -> None:
        self.left = left

    def moved(self, moved_bytes: int) -> float | CloseReason:
        self.left -= moved_bytes
        return CloseReason.FAULT_INJECTED if self.left <= 0 else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_through_a_tunnel_nothing_is_lost_however_often_it_pauses(bench: RelayBench, seed: int) -> None:
    rng = random.Random(seed)
    meter = _Fixed(0.0003, most_bytes=rng.choice([100, 5_000, 100_000]))
    one, other = bench.path(buffer_bytes=rng.choice([None, 16 * 1024]), meter=meter)
    up, down = rng.randbytes(rng.choice([1, 200_000])), rng.randbytes(rng.choice([1, 200_000]))
    received: list[bytes] = []

    def send(sock: socket.socket, whole: bytes) -> None:
        for chunk in random_chunks(rng, whole, most_bytes=1 << 16):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)

    with in_background(
        lambda: send(one.app, up), lambda: send(other.app, down), lambda: received.append(read_all(one.app))
    ):
        assert read_all(other.app) == up
    assert received == [down]
    assert one.finish.wait().ending is Ending.COMPLETE
    assert other.finish.wait().ending is Ending.COMPLETE
    assert (one.pair.up_bytes, one.pair.down_bytes) == (len(up), len(down))


@pytest.mark.parametrize("seed", range(3))
def test_between_two_sockets_nothing_is_lost_however_often_it_pauses(bench: RelayBench, seed: int) -> None:
    rng = random.Random(seed)
    joined = bench.plain(buffer_bytes=rng.choice([None, 16 * 1024]), meter=_Fixed(0.0003, most_bytes=3000))
    up, down = rng.randbytes(200_000), rng.randbytes(rng.choice([1, 200_000]))
    received: list[bytes] = []

    def send(sock: socket.socket, whole: bytes) -> None:
        sock.sendall(whole)
        sock.shutdown(socket.SHUT_WR)

    with in_background(
        lambda: send(joined.first, up),
        lambda: send(joined.second, down),
        lambda: received.append(read_all(joined.first)),
    ):
        assert read_all(joined.second) == up
    assert received == [down]
    assert joined.finish.wait().ending is Ending.COMPLETE


def test_a_pause_stops_the_sender_and_costs_no_turns(bench: RelayBench) -> None:
    meter = _Fixed(_FOR_EVER_S)
    joined = bench.tunnel(buffer_bytes=16 * 1024, meter=meter)
    joined.app.setblocking(False)
    joined.peer.tls.setblocking(False)
    assert send_until_stuck(joined.app.send, bytes(1000), most_bytes=1 << 26) < 1 << 20
    assert send_until_stuck(joined.peer.tls.send, data(bytes(1000)), most_bytes=1 << 26) < 1 << 20
    asked = meter.asked
    time.sleep(QUIET_S)
    assert meter.asked == asked, "it looks again and again"
    reset(joined.app)
    assert joined.finish.wait().ending is Ending.PLAIN_RESET


def test_a_reset_of_the_application_is_heard_while_it_waits(bench: RelayBench) -> None:
    meter = _Fixed(_FOR_EVER_S)
    one, other = bench.path(meter=meter)
    one.app.sendall(b"x" * 100_000)
    assert meter.paused.wait(DEADLINE_S)
    reset(one.app)
    assert one.finish.wait().ending is Ending.PLAIN_RESET
    assert was_reset(other.app)
    assert other.finish.wait().ending is Ending.PEER_RESET


def test_a_reset_at_the_other_end_is_heard_while_it_waits(bench: RelayBench) -> None:
    meter = _Fixed(_FOR_EVER_S)
    one, other = bench.path(meter=meter)
    one.app.sendall(b"x")
    assert meter.paused.wait(DEADLINE_S)
    assert other.app.recv(1) == b"x"
    reset(other.app)
    assert was_reset(one.app)
    assert one.finish.wait().ending is Ending.PEER_RESET


@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
def test_a_reset_of_either_socket_is_heard_while_it_waits(bench: RelayBench, turned: bool) -> None:
    meter = _Fixed(_FOR_EVER_S)
    joined = bench.plain(meter=meter)
    joined.first.sendall(b"x")
    assert meter.paused.wait(DEADLINE_S)
    one, other = (joined.second, joined.first) if turned else (joined.first, joined.second)
    reset(one)
    assert was_reset(other)
    assert joined.finish.wait().ending is (Ending.PEER_RESET if turned else Ending.PLAIN_RESET)


def test_a_cut_is_heard_while_it_waits(bench: RelayBench) -> None:
    meter = _Fixed(_FOR_EVER_S)
    one, other = bench.path(meter=meter)
    one.app.sendall(b"x" * 100_000)
    assert meter.paused.wait(DEADLINE_S)
    one.pair.cut(CloseReason.DRAINED)
    assert one.finish.wait().ending is Ending.CUT
    assert was_reset(other.app)
    assert other.finish.wait().reason is CloseReason.DRAINED


def test_a_half_close_comes_behind_the_bytes_that_waited(bench: RelayBench) -> None:
    joined = bench.tunnel(meter=_Fixed(0.05, most_bytes=4))
    joined.app.sendall(b"question")
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (b"question", FrameType.EOF)
    joined.peer.send(data(b"answer") + EOF)
    assert read_all(joined.app) == b"answer"
    assert joined.finish.wait().ending is Ending.COMPLETE


def test_bytes_already_inside_tls_are_not_forgotten_by_one_that_begins_with_a_pause(bench: RelayBench) -> None:
    meter = _Fixed(0.05)
    meter.paused.set()
    meter._since = time.monotonic()  # somebody else has just used up what there was
    joined = bench.tunnel(start=False, meter=meter)
    joined.peer.send(b"VERDICT!" + data(b"banner") + EOF)
    joined.tunnel.settimeout(DEADLINE_S)
    assert joined.tunnel.recv(8) == b"VERDICT!"
    joined.tunnel.setblocking(False)
    bench.loop.call_soon(joined.pair.start)
    assert read_all(joined.app) == b"banner"
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.finish.wait().ending is Ending.COMPLETE


@pytest.mark.parametrize("limit", [0, 1, 5000])
def test_enough_is_a_cut_within_one_read_and_the_peer_hears_why(bench: RelayBench, limit: int) -> None:
    one, other = bench.path(meter=_Enough(limit))

    def send() -> None:
        try:
            while True:
                one.app.sendall(bytes(100))
        except OSError:
            pass

    with in_background(send):
        assert was_reset(other.app)
    assert one.finish.wait().ending is Ending.CUT
    outcome = other.finish.wait()
    assert (outcome.ending, outcome.reason) == (Ending.PEER_RESET, CloseReason.FAULT_INJECTED)
    assert limit <= one.pair.up_bytes <= limit + _Enough.most_bytes


@pytest.mark.parametrize("limit", [0, 1, 5000])
def test_enough_is_a_cut_without_a_tunnel_as_well(bench: RelayBench, limit: int) -> None:
    joined = bench.plain(meter=_Enough(limit))

    def send() -> None:
        try:
            while True:
                joined.second.sendall(bytes(100))
        except OSError:
            pass

    with in_background(send):
        assert was_reset(joined.first)
    assert joined.finish.wait().ending is Ending.CUT
    assert limit <= joined.pair.down_bytes <= limit + _Enough.most_bytes
