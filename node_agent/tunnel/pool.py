"""Idle tunnels by key, and who may dial when there is none.

Sans-I/O: callers pass ``now``; tunnels and waiters are opaque.  A connection
storm to one key dials at most ``max_dials`` tunnels at a time; the others wait
and get whichever comes first, a tunnel that another connection gave back or a
free place to dial.

    acquire --> Use(tunnel)        an idle one, the youngest: the rest may expire
            --> Dial               nobody idle and a place is free; report how it ended
            --> WAIT               queued; a later call returns a Grant for this waiter

Who can not use just any tunnel of its key says which ones suit.

A peer that does not answer is found out once, not by every waiter in its turn:
see ``dial_unanswered``.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Generic, TypeVar

TunnelT = TypeVar("TunnelT")
WaiterT = TypeVar("WaiterT", bound=Hashable)


class Answer(Enum):
    """What a connection without an idle tunnel is to do."""

    DIAL = auto()
    WAIT = auto()


DIAL: Final = Answer.DIAL
WAIT: Final = Answer.WAIT


@dataclass(slots=True)
class Grant(Generic[TunnelT, WaiterT]):
    """Wake ``waiter``: it may use ``tunnel``, or dial if that is None."""

    waiter: WaiterT
    tunnel: TunnelT | None


@dataclass(slots=True)
class _Slot(Generic[TunnelT, WaiterT]):
    idle: list[tuple[float, TunnelT]] = field(default_factory=list)
    waiters: deque[tuple[WaiterT, Callable[[TunnelT], bool] | None]] = field(default_factory=deque)
    dials: int = 0
    worked_at: float = -math.inf  # when a dial succeeded or a tunnel came back


class TunnelPool(Generic[TunnelT, WaiterT]):
    """Every method changes all the state at once and returns what is to be done.

    Who calls ``acquire`` and is told DIAL (at once or by a Grant) calls exactly
    one of the ``dial_`` methods, once.
    """

    def __init__(self, *, max_dials: int, max_idle: int, idle_s: float) -> None:
        self._max_dials = max_dials
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._slots: dict[Hashable, _Slot[TunnelT, WaiterT]] = {}

    @property
    def idle_count(self) -> int:
        return sum(len(slot.idle) for slot in self._slots.values())

    @property
    def dial_count(self) -> int:
        """Dials that are under way."""
        return sum(slot.dials for slot in self._slots.values())

    @property
    def waiter_count(self) -> int:
        """Those who were told WAIT and still do."""
        return sum(len(slot.waiters) for slot in self._slots.values())

    def acquire(
        self, key: Hashable, waiter: WaiterT, *, suits: Callable[[TunnelT], bool] | None = None
    ) -> TunnelT | Answer:
        """Return an idle tunnel, DIAL, or WAIT after queueing ``waiter``; no tunnel that does not suit."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        for at in range(len(slot.idle) - 1, -1, -1):
            if suits is None or suits(slot.idle[at][1]):
                return slot.idle.pop(at)[1]
        if slot.dials < self._max_dials:
            slot.dials += 1
            return DIAL
        slot.waiters.append((waiter, suits))
        return WAIT

    def give_up(self, key: Hashable, waiter: WaiterT) -> bool:
        """Take a queued waiter back; False when it was granted something already."""
        slot = self._slots.get(key)
        queued = next((each for each in slot.waiters if each[0] == waiter), None) if slot is not None else None
        if slot is None or queued is None:
            return False
        slot.waiters.remove(queued)
        self._forget_if_empty(key, slot)
        return True

    def dial_succeeded(self, key: Hashable, now: float) -> Grant[TunnelT, WaiterT] | None:
        """The tunnel is the dialler's; its place to dial goes to the first waiter."""
        self._slots[key].worked_at = now
        return self.dial_ended(key)

    def dial_unanswered(
        self, key: Hashable, *, since: float
    ) -> tuple[Grant[TunnelT, WaiterT] | None, tuple[WaiterT, ...]]:
        """Nobody answered a dial that was begun at ``since``.

        If nothing of this key has worked since then, all waiters are returned:
        they are to be told the same, they wait no longer.  Otherwise it was bad
        luck, and the place goes to the first waiter.
        """
        slot = self._slots[key]
        hopeless: tuple[WaiterT, ...] = ()
        if slot.worked_at < since:
            hopeless = tuple(waiter for waiter, _ in slot.waiters)
            slot.waiters.clear()
        return self.dial_ended(key), hopeless

    def dial_ended(self, key: Hashable) -> Grant[TunnelT, WaiterT] | None:
        """A dial ended without a tunnel; its place goes to the first waiter."""
        slot = self._slots[key]
        if slot.waiters:
            return Grant(slot.waiters.popleft()[0], None)
        slot.dials -= 1
        self._forget_if_empty(key, slot)
        return None

    def release(self, key: Hashable, tunnel: TunnelT, now: float) -> Grant[TunnelT, WaiterT] | TunnelT | None:
        """Take a tunnel back.

        Returns a Grant when somebody waits for it, the tunnel itself when there
        are too many idle ones (the caller closes it), None when it was kept.
        """
        slot = self._slots.setdefault(key, _Slot())
        slot.worked_at = now
        for at, (waiter, suits) in enumerate(slot.waiters):
            if suits is None or suits(tunnel):
                del slot.waiters[at]
                return Grant(waiter, tunnel)
        if len(slot.idle) >= self._max_idle:
            return tunnel
        slot.idle.append((now, tunnel))
        return None

    def expire(self, now: float) -> list[TunnelT]:
        """Remove and return the tunnels that were idle for too long."""
        return self._remove(lambda _, since, __: now - since >= self._idle_s)

    def drop(self, unwanted: Callable[[Hashable, TunnelT], bool]) -> list[TunnelT]:
        """Remove and return the idle tunnels that ``unwanted`` names."""
        return self._remove(lambda key, _, tunnel: unwanted(key, tunnel))

    def _remove(self, unwanted: Callable[[Hashable, float, TunnelT], bool]) -> list[TunnelT]:
        removed: list[TunnelT] = []
        for key, slot in list(self._slots.items()):
            kept: list[tuple[float, TunnelT]] = []
            for since, tunnel in slot.idle:
                if unwanted(key, since, tunnel):
                    removed.append(tunnel)
                else:
                    kept.append((since, tunnel))
            slot.idle = kept
            self._forget_if_empty(key, slot)
        return removed

    def _forget_if_empty(self, key: Hashable, slot: _Slot[TunnelT, WaiterT]) -> None:
        if not slot.idle and not slot.waiters and not slot.dials:
            self._slots.pop(key, None)
