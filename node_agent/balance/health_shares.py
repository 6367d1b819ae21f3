"""One worker process checks an endpoint, and all know what it found.

Sans-I/O: callers pass ``now``, which is ``CLOCK_MONOTONIC``: one for all
processes.  What is shared is in the ``Ledger`` of the limits: for each target
until when somebody has taken it on, for each endpoint how many hold it for
unhealthy.  Who has taken a target on renews that with each check, and nobody
else gets it; if it does not any more (it ended, or its clients went), it is the
next one's that asks.  What an ended process held is given back by its parent.
"""

from typing import Final

from node_agent.balance.health import Target
from node_agent.balance.limits import Ledger, LedgerFullError

ELSEWHERE: Final = "health check of another worker"
"""What is said of an endpoint that another process holds for unhealthy, which knows why."""

_INTERVALS: Final = 1.5  # beyond the longest that a check takes


class HealthShares:
    """The share of one process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._taken: dict[Target, float] = {}
        self._published: set[str] = set()

    def take(self, target: Target, now: float) -> bool:
        """Whether this process is to check the target now: it did before, or nobody does."""
        key = f"check {target.address} {target.uid} {target.check}"
        until = now + 2 * target.check.timeout_s + _INTERVALS * target.check.interval_s
        with self._ledger.locked():
            held = self._ledger.full_at(key)
            if held > now and held != self._taken.get(target):
                self._taken.pop(target, None)
                return False
            try:
                self._ledger.set_full_at(key, until, now)
            except LedgerFullError:
                return True  # better twice than not at all
        self._taken[target] = until
        return True

    def drop(self, target: Target) -> None:
        """The target is not checked here any more."""
        self._taken.pop(target, None)

    def publish(self, target: Target, is_unhealthy: bool, now: float) -> None:
        """This process holds the target's endpoint for unhealthy, or no longer."""
        key = _verdict(target)
        if is_unhealthy is (key in self._published):
            return
        with self._ledger.locked():
            try:
                self._ledger.add(key, 1 if is_unhealthy else -1, now)
            except LedgerFullError:
                return  # the others find out themselves
        (self._published.add if is_unhealthy else self._published.discard)(key)

    def is_unhealthy_elsewhere(self, target: Target) -> bool:
        """Whether another process holds the target's endpoint for unhealthy."""
        key = _verdict(target)
        with self._ledger.locked():
            return self._ledger.count(key) > (key in self._published)


def _verdict(target: Target) -> str:
    return f"unhealthy {target.address} {target.uid}"
