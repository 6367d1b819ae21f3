"""Those who are turned away come back spread out, and log lines do not pile up."""

import random

from ca.authority.overload import Overload
from ca.authority.quiet import LogGate


def test_ten_are_spread_over_a_few_seconds() -> None:
    overload, rng = Overload(), random.Random(1)
    times = [overload.turned_away(draw=rng.random()) for _ in range(10)]
    assert min(times) >= 1.0
    assert max(times) <= 5.0


def test_ten_thousand_are_spread_over_half_a_minute_without_a_peak() -> None:
    overload, rng = Overload(), random.Random(1)
    times = [overload.turned_away(draw=rng.random()) for _ in range(10_000)]
    assert max(times) <= 29.0
    later = times[3000:]  # the window is at its widest by then
    a_second = [sum(1 for each in later if second <= each < second + 1) for second in range(1, 29)]
    assert max(a_second) < 1.3 * len(later) / 28


def test_it_is_over_when_nothing_waits() -> None:
    overload = Overload()
    for _ in range(5000):
        overload.turned_away(draw=0.5)
    overload.idle()
    assert overload.turned_away(draw=1.0) == 5.0


def test_a_peer_can_not_fill_the_log_and_what_was_left_out_is_counted() -> None:
    gate = LogGate()
    written = sum(gate.admits("refused", "10.0.0.1", now=0.0) for _ in range(1000))
    assert written == 15
    assert gate.admits("refused", "10.0.0.2", now=0.0)
    assert gate.left_out() == {"refused": 985}
    assert gate.left_out() == {}


def test_many_peers_can_not_fill_the_log_together() -> None:
    gate = LogGate()
    written = sum(gate.admits("refused", f"10.0.{number // 256}.{number % 256}", now=0.0) for number in range(5000))
    assert written == 150
