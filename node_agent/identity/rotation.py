"""When to ask the CA for a certificate again: the life of one certificate.

Sans-I/O: no clock, no task, no randomness.  ``at`` is an aware datetime in
UTC, for certificates; ``now`` is monotonic seconds, for pauses between
attempts; ``draw`` is a random number in [0, 1) that the caller drew once.

    none ----issued----> held --half-life--> held, renewal due
                          ^                      |        |
                          +-------issued---------+        | expiry
    none <-----------------------------------------------+

A failed attempt changes nothing but the time of the next one: the certificate
that is still valid stays in use, and its expiry is the deadline.  Pauses grow
from 0.25 s to 30 s (5 s while there is none), each cut by up to a fifth so that
nodes do not march in step; while somebody waits for the certificate they are at
most half a second, and in the last 15 s of one that is held at most two.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_WITHOUT_S: Final = 5.0  # nothing is served meanwhile; a thousand such nodes are 200 requests a second
LONGEST_PAUSE_NOT_SCHEDULED_S: Final = 2.0  # the CA reads the same manifests a moment later than we do
LONGEST_PAUSE_WANTED_S: Final = 0.5
LAST_CHANCE_S: Final = 15.0
LONGEST_PAUSE_LAST_S: Final = 2.0
_PAUSE_JITTER: Final = 0.2
_HALF_LIFE: Final = 0.5
_HALF_LIFE_JITTER: Final = 0.1  # due between 45 and 55 % of the lifetime
_LONGEST_WAIT_S: Final = 60.0  # look again, in case somebody set the clock


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask for a certificate now."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Nothing to do for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Expired:
    """The certificate is no longer valid: forget it, then call ``dropped``."""


Step = Renew | WaitFor | Expired


class Rotation:
    """The state of one certificate; the certificate itself is the caller's."""

    __slots__ = ("_attempted_at", "_failures", "_pause_s", "_renew_from", "_wish_s", "not_after")

    def __init__(self) -> None:
        self.not_after: datetime | None = None
        self._renew_from: datetime | None = None
        self._failures = 0
        self._attempted_at = 0.0
        self._pause_s = 0.0
        self._wish_s = 0.0

    @property
    def failures(self) -> int:
        """Attempts since the last certificate that came to nothing."""
        return self._failures

    def valid(self, at: datetime) -> bool:
        """Whether a certificate is held that may be used at this moment."""
        return self.not_after is not None and at < self.not_after

    def issued(self, *, at: datetime, not_after: datetime, draw: float) -> None:
        """A certificate arrived.  Its half-life counts from now: NotBefore is set back by the CA."""
        share = _HALF_LIFE + _HALF_LIFE_JITTER * (draw - 0.5)
        self.not_after = not_after
        self._renew_from = at + max(not_after - at, timedelta(0)) * share
        self._failures = 0
        self._pause_s = 0.0
        self._wish_s = 0.0

    def failed(self, *, now: float, draw: float, longest_pause_s: float = LONGEST_PAUSE_S, wish_s: float = 0.0) -> None:
        """An attempt came to nothing.  ``wish_s`` is the pause that the CA asked for, obeyed up to 30 s."""
        pause_s = FIRST_PAUSE_S * 2.0 ** min(self._failures, 16)
        self._failures += 1
        self._attempted_at = now
        self._pause_s = min(pause_s, longest_pause_s) * (1.0 - _PAUSE_JITTER * draw)
        self._wish_s = min(wish_s, LONGEST_PAUSE_S)

    def dropped(self) -> None:
        """The certificate is gone: the pause is that of one who has none."""
        self.not_after = None
        self._renew_from = None
        self._pause_s = min(self._pause_s, LONGEST_PAUSE_WITHOUT_S)

    def renew_soon(self, at: datetime) -> None:
        """Make the renewal due, for instance because the trust bundle changed."""
        if self._renew_from is not None:
            self._renew_from = min(self._renew_from, at)

    def retry(self) -> None:
        """Forget the pause after a failure: what was refused may be granted now."""
        self._pause_s = 0.0
        self._wish_s = 0.0

    def next_step(self, *, at: datetime, now: float, wanted: bool) -> Step:
        """What to do.  ``wanted``: somebody waits for a certificate and there is none."""
        if self.not_after is not None and at >= self.not_after:
            return Expired()
        left_s = math.inf if self.not_after is None else (self.not_after - at).total_seconds()
        longest_s = LONGEST_PAUSE_S
        if left_s <= LAST_CHANCE_S:
            longest_s = LONGEST_PAUSE_LAST_S
        if wanted:
            longest_s = LONGEST_PAUSE_WANTED_S
        wait_s = self._backoff_left_s(now, longest_s)
        if self._renew_from is not None and at < self._renew_from:
            wait_s = max(wait_s, (self._renew_from - at).total_seconds())
        if wait_s <= 0.0:
            return Renew()
        # Look again when it expires, and when its last seconds begin.
        wait_s = min(wait_s, left_s - LAST_CHANCE_S if left_s > LAST_CHANCE_S else left_s)
        return WaitFor(min(wait_s, _LONGEST_WAIT_S))

    def _backoff_left_s(self, now: float, longest_s: float) -> float:
        return self._attempted_at + max(min(self._pause_s, longest_s), self._wish_s) - now
