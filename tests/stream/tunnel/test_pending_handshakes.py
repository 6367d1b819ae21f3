"""The bound on connections that have proved nothing: the oldest goes, whoever has proved something stays."""

import trio

from node_agent.tunnel import PendingHandshakes


async def test_over_the_bound_the_oldest_is_dropped() -> None:
    pending = PendingHandshakes(2)
    scopes = [trio.CancelScope() for _ in range(3)]
    for scope in scopes[:2]:
        pending.enter(scope)
    assert not any(scope.cancel_called for scope in scopes)
    pending.enter(scopes[2])
    assert [scope.cancel_called for scope in scopes] == [True, False, False]
    assert len(pending) == 2


async def test_one_that_has_left_makes_room_and_is_not_dropped_later() -> None:
    pending = PendingHandshakes(2)
    scopes = [trio.CancelScope() for _ in range(4)]
    pending.enter(scopes[0])
    pending.leave(scopes[0])
    for scope in scopes[1:3]:
        pending.enter(scope)
    assert not any(scope.cancel_called for scope in scopes)
    pending.enter(scopes[3])
    assert [scope.cancel_called for scope in scopes] == [False, True, False, False]


async def test_leaving_twice_or_after_being_dropped_is_harmless() -> None:
    pending = PendingHandshakes(1)
    first, second = trio.CancelScope(), trio.CancelScope()
    pending.enter(first)
    pending.enter(second)
    pending.leave(first)
    pending.leave(second)
    pending.leave(second)
    assert len(pending) == 0
