"""A token bucket that is one number: when it will be full again.

Sans-I/O.  A bucket gains ``rate`` tokens a second and holds ``burst``.  Instead
of a level and the time of that level, the time is kept at which it will be full
(the virtual scheduling algorithm of ATM's GCRA, ITU-T I.371 annex A): taking is
one addition, a bucket that nobody uses is like one that was never there, and one
float can be shared between processes.

    tokens at ``now`` = burst - max(0, full_at - now) * rate
"""

from typing import Final, NamedTuple

_ROUNDING: Final = 1.0 + 1e-9  # sums of many small times: a burst of ten takes ten


class Bucket(NamedTuple):
    """What a bucket gains a second and holds at most; both more than 0.  ``now`` and ``full_at``: monotonic seconds."""

    rate_per_s: float
    burst: float

    def take(self, full_at: float, amount: float, now: float) -> float | None:
        """When it will be full again if ``amount`` is taken; None if there is not so much in it."""
        after = self.pay(full_at, amount, now)
        return after if (after - now) * self.rate_per_s <= self.burst * _ROUNDING else None

    def pay(self, full_at: float, amount: float, now: float) -> float:
        """When it will be full again after ``amount`` is taken from it, even if that is more than there is."""
        return max(full_at, now) + amount / self.rate_per_s

    def wait_s(self, full_at: float, now: float) -> float:
        """How long until it holds something again; 0.0 while it does."""
        return max(0.0, full_at - self.burst / self.rate_per_s - now)
