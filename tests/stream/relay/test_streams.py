"""Several streams in one shared tunnel: none is in the way of another, and each ends by itself."""

import contextlib
import random
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import CutReason, Denied
from node_agent.relay import Ending, Outcome
from node_agent.stream_frames import WINDOW_BYTES
from tests.background import in_background
from tests.relay_builder import (
    DEADLINE_S,
    SMALL_BUFFER_BYTES,
    RelayBench,
    random_chunks,
    read_all,
    reset,
    send_until_stuck,
    was_reset,
)
from tests.stream_builder import JoinedStream, Own, StreamPaths, in_loop

_MOVES: tuple[Own, ...] = ("never", "attach-first", "moved-first", "failing")
_Key = TypeVar("_Key", str, int)


def _is_back(paths: StreamPaths, end: JoinedStream) -> list[Outcome | None]:
    """What became of the own tunnel; in the loop, behind what it has to report."""
    return in_loop(paths.bench, lambda: list(paths.back_of(end)))


def _wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def _send_all(end: JoinedStream, chunks: list[bytes]) -> None:
    for chunk in chunks:
        end.app.sendall(chunk)
    end.app.shutdown(socket.SHUT_WR)


def _read_into(got: dict[_Key, bytes], key: _Key, end: JoinedStream) -> None:
    got[key] = read_all(end.app)


@pytest.mark.parametrize("own", _MOVES)
@pytest.mark.parametrize("buffer_bytes", [None, SMALL_BUFFER_BYTES])
def test_many_at_the_same_time_in_both_directions(bench: RelayBench, own: Own, buffer_bytes: int | None) -> None:
    rng = random.Random(3)
    paths = StreamPaths(bench, buffer_bytes=buffer_bytes)
    calls: list[Callable[[], None]] = []
    joined = []
    for number in range(8):
        one, other = paths.path(own=own)
        up, down = (rng.randbytes(rng.choice([0, 1, 3000, 65_536, 400_000])) for _ in range(2))
        got: dict[str, bytes] = {}
        for end, payload, name, peer in ((one, up, "up", other), (other, down, "down", one)):
            calls.append(partial(_send_all, end, random_chunks(rng, payload, most_bytes=1 << 18)))
            calls.append(partial(_read_into, got, name, peer))
        joined.append((number, one, other, up, down, got))
    with in_background(*calls):
        pass
    for number, one, other, up, down, got in joined:
        assert (got["up"], got["down"]) == (up, down), number
        assert (one.finish.wait().ending, other.finish.wait().ending) == (Ending.COMPLETE, Ending.COMPLETE)
        assert (one.pair.up_bytes, one.pair.down_bytes) == (len(up), len(down))
        assert (other.pair.up_bytes, other.pair.down_bytes) == (len(down), len(up))
        assert one.pair.held_bytes == other.pair.held_bytes == 0
    paths.close()
    assert sorted(in_loop(bench, lambda: paths.ended)) == ["destination", "source"]


@pytest.mark.parametrize("stuck", [0, 1], ids=["upload", "download"])
def test_a_stuck_reader_holds_a_window_at_most_and_stops_nobody(bench: RelayBench, stuck: int) -> None:
    paths = StreamPaths(bench)
    ends = paths.path(buffer_bytes=SMALL_BUFFER_BYTES)
    writer, reader = ends[stuck], ends[1 - stuck]
    writer.app.setblocking(False)
    sent = send_until_stuck(writer.app.send, b"x" * 65536, most_bytes=1 << 26)
    assert 0 < reader.pair.held_bytes <= WINDOW_BYTES
    assert writer.pair.held_bytes == 0
    assert writer.pair.up_bytes == reader.pair.down_bytes
    assert reader.pair.down_bytes - reader.pair.held_bytes < 1 << 20

    one, other = paths.path()
    payload = random.Random(1).randbytes(1 << 20)
    with in_background(lambda: _send_all(one, [payload]), lambda: _send_all(other, [payload])):
        assert read_all(other.app) == payload
        assert read_all(one.app) == payload
    assert one.finish.wait().ending is Ending.COMPLETE

    writer.app.setblocking(True)
    writer.app.shutdown(socket.SHUT_WR)
    assert len(read_all(reader.app)) == sent


