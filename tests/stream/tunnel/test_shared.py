"""The source's shared tunnels: storms, dials that fail, peers that do not share; fakes for what moves the bytes."""

import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import trio
import trio.testing

from node_agent.errors import CloseReason, ConnectionFailure, RemoteProtocolError
from node_agent.frames import ALPN, HEADER_BYTES, Verdict, encode_verdict
from node_agent.stream_frames import SHARED_ALPN, encode_share
from node_agent.tunnel import Tunnel, TunnelLost
from node_agent.tunnel.shared import SharedTunnels
from tests.carrier_fakes import FakeCarrier, FakeStream, FakeTunnel

_KEY = "from here to there"
_MOST = 100
_HOUR = timedelta(hours=1)


class _World:
    """What dialling meets, and what is made of it."""

    def __init__(self) -> None:
        self.shared = SharedTunnels(cast(Any, self))
        self.protocol = SHARED_ALPN
        self.failure: ConnectionFailure | None = None
        self.not_after = datetime.now(UTC) + _HOUR
        self.dials = self.dialling = self.most_dialling = 0
        self.tunnels: list[FakeTunnel] = []
        self.carriers: list[FakeCarrier] = []
        self.kept: list[Tunnel] = []
        self.breaks = False

    async def dial(self) -> Tunnel:
        self.dials += 1
        self.dialling += 1
        self.most_dialling = max(self.most_dialling, self.dialling)
        try:
            await trio.sleep(1.0)
        finally:
            self.dialling -= 1
        if self.failure is not None:
            raise self.failure
        made = FakeTunnel(self.protocol, self.not_after)
        made.breaks = self.breaks
        self.tunnels.append(made)
        return cast(Tunnel, made)

    def share(self, _tunnel: FakeTunnel, *, on_end: Callable[[], None]) -> FakeCarrier:
        self.carriers.append(FakeCarrier(on_end))
        return self.carriers[-1]

    async def connect(self, key: str = _KEY) -> FakeStream | None:
        found = await self.shared.acquire(key, self.dial, self.kept.append)
        if found is None:
            return None
        stream, _ = await self.shared.ask(found, b"", 60.0)
        return cast(FakeStream, stream)

    def counts(self) -> tuple[int, int, int, int]:
        shared = self.shared
        return shared.idle_count, shared.busy_count, shared.dialling_count, shared.waiting_count

    def sweep(self, after_s: float = 0.0, at: datetime | None = None) -> None:
        self.shared.sweep(trio.current_time() + after_s, at or datetime.now(UTC))


@pytest.fixture
def world() -> _World:
    return _World()


