"""A pair that the kernel may relay, with a kernel in the test's hands: what it is told, and whom it believes."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from node_agent.relay import Ending
from node_agent.relay.kernel import Kernel, Tell
from node_agent.relay.sockmap_flow import CALM_READS
from node_agent.relay.sockmap_pair import SockmapPair
from tests.relay_builder import DEADLINE_S, Finish, RelayBench, read_all, reset, tcp_pair, was_reset

_MESSAGE: Final = b"a small message."


class _Flow:
    """A direction that the kernel says it relays, and does not."""

    def __init__(self, *, is_whole: bool) -> None:
        self.moved_bytes = 0
        self.is_demoted = False
        self.drained: Iterator[bool] = iter(())
        self.looks = 0
        self._is_whole = is_whole

    def hold(self) -> None:
        pass

    def take_up(self, _user_bytes: int) -> bool:
        return False

    def is_drained(self, _user_bytes: int) -> bool:
        self.looks += 1
        return next(self.drained, True)

    def is_whole(self, _user_bytes: int) -> bool:
        return self._is_whole


class _Joined:
    def __init__(self, sockmap: "_Sockmap", up: _Flow | None, down: _Flow | None) -> None:
        self.up = up
        self.down = down
        self._sockmap = sockmap

    def leave(self) -> None:
        self._sockmap.left += 1


class _Sockmap:
    """``up`` and ``down`` are what ``join`` answers; it refuses if both are None."""

    def __init__(self) -> None:
        self.ring_fd = os.eventfd(0)
        self.is_used = False
        self.asked = 0
        self.left = 0
        self.up: _Flow | None = None
        self.down: _Flow | None = None

    def join(self, _first: socket.socket, _second: socket.socket, *, tell: tuple[Tell, Tell]) -> _Joined | None:
        assert len(tell) == 2
        self.asked += 1
        return None if self.up is None and self.down is None else _Joined(self, self.up, self.down)

    def read_ring(self, _event: int) -> None:
        os.eventfd_read(self.ring_fd)

    def look(self) -> None:
        pass


class _Stage:
    def __init__(self, bench: RelayBench, sockmap: _Sockmap) -> None:
        self.first, one = tcp_pair()
        self.second, other = tcp_pair()
        one.setblocking(False)
        other.setblocking(False)
        self._ours = (one, other)
        self.finish = Finish()
        kernel = Kernel(loop=bench.loop, sockmap=sockmap)
        self.pair = SockmapPair(loop=bench.loop, kernel=kernel, first=one, second=other, on_done=self.finish)
        bench.loop.call_soon(self.pair.start)

    def talk(self, rounds: int) -> None:
        for _ in range(rounds):
            for sender, receiver in ((self.first, self.second), (self.second, self.first)):
                sender.sendall(_MESSAGE)
                assert receiver.recv(100) == _MESSAGE

    def talk_until_joined(self) -> None:
        self.talk(CALM_READS // 2)
        limit = time.monotonic() + DEADLINE_S
        while not self.pair.is_joined:  # the last message is here before the loop has gone on
            assert time.monotonic() < limit
            time.sleep(0.001)

    def close(self) -> None:
        for each in (self.first, self.second, *self._ours):
            each.close()


@pytest.fixture
def sockmap() -> Iterator[_Sockmap]:
    made = _Sockmap()
    yield made
    os.close(made.ring_fd)


@pytest.fixture
def stage(bench: RelayBench, sockmap: _Sockmap) -> Iterator[_Stage]:
    made = _Stage(bench, sockmap)
    yield made
    made.close()


def test_a_kernel_that_has_no_room_is_asked_now_and_then_and_the_pair_relays(stage: _Stage, sockmap: _Sockmap) -> None:
    stage.talk(20 * CALM_READS)
    assert 10 < sockmap.asked <= 40
    stage.first.close()
    assert read_all(stage.second) == b""
    stage.second.close()
    assert stage.finish.wait().ending is Ending.COMPLETE
    assert stage.pair.up_bytes == stage.pair.down_bytes == 20 * CALM_READS * len(_MESSAGE)
    assert sockmap.left == 0


def test_a_stream_that_is_not_whole_ends_with_a_reset(
    stage: _Stage, sockmap: _Sockmap, caplog: pytest.LogCaptureFixture
) -> None:
    sockmap.up, sockmap.down = _Flow(is_whole=False), _Flow(is_whole=True)
    stage.talk_until_joined()
    stage.first.shutdown(socket.SHUT_WR)
    assert was_reset(stage.second)
    assert stage.finish.wait().ending is Ending.PLAIN_RESET
    assert "bytes are missing at the end of a connection that the kernel relayed" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    assert sockmap.left == 1


def test_the_end_is_carried_only_when_what_came_with_it_is_out_of_the_kernel(stage: _Stage, sockmap: _Sockmap) -> None:
    sockmap.up, sockmap.down = _Flow(is_whole=True), _Flow(is_whole=True)
    sockmap.up.drained = iter((True, False, False))  # at first the program has not seen the last bytes yet
    stage.talk_until_joined()
    stage.first.shutdown(socket.SHUT_WR)
    assert stage.second.recv(1) == b""
    assert sockmap.up.looks >= 4
    stage.second.close()
    assert stage.finish.wait().ending is Ending.COMPLETE


def test_what_the_kernel_has_counted_is_in_the_sums_after_the_end(stage: _Stage, sockmap: _Sockmap) -> None:
    sockmap.up, sockmap.down = _Flow(is_whole=True), _Flow(is_whole=True)
    stage.talk_until_joined()
    sockmap.up.moved_bytes, sockmap.down.moved_bytes = 1_000_000, 2_000_000
    own = CALM_READS // 2 * len(_MESSAGE)
    assert (stage.pair.up_bytes, stage.pair.down_bytes) == (own + 1_000_000, own + 2_000_000)
    reset(stage.second)
    assert was_reset(stage.first)
    assert stage.finish.wait().ending is Ending.PEER_RESET
    assert (stage.pair.up_bytes, stage.pair.down_bytes) == (own + 1_000_000, own + 2_000_000)


def test_a_direction_that_the_kernel_did_not_take_is_relayed(stage: _Stage, sockmap: _Sockmap) -> None:
    sockmap.down = _Flow(is_whole=True)
    stage.talk_until_joined()
    for _ in range(3 * CALM_READS):
        stage.first.sendall(_MESSAGE)
        assert stage.second.recv(100) == _MESSAGE
    stage.first.close()
    assert read_all(stage.second) == b""
    stage.second.close()
    assert stage.finish.wait().ending is Ending.COMPLETE
