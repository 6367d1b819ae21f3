"""Who can not use just any tunnel gets one that suits, or dials; the others are served as always."""

from node_agent.tunnel.pool import DIAL, WAIT, Grant, TunnelPool


def _pool(*idle: str, max_dials: int = 1) -> TunnelPool[str, int]:
    pool: TunnelPool[str, int] = TunnelPool(max_dials=max_dials, max_idle=8, idle_s=10.0)
    for tunnel in idle:
        pool.release("key", tunnel, 0.0)
    return pool


def _wanted(tunnel: str) -> bool:
    return tunnel.startswith("wanted")


def test_the_youngest_that_suits_is_taken_whatever_is_above_it() -> None:
    pool = _pool("wanted 1", "wanted 2", "other")
    assert pool.acquire("key", 1, suits=_wanted) == "wanted 2"
    assert pool.acquire("key", 1, suits=_wanted) == "wanted 1"
    assert pool.acquire("key", 1) == "other"


def test_without_one_that_suits_it_is_dialled_and_the_others_stay() -> None:
    pool = _pool("other")
    assert pool.acquire("key", 1, suits=_wanted) is DIAL
    assert pool.idle_count == 1


def test_who_waits_gets_one_that_suits_and_the_others_go_to_whom_they_suit() -> None:
    pool = _pool()
    assert pool.acquire("key", 0) is DIAL
    assert pool.acquire("key", 1, suits=_wanted) is WAIT
    assert pool.acquire("key", 2) is WAIT
    assert pool.release("key", "other", 1.0) == Grant(2, "other")
    assert pool.release("key", "another", 1.0) is None, "it is kept, and 1 waits on"
    assert pool.release("key", "wanted", 1.0) == Grant(1, "wanted")


def test_who_waits_may_dial_in_its_turn_or_give_up() -> None:
    pool = _pool()
    assert pool.acquire("key", 0) is DIAL
    for waiter in (1, 2):
        assert pool.acquire("key", waiter, suits=_wanted) is WAIT
    assert pool.give_up("key", 1)
    assert not pool.give_up("key", 1)
    assert pool.dial_succeeded("key", 1.0) == Grant(2, None)
    assert pool.dial_ended("key") is None
    assert pool.waiter_count == 0


def test_nobody_answers_for_those_either() -> None:
    pool = _pool()
    assert pool.acquire("key", 0) is DIAL
    assert pool.acquire("key", 1, suits=_wanted) is WAIT
    assert pool.dial_unanswered("key", since=1.0) == (None, (1,))