def test_the_writer_of_a_stuck_stream_can_end_it(bench: RelayBench) -> None:
    paths = StreamPaths(bench, buffer_bytes=SMALL_BUFFER_BYTES)
    one, other = paths.path()
    one.app.setblocking(False)
    send_until_stuck(one.app.send, b"x" * 65536, most_bytes=1 << 26)
    reset(one.app)
    assert one.finish.wait().ending is Ending.PLAIN_RESET
    assert other.finish.wait().ending is Ending.PEER_RESET
    assert was_reset(other.app)


@pytest.mark.parametrize("reason", [None, CloseReason.DRAINED, Denied(policy="shop/deny-all")])
@pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])
def test_a_cut_resets_both_programs_and_says_why(bench: RelayBench, side: int, reason: CutReason | None) -> None:
    paths = StreamPaths(bench)
    ends = paths.path()
    neighbour = paths.path()
    ends[side].pair.cut(reason)
    assert ends[side].finish.wait().ending is Ending.CUT
    assert ends[1 - side].finish.wait() == Outcome(ending=Ending.PEER_RESET, reason=reason)
    assert all(was_reset(end.app) for end in ends)
    ends[side].pair.cut(None)
    neighbour[0].app.sendall(b"still here")
    assert neighbour[1].app.recv(100) == b"still here"
    assert all(end.finish.is_empty for end in ends)


def test_a_lost_tunnel_resets_all_that_have_not_moved(bench: RelayBench) -> None:
    paths = StreamPaths(bench)
    there, moved = paths.path(), paths.path(own="attach-first")
    half, waiting = paths.path(), paths.path()
    half[0].app.shutdown(socket.SHUT_WR)
    assert half[1].app.recv(1) == b""
    waiting[1].app.sendall(b"unread")
    paths.move(moved[0])
    for _ in range(2):  # once behind the move
        moved[0].app.sendall(b"ping")
        assert moved[1].app.recv(100) == b"ping"
        moved[1].app.sendall(b"pong")
        assert moved[0].app.recv(100) == b"pong"
    assert moved[0].pair.has_moved
    paths.lose()
    for ends in (there, half, waiting):
        assert [end.finish.wait().ending for end in ends] == [Ending.TUNNEL_LOST, Ending.TUNNEL_LOST]
    assert all(was_reset(end.app) for end in (*there, half[0], *waiting))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        half[1].app.sendall(b"x")
    assert sorted(in_loop(bench, lambda: paths.ended)) == ["destination", "source"]
    for end in moved:
        end.app.sendall(b"on and on")
        end.app.shutdown(socket.SHUT_WR)
    assert [read_all(end.app) for end in moved] == [b"on and on"] * 2
    assert [end.finish.wait().ending for end in moved] == [Ending.COMPLETE] * 2
    assert (moved[0].pair.up_bytes, moved[0].pair.down_bytes) == (17, 17)


# -- moves -----------------------------------------------------------------------


