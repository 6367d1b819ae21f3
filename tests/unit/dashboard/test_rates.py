"""Counters into rates."""

from node_agent.dashboard.rates import Counters, Meter, Rates


def _opened(*values: float) -> list[Counters]:
    return [Counters(opened=value) for value in values]


def test_there_is_no_rate_before_the_second_reading() -> None:
    meter = Meter()
    meter.take(10.0, Counters(opened=100))
    assert meter.rate() is None

    meter.take(12.0, Counters(opened=110, sent_bytes=4000))
    assert meter.rate() == Counters(opened=5.0, sent_bytes=2000.0)


def test_a_rate_is_that_of_the_last_four_readings() -> None:
    meter = Meter()
    for at, counters in zip((0.0, 1.0, 2.0, 3.0, 4.0), _opened(0, 1000, 1003, 1006, 1009), strict=True):
        meter.take(at, counters)

    assert meter.rate() == Counters(opened=3.0)


def test_a_counter_that_went_back_is_a_new_agents() -> None:
    meter = Meter()
    for at, counters in zip((0.0, 1.0, 2.0), _opened(1000, 1010, 3), strict=True):
        meter.take(at, counters)
    assert meter.rate() is None

    meter.take(3.0, Counters(opened=7))
    assert meter.rate() == Counters(opened=4.0)


def test_a_clock_that_was_set_back_gives_no_negative_rate() -> None:
    meter = Meter()
    for at, counters in zip((100.0, 50.0, 51.0), _opened(1, 2, 4), strict=True):
        meter.take(at, counters)

    assert meter.rate() == Counters(opened=2.0)


def test_the_same_reading_twice_is_one() -> None:
    meter = Meter()
    for at, counters in zip((0.0, 1.0, 1.0), _opened(0, 5, 5), strict=True):
        meter.take(at, counters)

    assert meter.rate() == Counters(opened=5.0)


def test_an_agent_that_was_away_adds_no_jump() -> None:
    rates = Rates()
    key = ("node-1", "a", "b")
    rates.begin()
    rates.read(key, 0.0, Counters(opened=0))
    for _ in range(10):
        rates.begin()  # nothing is heard of it
    rates.begin()

    assert rates.read(key, 22.0, Counters(opened=44)) == Counters(opened=2.0)


def test_history_is_two_minutes_and_goes_with_its_edge() -> None:
    rates = Rates()
    for value in range(70):
        rates.record({"a>b": Counters(opened=float(value))})
    assert [each.opened for each in rates.history("a>b")] == [float(value) for value in range(10, 70)]

    rates.record({})
    assert rates.history("a>b") == []


def test_what_nobody_speaks_of_any_more_is_forgotten() -> None:
    rates = Rates()
    key = ("node-1", "a", "b")
    rates.begin()
    rates.read(key, 0.0, Counters(opened=0))
    for _ in range(151):
        rates.begin()

    assert rates.read(key, 400.0, Counters(opened=1000)) is None
