"""When to ask a bundle endpoint next.

Sans-I/O: callers pass the time and ``draw``, a number from 0 to 1 that is drawn
once a poll, so that many authorities do not ask one endpoint together.

SPIFFE Federation 4.1: "Clients SHOULD poll at a frequency equal to the value of
the bundle's `spiffe_refresh_hint`".  6.2: if a poll fails, "clients SHOULD
retry at the next polling interval, rather than immediately or aggressively
retrying".  Where there is no bundle yet, nothing works and nobody knows the
interval: then it is tried again soon, and ever less so.
"""

from datetime import datetime, timedelta
from typing import Final

from ca.bundle import DEFAULT_REFRESH_HINT_S

PUBLISH_AHEAD_HINTS: Final = 5  # 4.1: "the recommended advance time is 3-5 times the bundle's `spiffe_refresh_hint`"
_SHORTEST_S: Final = 1.0  # for drills; a publisher that wants more often than once a second is not obeyed
_LONGEST_S: Final = 86_400.0  # nor one that wants to be asked once a month: removed keys would stay for as long
_FIRST_RETRY_S: Final = 5.0
_JITTER: Final = 0.1


def usable_at(published_at: datetime, *, refresh_hint_s: float) -> datetime:
    """From when on a new root of ours may vouch for certificates, if others fetch our bundle this often."""
    return published_at + timedelta(seconds=PUBLISH_AHEAD_HINTS * refresh_hint_s)


def interval_s(refresh_hint_s: float) -> float:
    """How often to ask a publisher that gave this hint; 0 is no hint."""
    return min(max(refresh_hint_s or DEFAULT_REFRESH_HINT_S, _SHORTEST_S), _LONGEST_S)


def next_poll_at(*, at: datetime, refresh_hint_s: float | None, failures: int, draw: float) -> datetime:
    """When to ask again, after a poll at ``at``.

    Args:
        at: aware UTC.
        refresh_hint_s: of the bundle in force, None if there is none.
        failures: how many polls have failed in a row.
        draw: from 0 to 1; the interval is made up to a tenth shorter, never longer, so that a publisher which
            waits a number of intervals before it uses a key is not disappointed.
    """
    if refresh_hint_s is None:
        pause_s = min(_FIRST_RETRY_S * 2 ** min(max(failures - 1, 0), 16), DEFAULT_REFRESH_HINT_S)
    else:
        pause_s = interval_s(refresh_hint_s)
    return at + timedelta(seconds=pause_s * (1 - _JITTER * draw))
