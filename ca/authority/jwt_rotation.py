"""When one JWT-SVID signing key makes way for the next, so that nobody notices.

Sans-I/O: no clock, no keys, no database.  Callers pass ``at``, an aware datetime in UTC.

    (made) --> prepared --activate--> active --the next is activated--> retiring --last token gone--> (forgotten)

All of them are published in the trust bundle.  A key is prepared when half of
its predecessor's time is over, and signs when the whole is: by then it has been
published for days, and never for less than ``PUBLISH_AHEAD``, so that every
verifier has it, federated ones that ask every refresh hint included (SPIFFE
Federation section 6: three to five refresh hints).  The first key of a trust
domain has nobody to wait for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ca.authority.records import AuthorityState
from ca.svid import CLOCK_SKEW

REFRESH_HINT: Final = timedelta(seconds=300)  # of our bundle
PUBLISH_AHEAD: Final = 5 * REFRESH_HINT
SHORTEST_TTL: Final = timedelta(seconds=30)  # of a token; agents ask for the next at half of it
LONGEST_TTL: Final = timedelta(hours=1)  # a token can not be revoked: so long lasts a leak
SHORTEST_LIFETIME: Final = 4 * PUBLISH_AHEAD
# A replica reads which key is active for each token that it signs, so only a token that is under way can be late.
_GRACE: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtKeyRecord:
    """One signing key, its public half.  ``since`` is when it came into its state."""

    key_id: str
    state: AuthorityState
    public_key_der: bytes
    since: datetime

    @property
    def forget_at(self) -> datetime:
        """When no token that it signed can be accepted any more; for a key that signs no more."""
        return self.since + _GRACE + LONGEST_TTL + CLOCK_SKEW


@dataclass(frozen=True, slots=True)
class PrepareJwtKey:
    """Make the next key and publish it."""


@dataclass(frozen=True, slots=True)
class ActivateJwtKey:
    """Let the prepared key sign; the one that signed so far is retiring from then on."""

    key_id: str


@dataclass(frozen=True, slots=True)
class ForgetJwtKey:
    """Take a key out of the trust bundle and destroy it."""

    key_id: str


JwtStep = PrepareJwtKey | ActivateJwtKey | ForgetJwtKey


def next_step(keys: Iterable[JwtKeyRecord], *, lifetime: timedelta, at: datetime) -> JwtStep | None:
    """What is due now; None if nothing is.  Do it and ask again."""
    by_state: dict[AuthorityState, JwtKeyRecord] = {}
    for key in keys:
        if key.state is AuthorityState.RETIRING and at >= key.forget_at:
            return ForgetJwtKey(key.key_id)
        by_state[key.state] = key
    active, prepared = by_state.get(AuthorityState.ACTIVE), by_state.get(AuthorityState.PREPARED)
    if prepared is None:
        return PrepareJwtKey() if active is None or at >= active.since + lifetime / 2 else None
    if active is None or at >= max(active.since + lifetime, prepared.since + PUBLISH_AHEAD):
        return ActivateJwtKey(prepared.key_id)
    return None
