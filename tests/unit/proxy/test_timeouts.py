"""The times of one connection, on a clock that the test turns."""

from dataclasses import replace
from math import inf

import pytest

from ca.manifests.traffic import Timeouts
from node_agent.errors import CloseReason
from node_agent.proxy.timeouts import Sight, Watch, shortest_s

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