@pytest.mark.parametrize("own", ["attach-first", "moved-first"])
@pytest.mark.parametrize("ended", [(), (0,), (1,)], ids=["open", "source has ended", "destination has ended"])
def test_a_move_loses_nothing_and_the_tunnel_can_be_used_again(
    bench: RelayBench, own: Own, ended: tuple[int, ...]
) -> None:
    paths = StreamPaths(bench, buffer_bytes=SMALL_BUFFER_BYTES)
    ends = paths.path(own=own)
    rng = random.Random(5)
    payloads = [rng.randbytes(150_000 if side in ended else 900_000) for side in (0, 1)]
    for side in ended:  # with most of it still on its way
        with in_background(partial(_send_all, ends[side], [payloads[side]])):
            first = ends[1 - side].app.recv(1, socket.MSG_WAITALL)
            paths.move(ends[0])
            assert first + read_all(ends[1 - side].app) == payloads[side]
    rest = [side for side in (0, 1) if side not in ended]
    got: dict[int, bytes] = {}
    with in_background(
        *(partial(_send_all, ends[side], [payloads[side]]) for side in rest),
        *(partial(_read_into, got, side, ends[1 - side]) for side in rest),
    ):
        pass
    assert all(got[side] == payloads[side] for side in rest)
    assert [end.finish.wait().ending for end in ends] == [Ending.COMPLETE] * 2
    assert [end.pair.has_moved for end in ends] == [True, True]
    assert (ends[0].pair.up_bytes, ends[0].pair.down_bytes) == (len(payloads[0]), len(payloads[1]))
    assert (ends[1].pair.up_bytes, ends[1].pair.down_bytes) == (len(payloads[1]), len(payloads[0]))
    assert _is_back(paths, ends[1]) == [Outcome(ending=Ending.COMPLETE)]
    ((ours, theirs),) = paths.given_to(ends[0])
    ours.setblocking(True)
    theirs.settimeout(DEADLINE_S)
    ours.sendall(b"the next connection")
    assert theirs.recv(100) == b"the next connection"
    assert not paths.source.streams
    assert not paths.destination.streams


def test_both_ends_said_before_the_move_are_the_end_however_slow_the_reader(bench: RelayBench) -> None:
    """The source is done with the stream and lets the own tunnel go; what the destination still holds is delivered."""
    paths = StreamPaths(bench)
    one, other = paths.path(buffer_bytes=SMALL_BUFFER_BYTES)
    one.app.setblocking(False)
    sent = 0
    while not other.pair.held_bytes:
        with contextlib.suppress(BlockingIOError):
            sent += one.app.send(b"x" * 1000)
    one.app.setblocking(True)
    one.app.shutdown(socket.SHUT_WR)
    other.app.shutdown(socket.SHUT_WR)
    paths.move(one)
    assert read_all(one.app) == b""
    assert one.finish.wait().ending is Ending.COMPLETE
    assert len(read_all(other.app)) == sent
    assert other.finish.wait().ending is Ending.COMPLETE


def test_the_end_of_the_destination_crosses_the_move_and_its_reader_still_gets_all(bench: RelayBench) -> None:
    paths = StreamPaths(bench)
    one, other = paths.path(buffer_bytes=SMALL_BUFFER_BYTES)
    one.app.setblocking(False)
    sent = 0
    while not other.pair.held_bytes:
        with contextlib.suppress(BlockingIOError):
            sent += one.app.send(b"x" * 1000)
    one.app.setblocking(True)
    one.app.shutdown(socket.SHUT_WR)
    _wait_until(lambda: other.pair.is_half_closed)

    def cross() -> None:
        other.app.shutdown(socket.SHUT_WR)
        paths.give(one)  # our MOVED is written before the loop hears of that end

    in_loop(bench, cross)
    assert read_all(one.app) == b""
    assert one.finish.wait().ending is Ending.COMPLETE
    assert len(read_all(other.app)) == sent
    assert other.finish.wait().ending is Ending.COMPLETE


@pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])
@pytest.mark.parametrize("how", ["reset", "cut"])
def test_who_resets_in_the_middle_of_a_move_is_heard(bench: RelayBench, side: int, how: str) -> None:
    paths = StreamPaths(bench)
    ends = paths.path(own="attach-first")

    def move_and_end() -> None:
        paths.give(ends[0])
        if how == "reset":
            reset(ends[side].app)
        else:
            ends[side].pair.cut(CloseReason.DRAINED)

    in_loop(bench, move_and_end)
    assert ends[side].finish.wait().ending is (Ending.PLAIN_RESET if how == "reset" else Ending.CUT)
    outcome = ends[1 - side].finish.wait()
    assert outcome.ending is Ending.PEER_RESET
    assert was_reset(ends[1 - side].app)
    neighbour = paths.path()
    neighbour[0].app.sendall(b"x")
    assert neighbour[1].app.recv(1) == b"x"


