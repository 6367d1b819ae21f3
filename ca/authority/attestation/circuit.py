"""Stop asking somebody who does not answer, and try again now and then.

Sans-I/O: no clock, no task, no randomness.  ``now`` is monotonic seconds.

    closed --failures in a row--> open --pause elapsed--> probing (one at a time)
    probing --success--> closed       probing --failure--> open (longer)
"""

from typing import Final

_FAILURES: Final = 3
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 30.0  # an agent without a certificate asks again within seconds anyway


class Circuit:
    """One for each service that is asked."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._open_until: float | None = None
        self._probing = False

    def retry_after_s(self, now: float) -> float | None:
        """How long not to ask; None: ask now, and report how it went.  Who is let through while open is the probe."""
        if self._open_until is None:
            return None
        if now < self._open_until:
            return self._open_until - now
        if self._probing:
            return _FIRST_PAUSE_S
        self._probing = True
        return None

    def succeeded(self) -> None:
        """There was an answer, whatever it said."""
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._open_until = None
        self._probing = False

    def failed(self, now: float) -> None:
        """There was none."""
        self._failures += 1
        if self._probing:
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        elif self._failures < _FAILURES or self._open_until is not None:
            return
        self._probing = False
        self._open_until = now + self._pause_s

    def abandoned(self) -> None:
        """Whoever asked was cut off before there was an answer or none: neither a success nor a failure."""
        self._probing = False
