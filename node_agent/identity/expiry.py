"""Certificates that were not renewed and come to their end: whom to tell, and when.

Sans-I/O.  A certificate is renewed at half of its life, so one that is near its
end is one whose renewal has failed, again and again.  That is said an hour
before the end; where the whole life is two hours or less, at half of it.

    fine --no renewal until an hour before the end--> warned --renewed--> fine
                                                        |
                                                        +--what is left has halved--> warned again
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

_WARN_BEFORE: Final = timedelta(hours=1)
_OVERDUE: Final = 0.45  # of the life that must be left at most: renewals are due when 55 to 45 % are left
_NO_TIME: Final = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One certificate that is in use; ``error`` is why it was not renewed, empty if nothing failed."""

    name: str
    issued_at: datetime
    not_after: datetime
    error: str

    def near_its_end(self, at: datetime) -> bool:
        """Whether it is time to say that it was not renewed."""
        life = max(self.not_after - self.issued_at, _NO_TIME)
        return bool(self.error) and self.not_after - at <= min(_WARN_BEFORE, life * _OVERDUE)


class ExpiryWatch:
    """Remembers what was said, so that the log is told once and then rarer."""

    def __init__(self) -> None:
        self._said_left: timedelta | None = None

    def to_log(self, held: Iterable[Held], *, at: datetime) -> str | None:
        """A line for the log, or None if there is nothing new to say."""
        near = near_their_end(held, at=at)
        if not near:
            self._said_left = None
            return None
        left = near[0].not_after - at
        if self._said_left is not None and left > self._said_left / 2:
            return None
        self._said_left = left
        return described(near, at=at)


def near_their_end(held: Iterable[Held], *, at: datetime) -> list[Held]:
    """Those that it is time to tell of, the first to end first."""
    return sorted((each for each in held if each.near_its_end(at)), key=lambda each: each.not_after)


def described(near: list[Held], *, at: datetime) -> str:
    """What the operator has to know of certificates near their end: which, when, why, and what happens then."""
    first = near[0]
    others = f" and {len(near) - 1} more" if len(near) > 1 else ""
    left_s = max((first.not_after - at).total_seconds(), 0.0)
    left = f"{left_s / 60:.0f} min" if left_s >= 120 else f"{left_s:.0f} s"
    return (
        f"the certificate of {first.name}{others} could not be renewed and ends in {left}, at "
        f"{first.not_after:%Y-%m-%dT%H:%M:%SZ}; then its connections are refused: {first.error}"
    )
