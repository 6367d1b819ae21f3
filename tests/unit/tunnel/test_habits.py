"""Whether connections to a port share a tunnel, by what those before them did."""

from node_agent.tunnel.habits import Habits


def _connect(habits: Habits, port: int, *, is_bulk: bool) -> bool:
    """One connection; returns whether it shared."""
    if not habits.may_share(port):
        return False
    habits.opened(port)
    if is_bulk:
        habits.moved(port)
    return True


def test_connections_share_while_nothing_is_known() -> None:
    habits = Habits()
    assert all(_connect(habits, 80, is_bulk=False) for _ in range(100))


def test_after_some_bulk_connections_the_next_ones_do_not_share_but_for_every_sixteenth() -> None:
    habits = Habits()
    shared = [_connect(habits, 80, is_bulk=True) for _ in range(200)]
    first = shared.index(False)
    assert 3 < first < 10
    assert sum(shared[first:]) == (200 - first) // 16
    assert all(_connect(habits, 81, is_bulk=False) for _ in range(100)), "another port has habits of its own"


def test_ports_that_are_small_again_are_shared_again() -> None:
    habits = Habits()
    for _ in range(200):
        _connect(habits, 80, is_bulk=True)
    shared = [_connect(habits, 80, is_bulk=False) for _ in range(200)]
    assert not all(shared[:16])
    assert all(shared[-50:])


def test_a_few_bulk_connections_among_many_change_nothing() -> None:
    habits = Habits()
    assert all(_connect(habits, 80, is_bulk=number % 4 == 0) for number in range(400))


def test_what_is_known_is_bounded() -> None:
    habits = Habits()
    for port in range(1, 65536):
        habits.moved(port)
    assert all(_connect(habits, port, is_bulk=False) for port in range(1, 60000))
