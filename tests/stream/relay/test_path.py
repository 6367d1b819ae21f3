"""Both ends of a tunnel or of a stream, joined: what one application does is what the other one sees."""

import random
import socket
import struct
from functools import partial
from typing import Protocol

import pytest

from node_agent.relay import Ending
from node_agent.relay.loop import ARENA_BYTES
from tests.background import in_background
from tests.relay_builder import (
    JoinedTunnel,
    RelayBench,
    random_chunks,
    read_all,
    reset,
    send_until_stuck,
    was_reset,
)
from tests.stream_builder import JoinedStream, stream_path

_SMALL_BUFFER_BYTES = 16 * 1024


class _Path(Protocol):
    """Joins two applications by two agents."""

    def __call__(
        self, *, buffer_bytes: int | None = None
    ) -> tuple[JoinedTunnel | JoinedStream, JoinedTunnel | JoinedStream]: ...


@pytest.fixture(params=["tunnel", "stream", "stream that moves", "stream that can not move"])
def path(bench: RelayBench, request: pytest.FixtureRequest) -> _Path:
    match request.param:
        case "tunnel":
            return bench.path
        case "stream":
            return partial(stream_path, bench)
        case "stream that moves":
            return partial(stream_path, bench, own="attach-first")
        case _:
            return partial(stream_path, bench, own="failing")


def _send_all(joined: JoinedTunnel | JoinedStream, chunks: list[bytes]) -> None:
    for chunk in chunks:
        joined.app.sendall(chunk)
    joined.app.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("seed", range(6))
def test_random_chunks_in_both_directions_at_once(path: _Path, seed: int) -> None:
    rng = random.Random(seed)
    one, other = path(buffer_bytes=rng.choice([None, _SMALL_BUFFER_BYTES]))
    up, down = rng.randbytes(rng.choice([1, 4_000_000])), rng.randbytes(rng.choice([1, 4_000_000]))
    up_chunks = random_chunks(rng, up, most_bytes=1 << 20)
    down_chunks = random_chunks(rng, down, most_bytes=1 << 20)
    received: list[bytes] = []
    with in_background(
        lambda: _send_all(one, up_chunks),
        lambda: _send_all(other, down_chunks),
        lambda: received.append(read_all(one.app)),
    ):
        assert read_all(other.app) == up
    assert received == [down]
    for each, sent, got in ((one, up, down), (other, down, up)):
        assert each.finish.wait().ending is Ending.COMPLETE
        assert (each.pair.up_bytes, each.pair.down_bytes) == (len(sent), len(got))


def test_both_stopped_at_once_then_both_resume(path: _Path) -> None:
    one, other = path(buffer_bytes=_SMALL_BUFFER_BYTES)
    up, down = random.Random(7).randbytes(8 << 20), random.Random(8).randbytes(8 << 20)
    with in_background(lambda: _send_all(one, [up]), lambda: _send_all(other, [down])):
        seen = (-1, -1)

        def moved(_: bytes) -> int:
            nonlocal seen
            now = (one.pair.up_bytes, other.pair.up_bytes)
            if now == seen:
                raise BlockingIOError
            seen = now
            return 0

        send_until_stuck(moved, b"", most_bytes=1)
        assert max(seen) < 4 << 20, "the writers were not stopped"
        assert 0 < one.pair.held_bytes + other.pair.held_bytes <= 4 * ARENA_BYTES
        received: list[bytes] = []
        with in_background(lambda: received.append(read_all(one.app))):
            assert read_all(other.app) == up
        assert received == [down]
    for each in (one, other):
        assert each.finish.wait().ending is Ending.COMPLETE
        assert each.pair.held_bytes == 0


def test_one_byte_writes_arrive_in_order(path: _Path) -> None:
    one, other = path()
    payload = random.Random(1).randbytes(20_000)
    with in_background(lambda: _send_all(one, [payload[at : at + 1] for at in range(len(payload))])):
        assert read_all(other.app) == payload
    other.app.close()
    for each in (one, other):
        assert each.finish.wait().ending is Ending.COMPLETE


@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "stopped"])
@pytest.mark.parametrize("sending", [False, True], ids=["idle", "sending"])
def test_reset_travels_and_both_ends_know_whose_it_was(path: _Path, sending: bool, blocked: bool) -> None:
    """``sending``: the end that will be reset has filled the path; ``blocked``: the end that resets has."""
    one, other = path(buffer_bytes=_SMALL_BUFFER_BYTES)
    for full, app in ((blocked, one.app), (sending, other.app)):
        app.setblocking(False)
        if full:
            send_until_stuck(app.send, b"x" * 65536, most_bytes=1 << 26)
    reset(one.app)
    other.app.settimeout(60)
    assert one.finish.wait().ending is Ending.PLAIN_RESET
    ending = other.finish.wait().ending
    # A RESET frame can not overtake: behind bytes that the tunnel does not take, the end of the tunnel says it.
    assert ending is Ending.PEER_RESET or (blocked and ending is Ending.TUNNEL_LOST)
    assert was_reset(other.app)


def test_reset_with_unread_bytes_on_the_way_is_a_reset_never_a_clean_end(path: _Path) -> None:
    for size in (1, 1000, 100_000):
        one, other = path()
        one.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.app.sendall(b"x" * size)
        one.app.close()
        assert was_reset(other.app)
        assert one.finish.wait().ending is Ending.PLAIN_RESET
        assert other.finish.wait().ending in (Ending.PEER_RESET, Ending.TUNNEL_LOST)
