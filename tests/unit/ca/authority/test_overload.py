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


def test_how_long_it_takes_is_learnt_from_how_long_it_took() -> None:
    overload = Overload()
    assert overload.takes_s(1000) == 1.0
    for _ in range(50):
        overload.worked(certificates=100, seconds=1.0)
    assert 9.9 < overload.takes_s(1000) <= 10.0
    assert overload.worth(0.25) == 25
    for _ in range(50):
        overload.worked(certificates=100, seconds=0.05)
    assert 0.5 <= overload.takes_s(1000) < 0.51


def test_a_slow_disk_under_single_requests_is_not_taken_for_a_slow_authority() -> None:
    overload = Overload()
    for _ in range(1000):
        overload.worked(certificates=1, seconds=0.5)
    assert overload.takes_s(1000) == 1.0


def test_however_slow_it_was_groups_are_large_enough_to_learn_that_it_is_not_any_more() -> None:
    overload = Overload()
    for _ in range(50):
        overload.worked(certificates=20, seconds=100.0)
    assert overload.worth(0.25) == 20
    for _ in range(100):
        overload.worked(certificates=overload.worth(0.25), seconds=0.02)
    assert overload.takes_s(1000) < 1.1
