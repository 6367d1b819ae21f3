"""Active health checks: when the next one is due, and what the results mean.

Sans-I/O: callers pass ``now`` (monotonic seconds), and the source of randomness
once.  Checks of one endpoint come at even distances, from a moment within the
first interval that is drawn once, so that a thousand endpoints are not checked
in the same instant; an endpoint is never checked by two at a time.

    healthy --unhealthy_threshold failures in a row--> unhealthy
    unhealthy --healthy_threshold successes in a row--> healthy

An endpoint is healthy until it is found to be otherwise.  If two Services check
one endpoint differently, it is unhealthy while one of the checks says so.
"""

import heapq
import itertools
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from ca.manifests.traffic import HealthCheck
from node_agent.model import EndpointAddress

_NEVER: Final = float("inf")


class Target(NamedTuple):
    """An endpoint of one incarnation of a workload (``uid``, or empty), and how it is checked."""

    address: EndpointAddress
    uid: str
    check: HealthCheck


class _State:
    __slots__ = ("in_a_row", "next_at", "why")

    def __init__(self, next_at: float) -> None:
        self.next_at = next_at
        self.in_a_row = 0  # results that speak against what the endpoint is held for
        self.why = ""  # not empty while it is unhealthy


class HealthChecks:
    """All targets that are checked now."""

    def __init__(self, drawn: Callable[[], float]) -> None:
        """``drawn`` returns a random number of [0, 1)."""
        self._drawn = drawn
        self._states: dict[Target, _State] = {}
        self._running: set[Target] = set()  # also of targets that were dropped meanwhile
        self._due: list[tuple[float, int, Target]] = []  # a heap; entries that no state agrees with are stale
        self._serial = itertools.count()
        self._verdicts: dict[tuple[EndpointAddress, str], dict[Target, str]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def watch(self, targets: Collection[Target], now: float) -> list[Target]:
        """Check these from now on and no others; returns those dropped whose endpoint is no longer unhealthy by it."""
        lifted = []
        for target in self._states.keys() - set(targets):
            if self._set(target, "") and not self.why(target):
                lifted.append(target)
            del self._states[target]
        for target in targets:
            if target not in self._states:
                self._states[target] = _State(now + self._drawn() * target.check.interval_s)
                if target not in self._running:
                    self._queue(target)
        return lifted

    def due(self, now: float, most: int) -> list[Target]:
        """The targets to be checked now, at most so many; for each of them ``ended`` has to be called."""
        taken: list[Target] = []
        while len(taken) < most and self.next_at() <= now:
            _, _, target = heapq.heappop(self._due)
            self._running.add(target)
            taken.append(target)
        return taken

    def next_at(self) -> float:
        """When the next check is due; infinite if none is."""
        while self._due:
            at, _, target = self._due[0]
            state = self._states.get(target)
            if state is not None and state.next_at == at and target not in self._running:
                return at
            heapq.heappop(self._due)
        return _NEVER

    def ended(self, target: Target, failure: str | None, now: float) -> bool:
        """A check ended: empty text for success, why it failed, or None for no result.

        Returns whether the endpoint's health has changed by it.
        """
        self._running.discard(target)
        state = self._states.get(target)
        if state is None:
            return False  # nobody wants to know any more
        while state.next_at <= now:
            state.next_at += target.check.interval_s
        self._queue(target)
        if failure is None:
            return False
        if bool(failure) is bool(state.why):
            state.in_a_row = 0
            return False
        state.in_a_row += 1
        if state.in_a_row < (target.check.unhealthy_threshold if failure else target.check.healthy_threshold):
            return False
        state.in_a_row = 0
        before = bool(self.why(target))
        self._set(target, failure)
        return bool(self.why(target)) is not before

    def forget(self, target: Target) -> bool:
        """What the target's checks found counts no more; returns whether the endpoint's health has changed by it."""
        state = self._states.get(target)
        if state is None:
            return False
        state.in_a_row = 0
        return self._set(target, "") and not self.why(target)

    def why(self, target: Target) -> str:
        """Why the endpoint is unhealthy, by whichever check; empty if it is not."""
        return next(iter(self._verdicts.get((target.address, target.uid), {}).values()), "")

    def _set(self, target: Target, why: str) -> bool:
        """Hold the target for unhealthy, or not; returns whether that is new."""
        state = self._states[target]
        is_new = bool(state.why) is not bool(why)
        state.why = why
        key = (target.address, target.uid)
        if why:
            self._verdicts.setdefault(key, {})[target] = why
        elif key in self._verdicts:
            self._verdicts[key].pop(target, None)
            if not self._verdicts[key]:
                del self._verdicts[key]
        return is_new

    def _queue(self, target: Target) -> None:
        heapq.heappush(self._due, (self._states[target].next_at, next(self._serial), target))
