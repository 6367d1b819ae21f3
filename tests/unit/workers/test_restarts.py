"""A worker that ends by itself is started again, with growing pauses, until that is hopeless."""

from node_agent.workers.restarts import Restarts


def test_one_crash_now_and_then_is_followed_by_a_short_pause() -> None:
    restarts = Restarts(2)
    assert [restarts.crashed(100.0 * turn) for turn in range(50)] == [0.1] * 50
    assert restarts.total == 50


def test_the_pauses_double_up_to_five_seconds() -> None:
    restarts = Restarts(2)
    assert [restarts.crashed(float(turn)) for turn in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_more_than_five_crashes_a_worker_in_a_minute_are_hopeless() -> None:
    restarts = Restarts(2)
    pauses = [restarts.crashed(float(turn)) for turn in range(11)]
    assert None not in pauses[:10]
    assert pauses[10] is None


def test_a_crash_is_forgotten_after_a_minute() -> None:
    restarts = Restarts(1)
    for turn in range(5):
        assert restarts.crashed(float(turn)) is not None
    assert restarts.crashed(70.0) == 0.1
