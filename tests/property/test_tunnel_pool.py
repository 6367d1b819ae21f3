"""The tunnel pool against an oracle that remembers where every tunnel and every waiter is."""

import itertools
import math
from collections import deque

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from node_agent.tunnel.pool import DIAL, WAIT, Grant, TunnelPool

_MAX_DIALS = 3
_MAX_IDLE = 4
_IDLE_S = 10.0
_KEYS = st.sampled_from(["a", "b"])


class PoolMachine(RuleBasedStateMachine):
    """Tunnels are numbers, waiters are numbers; ``_queued`` and ``_idle`` are what the pool must know."""

    dials = Bundle("dials")
    tunnels = Bundle("tunnels")

    def __init__(self) -> None:
        super().__init__()
        self._pool: TunnelPool[str, int] = TunnelPool(max_dials=_MAX_DIALS, max_idle=_MAX_IDLE, idle_s=_IDLE_S)
        self._now = 0.0
        self._names = itertools.count()
        self._queued: dict[str, deque[int]] = {"a": deque(), "b": deque()}
        self._idle: dict[str, list[tuple[float, str]]] = {"a": [], "b": []}
        self._dialling = {"a": 0, "b": 0}
        self._worked_at = {"a": -math.inf, "b": -math.inf}

    def _tick(self) -> float:
        """No two things happen at the same moment."""
        self._now += 0.001
        return self._now

    def _granted(self, key: str, grant: Grant[str, int], tunnel: str | None) -> None:
        """The first in the queue was answered, once."""
        assert grant.waiter == self._queued[key].popleft()
        assert grant.tunnel == tunnel

    @rule(target=tunnels, key=_KEYS)
    def acquire_idle(self, key: str) -> object:
        if not self._idle[key]:
            return multiple()
        got = self._pool.acquire(key, next(self._names))
        assert (self._idle[key].pop()[1]) == got, "the youngest, so that the rest may expire"
        return (key, got)

    @rule(target=dials, key=_KEYS)
    def acquire_without_idle(self, key: str) -> object:
        if self._idle[key]:
            return multiple()
        waiter = next(self._names)
        got = self._pool.acquire(key, waiter)
        if self._dialling[key] < _MAX_DIALS:
            assert got is DIAL
            self._dialling[key] += 1
            return (key, self._tick())
        assert got is WAIT
        self._queued[key].append(waiter)
        return multiple()

    @rule(target=dials, dial=consumes(dials))
    def dial_fails(self, dial: tuple[str, float]) -> object:
        return self._dial_ended(dial[0], self._pool.dial_ended(dial[0]))

    @rule(target=dials, dial=consumes(dials))
    def dial_is_not_answered(self, dial: tuple[str, float]) -> object:
        key, began = dial
        grant, hopeless = self._pool.dial_unanswered(key, since=began)
        if self._worked_at[key] < began:
            assert hopeless == tuple(self._queued[key]), "everybody is told, in order, once"
            self._queued[key].clear()
        else:
            assert hopeless == ()
        return self._dial_ended(key, grant)

    @rule(target=dials, dial=consumes(dials), given_back=st.booleans())
    def dial_succeeds(self, dial: tuple[str, float], given_back: bool) -> object:
        """As the client does it: the place is given up first, the tunnel lives on."""
        key, _ = dial
        self._worked_at[key] = self._tick()
        again = self._dial_ended(key, self._pool.dial_succeeded(key, self._now))
        if given_back:
            self._give_back(key, f"tunnel-{next(self._names)}")
        return again

    def _dial_ended(self, key: str, grant: Grant[str, int] | None) -> object:
        if self._queued[key]:
            assert grant is not None
            self._granted(key, grant, None)
            return (key, self._tick())  # the waiter dials in this place
        assert grant is None
        self._dialling[key] -= 1
        return multiple()

    @rule(tunnel=consumes(tunnels))
    def release(self, tunnel: tuple[str, str]) -> None:
        self._give_back(*tunnel)

    @rule(tunnel=consumes(tunnels))
    def discard(self, tunnel: tuple[str, str]) -> None:
        """A tunnel that is closed is simply never given back."""

    def _give_back(self, key: str, tunnel: str) -> None:
        self._worked_at[key] = self._tick()
        given = self._pool.release(key, tunnel, self._now)
        if self._queued[key]:
            assert isinstance(given, Grant)
            self._granted(key, given, tunnel)
            # That waiter closes it or gives it back: to the pool it is out.
        elif len(self._idle[key]) >= _MAX_IDLE:
            assert given == tunnel, "too many: the caller closes it"
        else:
            assert given is None
            self._idle[key].append((self._now, tunnel))

    @rule(key=_KEYS, place=st.integers(0, 5))
    def give_up(self, key: str, place: int) -> None:
        if place < len(self._queued[key]):
            waiter = self._queued[key][place]
            del self._queued[key][place]
            assert self._pool.give_up(key, waiter)
            assert not self._pool.give_up(key, waiter)
        else:
            assert not self._pool.give_up(key, -1)

    @rule(step_s=st.floats(0.1, 8.0))
    def expire(self, step_s: float) -> None:
        self._now += step_s
        expected = []
        for key, idle in self._idle.items():
            expected += [tunnel for since, tunnel in idle if self._now - since >= _IDLE_S]
            self._idle[key] = [each for each in idle if self._now - each[0] < _IDLE_S]
        assert sorted(self._pool.expire(self._now)) == sorted(expected)

    @rule(key=_KEYS)
    def drop(self, key: str) -> None:
        expected = [tunnel for _, tunnel in self._idle[key]]
        self._idle[key] = []
        assert sorted(self._pool.drop(lambda each, _: each == key)) == sorted(expected)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self._pool.idle_count == sum(map(len, self._idle.values()))
        assert self._pool.waiter_count == sum(map(len, self._queued.values()))
        assert self._pool.dial_count == sum(self._dialling.values())

    @invariant()
    def nobody_waits_without_need(self) -> None:
        for key, queued in self._queued.items():
            assert self._dialling[key] <= _MAX_DIALS
            if queued:
                assert not self._idle[key]
                assert self._dialling[key] == _MAX_DIALS

    def teardown(self) -> None:
        """When everything has ended the pool remembers no key: it would grow with every endpoint that ever was."""
        for key, queued in self._queued.items():
            for waiter in queued:
                assert self._pool.give_up(key, waiter)
            for _ in range(self._dialling[key]):
                assert self._pool.dial_ended(key) is None
        self._pool.drop(lambda _, __: True)
        assert not self._pool._slots


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=60)