async def test_a_storm_dials_one_at_a_time_and_as_few_as_it_needs(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    streams: list[FakeStream | None] = []

    async def connection() -> None:
        streams.append(await world.connect())

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(connection)
        await trio.testing.wait_all_tasks_blocked()
        assert world.counts() == (0, 0, 1, 499)
    assert len(streams) == 500
    assert None not in streams
    assert (world.dials, world.most_dialling) == (math.ceil(500 / _MOST), 1)
    assert [carrier.most for carrier in world.carriers] == [_MOST] * world.dials
    assert len({tuple(tunnel.sent) for tunnel in world.tunnels}) == world.dials, "tokens are not used twice"
    for tunnel in world.tunnels:
        (share,) = tunnel.sent
        assert share == encode_share(share[HEADER_BYTES:])
    assert world.counts() == (0, 5, 0, 0)
    assert await world.connect("another key") is not None
    assert world.dials == 6


async def test_a_storm_of_connections_that_end_at_once_leaves_nobody_waiting(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    ended = 0

    async def connection() -> None:
        nonlocal ended
        stream = await world.connect()
        assert stream is not None
        stream.forget()
        ended += 1

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(connection)
    assert ended == 500
    assert world.counts()[2:] == (0, 0)


async def test_room_in_an_older_tunnel_is_found_again(autojump_clock: trio.testing.MockClock, world: _World) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2 * _MOST):
            nursery.start_soon(world.connect)
    world.carriers[0].streams[5].forget()
    stream = await world.connect()
    assert stream is not None
    assert stream.carrier is world.carriers[0]
    assert world.dials == 2


@pytest.mark.parametrize("reason", [CloseReason.PEER_UNAVAILABLE, CloseReason.HANDSHAKE_TIMEOUT])
async def test_a_peer_that_does_not_answer_is_found_out_once(
    autojump_clock: trio.testing.MockClock, world: _World, reason: CloseReason
) -> None:
    world.failure = ConnectionFailure(reason, "no way")
    heard: list[ConnectionFailure] = []

    async def connection() -> None:
        with pytest.raises(ConnectionFailure) as caught:
            await world.connect()
        heard.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(connection)
    assert [(failure.reason, failure.detail) for failure in heard] == [(reason, "no way")] * 50
    assert world.dials == 1
    assert trio.current_time() < 2
    assert world.counts() == (0, 0, 0, 0)
    world.failure = None
    assert await world.connect() is not None


@pytest.mark.parametrize("where", ["dial", "share"])
async def test_another_failure_is_of_who_dialled_only(
    autojump_clock: trio.testing.MockClock, world: _World, where: str
) -> None:
    if where == "dial":
        world.failure = ConnectionFailure(CloseReason.IDENTITY_MISMATCH, "an impostor")
    world.breaks = where == "share"
    ended: list[str] = []

    async def connection() -> None:
        try:
            await world.connect()
        except ConnectionFailure:
            ended.append("failed")
            world.failure = None
            world.breaks = False
        else:
            ended.append("served")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(connection)
    assert sorted(ended) == ["failed"] + ["served"] * 9
    assert world.dials == 2
    assert [tunnel.is_closed for tunnel in world.tunnels] == ([False] if where == "dial" else [True, False])


@pytest.mark.parametrize("who", ["the dialler", "a waiter", "all"])
async def test_who_is_cancelled_stops_nobody_else(
    autojump_clock: trio.testing.MockClock, world: _World, who: str
) -> None:
    scopes = [trio.CancelScope() for _ in range(10)]
    served = 0

    async def connection(scope: trio.CancelScope) -> None:
        nonlocal served
        with scope:
            await world.connect()
            served += 1

    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(connection, scope)
            await trio.testing.wait_all_tasks_blocked()
        for scope in {"the dialler": scopes[:1], "a waiter": scopes[3:5], "all": scopes}[who]:
            scope.cancel()
    assert served == {"the dialler": 9, "a waiter": 8, "all": 0}[who]
    assert world.counts() == (0, 1 if served else 0, 0, 0)


async def test_a_waiter_that_is_cancelled_when_it_is_its_turn_hands_it_on(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    world.failure = ConnectionFailure(CloseReason.IDENTITY_MISMATCH, "an impostor")
    scope = trio.CancelScope()
    served: list[int] = []

    async def first() -> None:
        with pytest.raises(ConnectionFailure):
            await world.connect()
        scope.cancel()  # the next has been woken, and has not run yet
        world.failure = None

    async def cancelled() -> None:
        with scope:
            await world.connect()

    async def last() -> None:
        await world.connect()
        served.append(1)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for each in (first, cancelled, last):
                nursery.start_soon(each)
                await trio.testing.wait_all_tasks_blocked()
    assert served == [1]


async def test_a_peer_that_does_not_share_is_asked_again_in_time(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    world.protocol = ALPN
    got: list[object] = []

    async def connection() -> None:
        got.append(await world.connect())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(connection)
    assert got == [None] * 20
    assert world.dials == len(world.kept) == 1
    assert not world.tunnels[0].sent
    assert not world.tunnels[0].is_closed
    await trio.sleep(290)
    world.sweep()
    assert await world.connect() is None
    assert world.dials == 1
    world.protocol = SHARED_ALPN
    await trio.sleep(20)
    assert await world.connect() is not None
    assert world.dials == 2


async def test_idle_and_expired_tunnels_are_closed_and_used_ones_are_not(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    stream = await world.connect()
    assert stream is not None
    world.sweep()
    world.sweep(10_000)
    assert world.counts() == (0, 1, 0, 0)
    stream.forget()
    assert world.counts() == (1, 0, 0, 0)
    world.sweep(10_001)
    world.sweep(10_239)
    assert [carrier.is_over for carrier in world.carriers] == [False]
    world.sweep(10_250)
    assert [(carrier.is_over, carrier.was_reset) for carrier in world.carriers] == [(True, False)]
    assert world.counts() == (0, 0, 0, 0)

    running = await world.connect()
    assert running is not None
    world.sweep(at=world.not_after)
    assert world.counts() == (0, 1, 0, 0)
    world.not_after += _HOUR
    other = await world.connect()
    assert other is not None
    assert other.carrier is world.carriers[2]
    running.forget()
    world.sweep()
    assert [carrier.is_over for carrier in world.carriers] == [True, True, False]


async def test_a_certificate_that_ends_at_once_is_no_reason_to_dial_for_ever(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    world.not_after = datetime.now(UTC)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.connect)
    assert [carrier.opened_count for carrier in world.carriers] == [1, 1, 1]


@pytest.mark.parametrize("reset", [False, True])
async def test_what_is_dropped_takes_nobody_new(
    autojump_clock: trio.testing.MockClock, world: _World, reset: bool
) -> None:
    stream, other = await world.connect(), await world.connect("another key")
    assert stream is not None
    assert other is not None
    world.shared.drop(lambda key, _: key == _KEY, reset=reset)
    assert (stream.carrier.is_over, stream.carrier.was_reset) == (reset, reset)
    assert not other.carrier.is_over
    again = await world.connect()
    assert again is not None
    assert again.carrier not in (stream.carrier, other.carrier)
    if not reset:
        stream.forget()
        world.sweep()
        assert stream.carrier.is_over
    assert not again.carrier.is_over


async def test_a_reset_reaches_those_that_were_dropped_before(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    stream, other = await world.connect(), await world.connect("another key")
    assert stream is not None
    assert other is not None
    world.shared.drop(lambda *_: True)
    assert world.counts() == (0, 2, 0, 0)
    world.shared.drop(lambda key, _: key == _KEY, reset=True)
    assert (stream.carrier.was_reset, other.carrier.is_over) == (True, False)
    world.shared.close()
    assert other.carrier.is_over
    assert not other.carrier.was_reset
    assert world.counts() == (0, 0, 0, 0)


@pytest.mark.parametrize("fault", [None, "DATA that is not in order"])
async def test_a_tunnel_that_ends_before_its_verdict(
    autojump_clock: trio.testing.MockClock, world: _World, fault: str | None
) -> None:
    found = await world.shared.acquire(_KEY, world.dial, world.kept.append)
    assert found is not None
    world.carriers[0].answer = None
    world.carriers[0].fault = fault
    with pytest.raises(TunnelLost if fault is None else RemoteProtocolError):
        await world.shared.ask(found, b"", 60.0)


async def test_a_refused_stream_is_forgotten_and_one_with_a_verdict_of_garbage_cut(
    autojump_clock: trio.testing.MockClock, world: _World
) -> None:
    found = await world.shared.acquire(_KEY, world.dial, world.kept.append)
    assert found is not None
    for reason in itertools.islice((each for each in CloseReason if each is not CloseReason.OK), 5):
        world.carriers[0].answer = encode_verdict(Verdict(reason=reason))[HEADER_BYTES:]
        stream, verdict = await world.shared.ask(found, b"", 60.0)
        assert verdict.reason is reason
        assert cast(FakeStream, stream).is_forgotten
    world.carriers[0].answer = b"\xc1"
    with pytest.raises(RemoteProtocolError):
        await world.shared.ask(found, b"", 60.0)
    assert world.carriers[0].streams == []
