"""How much of the agent's time one caller may take: a token bucket that says how long to wait.

Sans-I/O; ``now`` is monotonic seconds.  Nobody is refused for being fast:
reading from him pauses, and what he sends waits in his own kernel buffers.  A
debt is never older than ``_LONGEST_WAIT_S``: one program of a pod that went mad
does not shut the others out for long after it has ended.
"""

from typing import Final

RATE: Final = 500.0  # units a second; a unit is a frame, or 256 bytes, about 30 us of work: 2 % of a core
BURST: Final = 2000.0
CONNECTION_COST: Final = 20.0
_LONGEST_WAIT_S: Final = 2.0


class Budget:
    """The tokens of one caller."""

    __slots__ = ("_at", "_rate", "_tokens", "burst")

    def __init__(self, *, now: float, rate: float = RATE, burst: float = BURST) -> None:
        self._rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def spend(self, cost: float, *, now: float) -> float:
        """Take ``cost`` tokens, also those that are not there yet; returns the seconds to wait for them."""
        tokens = min(self.burst, self._tokens + (now - self._at) * self._rate) - cost
        self._tokens = max(tokens, -_LONGEST_WAIT_S * self._rate)
        self._at = now
        return max(0.0, -self._tokens / self._rate)

    def try_spend(self, cost: float, *, now: float) -> bool:
        """Take ``cost`` tokens if they are there."""
        if self.spend(0.0, now=now) > 0.0 or self._tokens < cost:
            return False
        self._tokens -= cost
        return True

    def is_full(self, *, now: float) -> bool:
        """Whether a new budget would be no better: this one can be forgotten."""
        return self._tokens + (now - self._at) * self._rate >= self.burst
