"""How many retries are worth it: a share of the connects, and a few a second whatever there is.

Sans-I/O.  As in Finagle's ``RetryBudget`` and linkerd2-proxy: when everything
fails, every connect that is tried again somewhere else doubles the load on what
is left.  A connect deposits its share of a token, a retry takes a whole one, and
``min_per_s`` tokens come every second, so that a quiet service can retry too.
What is not used is kept for ten seconds' worth.
"""

from typing import Final

from ca.manifests.traffic import Retry

_KEPT_S: Final = 10.0  # linkerd2-proxy's default ttl


class RetryBudget:
    """The tokens of one service; ``now`` is monotonic seconds."""

    __slots__ = ("_at", "_connects", "_tokens")

    def __init__(self, config: Retry, now: float) -> None:
        self._at = now
        self._tokens = config.min_per_s
        self._connects = 0.0

    def connect(self, config: Retry, now: float) -> None:
        """A connection is tried for the first time."""
        self._earn(config, now)
        self._connects += 1.0
        self._tokens += config.budget_percent / 100.0

    def take(self, config: Retry, now: float) -> bool:
        """Whether a retry may be made; if so, it is paid for."""
        self._earn(config, now)
        # At least one, or a small share would never add up to a whole token.
        most = max(1.0, _KEPT_S * config.min_per_s + self._connects * config.budget_percent / 100.0)
        self._tokens = min(self._tokens, most)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _earn(self, config: Retry, now: float) -> None:
        elapsed_s = now - self._at
        self._at = now
        self._tokens += elapsed_s * config.min_per_s
        self._connects *= max(0.0, 1.0 - elapsed_s / _KEPT_S)
