"""trio and the relay in one thread: neither starves the other, and cancelling a story cuts its pair."""

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from node_agent.errors import CloseReason
from node_agent.frames import FrameType
from node_agent.relay import Ending, Outcome, Relay
from tests.background import in_background
from tests.relay_builder import Peer, TlsPairs, tcp_pair, was_reset


@dataclass(slots=True)
class _Joined:
    """A tunnel story: the application's socket, the other agent's end and what the story waits for."""

    app: socket.socket
    plain: socket.socket
    tunnel: socket.socket
    peer: Peer
    outcomes: list[Outcome] = field(default_factory=list)


class _Joiner:
    def __init__(self, pairs: TlsPairs) -> None:
        self._pairs = pairs
        self._sockets: list[socket.socket] = []
        self.crashes: list[BaseException] = []

    def join(self) -> _Joined:
        app, plain = tcp_pair()
        tunnel, theirs = self._pairs.make()
        plain.setblocking(False)
        self._sockets += [app, plain, tunnel, theirs]
        return _Joined(app=app, plain=plain, tunnel=tunnel, peer=Peer(theirs))

    async def carry(self, relay: Relay, joined: _Joined, why: CloseReason | None = None) -> None:
        tunnel = joined.tunnel
        joined.outcomes.append(
            await relay.run_tunnel(joined.plain, tunnel, lambda _: None, why=lambda: why)  # type: ignore[arg-type]
        )

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def joiner(tls_pairs: TlsPairs) -> Iterator[_Joiner]:
    made = _Joiner(tls_pairs)
    yield made
    made.close()


def _stream(sock: socket.socket, size: int, chunk: bytes) -> None:
    for _ in range(size // len(chunk)):
        sock.sendall(chunk)
    sock.shutdown(socket.SHUT_WR)


def _take(joined: _Joined, digests: list[str]) -> None:
    received, kind = joined.peer.read_stream()
    assert kind == FrameType.EOF
    digests.append(hashlib.sha256(received).hexdigest())
    joined.peer.send(bytes([FrameType.EOF, 0, 0, 0]))


async def _transfer(relay: Relay, joiner: _Joiner, size: int) -> None:
    """Move ``size`` bytes from an application through the relay to the peer, with real threads at the ends."""
    joined = joiner.join()
    chunk = bytes(range(256)) * 256
    digests: list[str] = []

    def ends() -> None:
        with in_background(lambda: _stream(joined.app, size, chunk)):
            _take(joined, digests)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(joiner.carry, relay, joined)
        await trio.to_thread.run_sync(ends)
    assert [each.ending for each in joined.outcomes] == [Ending.COMPLETE]
    assert not relay.pairs
    assert digests == [hashlib.sha256(chunk * (size // len(chunk))).hexdigest()]


async def test_bulk_does_not_keep_stories_waiting(joiner: _Joiner) -> None:
    relay = Relay(on_crash=joiner.crashes.append)
    late_s = []
    try:
        async with trio.open_nursery() as nursery:

            async def tick() -> None:
                while True:
                    due = trio.current_time() + 0.005
                    await trio.sleep_until(due)
                    late_s.append(trio.current_time() - due)

            nursery.start_soon(tick)
            await _transfer(relay, joiner, 128 << 20)
            nursery.cancel_scope.cancel()
    finally:
        relay.close()
    assert len(late_s) > 10
    assert sorted(late_s)[len(late_s) // 2] < 0.05
    assert joiner.crashes == []


async def test_busy_stories_do_not_stop_the_relay(joiner: _Joiner) -> None:
    relay = Relay(on_crash=joiner.crashes.append)
    steps = 0
    try:
        async with trio.open_nursery() as nursery:

            async def spin() -> None:
                nonlocal steps
                while True:
                    await trio.lowlevel.checkpoint()
                    steps += 1

            nursery.start_soon(spin)
            await _transfer(relay, joiner, 8 << 20)
            nursery.cancel_scope.cancel()
    finally:
        relay.close()
    assert steps > 100
    assert joiner.crashes == []


@pytest.mark.parametrize("reason", [CloseReason.DRAINED, CloseReason.WORKLOAD_REMOVED, None])
async def test_cancelled_story_cuts_its_pair_and_tells_why(joiner: _Joiner, reason: CloseReason | None) -> None:
    relay = Relay(on_crash=joiner.crashes.append)
    joined = joiner.join()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joiner.carry, relay, joined, reason)
            joined.app.send(b"x")
            assert await trio.to_thread.run_sync(joined.peer.read_frame) == (FrameType.DATA, b"x")
            nursery.cancel_scope.cancel()
        assert joined.outcomes == [], "the cancellation goes on"
        with trio.fail_after(30):
            told = await trio.to_thread.run_sync(joined.peer.read_frame)
            assert told == (FrameType.RESET, reason.encode() if reason else b"")
            joined.peer.tls.close()
            await relay.finish()
        assert was_reset(joined.app)
    finally:
        relay.close()
    assert joiner.crashes == []


async def test_a_pair_can_be_looked_at_while_it_is_relayed(joiner: _Joiner) -> None:
    relay = Relay(on_crash=joiner.crashes.append)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(joiner.carry, relay, joiner.join())
            await trio.testing.wait_all_tasks_blocked()
            assert [pair.held_bytes for pair in relay.pairs] == [0, 0]
            nursery.cancel_scope.cancel()
        assert not relay.pairs
    finally:
        relay.close()
    assert joiner.crashes == []


async def test_story_cancelled_before_its_pair_moves_anything(joiner: _Joiner) -> None:
    relay = Relay(on_crash=joiner.crashes.append)
    joined = joiner.join()
    try:
        with trio.CancelScope() as scope:
            scope.cancel()
            await joiner.carry(relay, joined)
        assert scope.cancelled_caught
        assert was_reset(joined.app)
    finally:
        relay.close()
    assert joiner.crashes == []


async def test_a_bug_in_the_loop_is_told_and_stops_the_relay(joiner: _Joiner) -> None:
    relay = Relay(on_crash=joiner.crashes.append)
    bug = RuntimeError("a bug")

    def fail() -> None:
        raise bug

    joined = joiner.join()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joiner.carry, relay, joined)
            await trio.lowlevel.checkpoint()
            relay._loop.call_soon(fail)
            with trio.fail_after(30):
                while not joiner.crashes:
                    await trio.sleep(0.01)
            # The pair is lost with the loop; only the test's own reschedule ends its task.
            nursery.cancel_scope.cancel()
            relay._loop.serve(0)
    finally:
        relay.close()
    assert joiner.crashes == [bug]
