"""JWT-SVIDs that were issued, kept until it is time for the next.

Sans-I/O; ``at`` is an aware datetime in UTC.  A token is handed out again until
half of its life is over; then another one is asked for, and while that can not
be had the old one serves for as long as it is of use to anybody.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ca.spiffe import SpiffeId

MAX_BYTES: Final = 2 * 1024 * 1024  # about 4,000 tokens of the usual size
_LEAST_LEFT: Final = timedelta(seconds=10)  # a token that ends sooner would fail at the other end

Key = tuple[SpiffeId, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedJwt:
    """One token; ``key_id`` is the key that signed it."""

    token: str
    key_id: str
    renew_from: datetime
    not_after: datetime

    def __repr__(self) -> str:
        return f"CachedJwt(not_after={self.not_after})"  # never the token


class JwtCache:
    """Tokens by identity and audience, the least used forgotten first."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[Key, CachedJwt] = OrderedDict()
        self._bytes = 0

    def find(self, key: Key, *, at: datetime) -> CachedJwt | None:
        """A token that still serves."""
        found = self._tokens.get(key)
        if found is None:
            return None
        if at >= found.not_after - _LEAST_LEFT:
            self._drop(key)
            return None
        self._tokens.move_to_end(key)
        return found

    def keep(self, key: Key, token: str, *, key_id: str, not_after: datetime, at: datetime) -> None:
        """Remember a token that was issued just now."""
        self._drop(key)
        renew_from = at + (not_after - at) / 2
        self._tokens[key] = CachedJwt(token=token, key_id=key_id, renew_from=renew_from, not_after=not_after)
        self._bytes += len(token)
        while self._bytes > MAX_BYTES:
            self._drop(next(iter(self._tokens)))

    def forget(self, identity: SpiffeId) -> None:
        """Forget the tokens of an identity."""
        for key in [key for key in self._tokens if key[0] == identity]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        dropped = self._tokens.pop(key, None)
        if dropped is not None:
            self._bytes -= len(dropped.token)
