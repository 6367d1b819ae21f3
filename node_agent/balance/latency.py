"""Peak-EWMA: an estimate that believes bad news at once and good news slowly.

From Finagle's ``PeakEwma`` and linkerd2-proxy's balancer (tower): a sample above
the estimate replaces it, one below it is averaged in, weighted by the time
since the last one; and with no samples the estimate decays towards zero, so
that an endpoint that was slow once is tried again.

A refusal adds a second that decays ten times as fast: beside endpoints that
answer in milliseconds, it would else keep one that was restarted away for a
minute.  One that did not answer at all costs its clients the time they waited,
and is avoided for longer.
"""

from math import exp
from typing import Final

DECAY_S: Final = 10.0  # linkerd2-proxy's default for its load balancer
REFUSAL_DECAY_S: Final = 1.0


class PeakEwma:
    """Seconds; ``now`` is monotonic seconds and never goes back."""

    __slots__ = ("_at", "_decay_s", "_estimate_s")

    def __init__(self, first_s: float, now: float) -> None:
        self._estimate_s = first_s
        self._decay_s = DECAY_S
        self._at = now

    def observe(self, sample_s: float, now: float) -> None:
        """Take a latency in."""
        if sample_s >= self._estimate_s:
            self._estimate_s = sample_s
        else:
            weight = exp((self._at - now) / self._decay_s)
            self._estimate_s = self._estimate_s * weight + sample_s * (1.0 - weight)
        self._decay_s = DECAY_S
        self._at = now

    def penalize(self, penalty_s: float, now: float) -> None:
        """Take a refusal in, as if it were a latency of ``penalty_s`` that is forgotten soon."""
        self._estimate_s = max(self.at(now), penalty_s)
        self._decay_s = REFUSAL_DECAY_S
        self._at = now

    def at(self, now: float) -> float:
        """The estimate, decayed for the time without a sample."""
        return self._estimate_s * exp((self._at - now) / self._decay_s)
