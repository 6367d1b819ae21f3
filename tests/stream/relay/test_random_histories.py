"""Whatever two applications do, in whatever order: what arrives was sent, and an end is clean only if it was meant.

The oracle is TCP's own promise, kept over two relays and a tunnel (or one plain
relay): a reader sees a prefix of what was written, EOF only behind all of it,
and a reset of a stream that was not ended is never seen as EOF.
"""

import random
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.relay import Ending
from tests.relay_builder import DEADLINE_S, Finish, RelayBench, TlsPairs, reset

_SMALL_BUFFER_BYTES = 16 * 1024
_POOL = random.Random(0).randbytes(1 << 20)

_sides = st.sampled_from([0, 1])
_sizes = st.one_of(st.integers(1, 10), st.integers(1, 20_000), st.integers(1, 1_000_000))
_steps = st.one_of(
    st.tuples(st.just("send"), _sides, _sizes),
    st.tuples(st.just("read"), _sides, _sizes),
    st.tuples(st.just("shut"), _sides, st.just(0)),
    st.tuples(st.just("reset"), _sides, st.just(0)),
    st.tuples(st.just("settle"), st.just(0), st.just(0)),
)


@dataclass(slots=True)
class _App:
    """One application: what it wrote, what it read and how each direction ended."""

    sock: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    shut: bool = False
    resets: bool = False
    end: str = ""

    def send(self, size: int) -> None:
        if self.shut or self.resets:
            return
        at = len(self.sent) % (len(_POOL) - 1000)
        try:
            done = self.sock.send(_POOL[at : at + size])
        except BlockingIOError:
            return
        except OSError:
            # It was reset.  The kernel says so once: recv would now return 0.
            self.shut = True
            self.end = self.end or "reset"
            return
        self.sent += _POOL[at : at + done]

    def read(self, size: int) -> None:
        if self.end or self.resets:
            return
        try:
            got = self.sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.end = "reset"
            return
        self.received += got
        if not got:
            self.end = "eof"

    def shut_down(self) -> None:
        if not self.shut and not self.resets:
            self.shut = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def reset(self) -> None:
        if not self.resets:
            self.resets = True
            reset(self.sock)


@pytest.fixture
def fresh_bench(tls_pairs: TlsPairs) -> Iterator[RelayBench]:
    made = RelayBench(tls_pairs)
    yield made
    made.close()


@pytest.mark.parametrize("way", ["tunnel", "plain"])
@given(steps=st.lists(_steps, max_size=25), small=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_history(fresh_bench: RelayBench, way: str, steps: list[tuple[str, int, int]], small: bool) -> None:
    buffer_bytes = _SMALL_BUFFER_BYTES if small else None
    finishes: list[Finish]
    if way == "tunnel":
        one, other = fresh_bench.path(buffer_bytes=buffer_bytes)
        apps, finishes = [_App(one.app), _App(other.app)], [one.finish, other.finish]
    else:
        joined = fresh_bench.plain(buffer_bytes=buffer_bytes)
        apps, finishes = [_App(joined.first), _App(joined.second)], [joined.finish]
    for app in apps:
        app.sock.setblocking(False)

    ended_cleanly = _play(apps, [*steps, ("shut", 0, 0), ("shut", 1, 0)])
    _read_to_the_end(apps)
    endings = [finish.wait().ending for finish in finishes]

    for app, peer, peer_ended in ((apps[0], apps[1], ended_cleanly[1]), (apps[1], apps[0], ended_cleanly[0])):
        assert peer.sent.startswith(app.received), "other bytes than were sent"
        if app.end == "eof":
            assert peer_ended, "a clean end that nobody meant"
            assert app.received == peer.sent, "a clean end too early"
    if not any(app.resets for app in apps):
        assert [app.end for app in apps] == ["eof", "eof"]
        assert endings == [Ending.COMPLETE] * len(endings)
    assert fresh_bench.crashes == []
    for app in apps:
        app.sock.close()


def _play(apps: list[_App], steps: list[tuple[str, int, int]]) -> list[bool]:
    """Let the applications do ``steps``; returns which of them ended its direction of its own will."""
    ended = [False, False]
    for step, side, size in steps:
        app = apps[side]
        match step:
            case "send":
                app.send(size)
            case "read":
                app.read(size)
            case "shut":
                ended[side] |= not app.shut and not app.resets
                app.shut_down()
            case "reset":
                app.reset()
            case _:
                select.select([], [], [], 0.002)
    return ended


def _read_to_the_end(apps: list[_App]) -> None:
    limit = time.monotonic() + DEADLINE_S
    while waiting := [app for app in apps if not app.end and not app.resets]:
        assert time.monotonic() < limit, "a stream that never ends"
        ready, _, _ = select.select([app.sock for app in waiting], [], [], 1)
        for app in waiting:
            if app.sock in ready:
                app.read(1 << 20)
