"""The times of one connection, on a clock that the test turns."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest
import trio
import trio.testing

from ca.manifests.traffic import Timeouts
from node_agent.errors import CloseReason
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.timeouts import Sight, Timekeeper, Watch, shortest_s

_QUIET = Sight(0, 0, 0, 0, False)


def _watch(**times: float) -> Watch:
    timeouts = replace(Timeouts(idle_s=0.0), **times)
    return Watch(timeouts, _QUIET, began_at=100.0, now=100.0)


def _reason(watch: Watch, sight: Sight, now: float) -> CloseReason | None:
    found = watch.look(sight, now)
    return found[0] if found is not None else None


def test_a_connection_without_a_byte_for_so_long_is_idle() -> None:
    watch = _watch(idle_s=10.0)
    assert _reason(watch, _QUIET, 109.9) is None
    assert _reason(watch, _QUIET, 110.0) is CloseReason.IDLE_TIMEOUT


@pytest.mark.parametrize("moved", [Sight(1, 0, 0, 0, False), Sight(0, 1, 0, 0, False)])
def test_a_byte_either_way_begins_it_anew(moved: Sight) -> None:
    watch = _watch(idle_s=10.0)
    assert _reason(watch, moved, 109.0) is None
    assert _reason(watch, moved, 118.9) is None
    assert _reason(watch, moved, 119.0) is CloseReason.IDLE_TIMEOUT


def test_a_lifetime_is_over_however_busy_the_connection_is() -> None:
    watch = _watch(lifetime_s=10.0)
    for second in range(1, 10):
        assert _reason(watch, Sight(second, 0, 0, 0, False), 100.0 + second) is None
    assert _reason(watch, Sight(10, 0, 0, 0, False), 110.0) is CloseReason.LIFETIME_EXCEEDED


def test_a_half_closed_connection_has_its_own_idle_time_from_then_on() -> None:
    watch = _watch(half_closed_s=5.0)
    assert _reason(watch, _QUIET, 150.0) is None, "it is not half-closed yet"
    half = Sight(0, 0, 0, 0, True)
    assert _reason(watch, half, 160.0) is None
    assert _reason(watch, half, 164.9) is None
    assert _reason(watch, replace(half, down_bytes=9), 164.9) is None
    assert _reason(watch, replace(half, down_bytes=9), 169.8) is None
    assert _reason(watch, replace(half, down_bytes=9), 169.9) is CloseReason.IDLE_TIMEOUT


@pytest.mark.parametrize("way", ["up", "down"])
def test_bytes_that_nobody_takes_are_stalled(way: str) -> None:
    watch = _watch(stalled_write_s=5.0)
    stuck = Sight(9000, 0, 8000, 0, False) if way == "up" else Sight(0, 9000, 0, 8000, False)
    assert _reason(watch, stuck, 101.0) is None
    assert _reason(watch, stuck, 105.9) is None
    assert _reason(watch, stuck, 106.0) is CloseReason.STALLED_WRITE


@pytest.mark.parametrize(
    "moved", [Sight(9000, 0, 7999, 0, False), Sight(9001, 0, 8000, 0, False), Sight(9000, 0, 0, 0, False)]
)
def test_what_is_taken_or_added_is_not_stalled(moved: Sight) -> None:
    watch = _watch(stalled_write_s=5.0)
    assert _reason(watch, Sight(9000, 0, 8000, 0, False), 101.0) is None
    assert _reason(watch, moved, 105.9) is None
    assert _reason(watch, moved, 110.8) is None


def test_the_other_direction_does_not_excuse_a_stalled_one() -> None:
    watch = _watch(stalled_write_s=5.0)
    found = [_reason(watch, Sight(9000, second * 100, 8000, second * 10, False), 101.0 + second) for second in range(6)]
    assert found == [None] * 5 + [CloseReason.STALLED_WRITE]


def test_no_time_is_no_limit() -> None:
    assert _reason(_watch(), Sight(9, 9, 9, 9, True), 1e9) is None
    assert shortest_s(Timeouts(idle_s=0.0)) == inf
    assert shortest_s(Timeouts(lifetime_s=7.0)) == 7.0


class _Pair:
    """Moves nothing after its first byte; ``looks`` is how often somebody looked."""

    def __init__(self) -> None:
        self.looks = 0
        self.up_bytes = 0
        self.down_bytes = 0

    @property
    def is_half_closed(self) -> bool:
        self.looks += 1
        return False

    def send_queues(self) -> tuple[int, int]:
        return 0, 0


class _Record:
    def __init__(self) -> None:
        self.ended: list[tuple[CloseReason, float]] = []

    def close_because(self, reason: CloseReason, _detail: str) -> None:
        self.ended.append((reason, trio.current_time()))


class _Stage:
    """Connections that are kept to their times, on a clock that jumps."""

    def __init__(self) -> None:
        self.live = LiveConnections()
        self.times = Timekeeper(self.live)

    async def connection(self, pair: _Pair, record: _Record, timeouts: Timeouts) -> None:
        unused: Any = record
        with self.live.track(unused, "uid") as live:
            carried: Any = pair
            self.times.keep(live, timeouts, carried)
            await trio.sleep_forever()


def test_a_short_time_of_one_connection_does_not_cost_the_others_a_look_each_time() -> None:
    """Ten thousand of them are a tenth of a second: fifty times a second would be all that there is."""
    long, short, gone = [_Pair() for _ in range(1000)], _Pair(), _Record()

    async def main() -> None:
        stage = _Stage()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.times.run)
            for each in long:
                nursery.start_soon(stage.connection, each, _Record(), Timeouts())
            await trio.sleep(1.0)
            for _ in range(20):
                nursery.start_soon(stage.connection, short, gone, Timeouts(idle_s=0.2))
                await trio.sleep(0.3)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [reason for reason, _ in gone.ended] == [CloseReason.IDLE_TIMEOUT] * 20
    assert max(each.looks for each in long) <= 25, "once for each that came, not for each moment"


@pytest.mark.parametrize("idle_s", [0.5, 7.0, 60.0, 600.0])
def test_a_time_is_kept_to_within_a_tenth_and_never_early(idle_s: float) -> None:
    record, pair = _Record(), _Pair()

    async def main() -> None:
        stage = _Stage()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.times.run)
            nursery.start_soon(stage.connection, _Pair(), _Record(), Timeouts(idle_s=idle_s * 10))
            await trio.sleep(idle_s * 1.23)
            nursery.start_soon(stage.connection, pair, record, Timeouts(idle_s=idle_s))
            await trio.sleep(idle_s * 0.04)
            pair.up_bytes += 1
            await trio.sleep(idle_s * 1.2)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    ((reason, at),) = record.ended
    assert reason is CloseReason.IDLE_TIMEOUT
    began_at, moved_at = idle_s * 1.23, idle_s * 1.27
    assert began_at < moved_at <= at - idle_s + 1e-6
    assert at <= moved_at + idle_s * 1.11