@pytest.mark.parametrize("traffic", ["idle", "busy"])
def test_a_lost_own_tunnel_ends_its_stream_only(bench: RelayBench, traffic: str) -> None:
    paths = StreamPaths(bench, buffer_bytes=SMALL_BUFFER_BYTES)
    ends, neighbour = paths.path(own="attach-first"), paths.path()
    if traffic == "busy":
        ends[0].app.setblocking(False)
        send_until_stuck(ends[0].app.send, b"x" * 65536, most_bytes=1 << 26)
    paths.move(ends[0])
    paths.lose_own(ends[0])
    assert was_reset(ends[1].app)  # behind all that was under way
    ends[0].app.setblocking(True)
    assert was_reset(ends[0].app)
    assert [end.finish.wait().ending for end in ends] == [Ending.TUNNEL_LOST] * 2
    neighbour[0].app.sendall(b"x")
    assert neighbour[1].app.recv(1) == b"x"


def test_an_own_tunnel_for_a_stream_that_is_over_is_given_back_closed(bench: RelayBench) -> None:
    paths = StreamPaths(bench)
    one, other = paths.path(own="attach-first")
    reset(one.app)
    assert other.finish.wait().ending is Ending.PEER_RESET
    back: list[Outcome | None] = []
    ours, theirs = bench.pairs.make()
    bench.sockets += [ours, theirs]
    in_loop(bench, lambda: other.pair.attach(theirs, back.append))
    in_loop(bench, lambda: None)
    assert back == [None]
    assert theirs.fileno() == -1


def test_a_second_tunnel_takes_the_place_of_one_of_which_the_source_has_not_heard(bench: RelayBench) -> None:
    paths = StreamPaths(bench)
    one, other = paths.path(own="attach-first")
    back: list[Outcome | None] = []
    first = bench.pairs.make()
    bench.sockets += first
    in_loop(bench, lambda: other.pair.attach(first[1], back.append))
    paths.move(one)
    one.app.sendall(b"ping")
    assert other.app.recv(100) == b"ping"
    other.app.sendall(b"pong")
    assert one.app.recv(100) == b"pong"
    for end in (one, other):
        end.app.shutdown(socket.SHUT_WR)
    assert [end.finish.wait().ending for end in (one, other)] == [Ending.COMPLETE] * 2
    assert other.pair.has_moved
    assert in_loop(bench, lambda: back) == [None]
    assert first[1].fileno() == -1


def test_a_third_tunnel_for_one_that_has_moved_does_not_touch_it(bench: RelayBench) -> None:
    paths = StreamPaths(bench)
    one, other = paths.path(own="attach-first")
    paths.move(one)
    _wait_until(lambda: one.pair.has_moved and other.pair.has_moved)
    back: list[Outcome | None] = []
    late = bench.pairs.make()
    bench.sockets += late
    in_loop(bench, lambda: other.pair.attach(late[1], back.append))
    in_loop(bench, lambda: None)
    assert back == [None]
    one.app.sendall(b"ping")
    assert other.app.recv(100) == b"ping"
    for end in (one, other):
        end.app.shutdown(socket.SHUT_WR)
    assert other.finish.wait().ending is Ending.COMPLETE
    assert _is_back(paths, other) == [Outcome(ending=Ending.COMPLETE)]


@pytest.mark.parametrize("side", [0, 1], ids=["upload", "download"])
def test_a_stream_that_can_not_move_asks_again_and_goes_on_under_its_credit(bench: RelayBench, side: int) -> None:
    paths = StreamPaths(bench, buffer_bytes=SMALL_BUFFER_BYTES)
    ends = paths.path(own="failing")
    payload = random.Random(9).randbytes(2 << 20)
    with in_background(lambda: _send_all(ends[side], [payload])):
        assert ends[1 - side].app.recv(1, socket.MSG_WAITALL) == payload[:1]
        _wait_until(lambda: paths.wishes_of(ends[0]) > 2)
        assert read_all(ends[1 - side].app) == payload[1:]
    ends[1 - side].app.shutdown(socket.SHUT_WR)
    assert [end.finish.wait().ending for end in ends] == [Ending.COMPLETE] * 2
    assert not ends[0].pair.has_moved
