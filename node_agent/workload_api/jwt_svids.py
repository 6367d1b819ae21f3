"""Gets JWT-SVIDs from the CA, one request at a time for the same one, and believes none that a peer would not.

Callers are programs of pods: each identity may cost the CA so many tokens and
no more, and so many requests are under way at once.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import trio

from ca.errors import CaError, CaRefused
from ca.jwt_svid import JwtSvid, JwtSvidError, PublicKeyOf
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from node_agent.workload_api.budget import Budget
from node_agent.workload_api.jwt_cache import JwtCache, Key

_log = logging.getLogger("ringfence.workload_api")

_RATE: Final = 5.0  # tokens a second and identity; a program needs one for each audience every few minutes
_BURST: Final = 50.0
_AT_ONCE: Final = 8
_MAX_BUDGETS: Final = 4096

Ask = Callable[[SpiffeId, tuple[str, ...]], Awaitable[str]]
"""Asks the CA for a token; raises CaError."""


class _UnderWay:
    """One request to the CA, for whoever wants the same token."""

    __slots__ = ("done", "failure")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: JwtUnavailable | JwtDenied | TooManyTokens | None = None


class JwtUnavailable(Exception):
    """There is no token now; ask again later."""


class JwtDenied(Exception):
    """The CA does not give this identity to this node."""


class TooManyTokens(Exception):
    """This identity has asked for too many tokens lately."""


class JwtSvids:
    """The tokens of this node's workloads."""

    def __init__(self, *, ask: Ask, public_key_of: PublicKeyOf, utc_now: Callable[[], datetime]) -> None:
        self._ask = ask
        self._public_key_of = public_key_of
        self._utc_now = utc_now
        self._cache = JwtCache()
        self._under_way: dict[Key, _UnderWay] = {}
        self._budgets: dict[SpiffeId, Budget] = {}
        self._slots = trio.Semaphore(_AT_ONCE)

    async def get(self, identity: SpiffeId, audience: tuple[str, ...]) -> str:
        """A token for ``audience``, fresh enough to be of use.

        Raises:
            JwtDenied, JwtUnavailable, TooManyTokens
        """
        key = (identity, audience)
        while True:
            cached = self._cache.find(key, at=self._utc_now())
            # A key that is no longer in the bundle verifies nothing: the authority has withdrawn it.
            if cached is not None and self._public_key_of(identity.trust_domain, cached.key_id) is None:
                cached = None
            if cached is not None and self._utc_now() < cached.renew_from:
                return cached.token
            before = self._under_way.get(key)
            if before is None:
                break
            await before.done.wait()  # whoever asks now asks for us, too; unless he gave up, it is decided then
            if before.failure is not None and cached is None:
                raise type(before.failure)(str(before.failure))
        mine = self._under_way[key] = _UnderWay()
        try:
            return await self._fetch(key)
        except (JwtUnavailable, TooManyTokens) as error:
            mine.failure = error
            if cached is None:
                raise
            return cached.token
        except JwtDenied as error:
            mine.failure = error
            self._cache.forget(identity)
            raise
        finally:
            del self._under_way[key]
            mine.done.set()

    def forget(self, identity: SpiffeId) -> None:
        """An identity is no longer ours, or no longer good."""
        self._cache.forget(identity)

    async def _fetch(self, key: Key) -> str:
        identity, audience = key
        if not self._budget(identity).try_spend(1.0, now=trio.current_time()):
            raise TooManyTokens(f"{identity} has asked for more than {_RATE:g} JWT-SVIDs a second")
        async with self._slots:
            try:
                token = await self._ask(identity, audience)
            except CaRefused as error:
                if error.code in (RefusalCode.NOT_SCHEDULED, RefusalCode.REVOKED):
                    raise JwtDenied(f"the CA refuses: {error}") from error
                raise JwtUnavailable(f"the CA refuses: {error}") from error
            except CaError as error:
                raise JwtUnavailable(str(error)) from error
        at = self._utc_now()
        try:
            found = JwtSvid.verify(token, audience=audience[0], public_key_of=self._public_key_of, at=at)
        except JwtSvidError as error:
            _log.warning("the CA issued a JWT-SVID of %s that nobody would accept: %s", identity, error)
            raise JwtUnavailable(f"the CA's token is not good: {error}") from error
        if (found.identity, found.audience) != (identity, audience):
            _log.error("the CA issued a JWT-SVID of %s instead of %s", found.identity, identity)
            raise JwtUnavailable("the CA's token is for another identity or audience")
        self._cache.keep(key, token, key_id=found.key_id, not_after=found.expires_at, at=at)
        return token

    def _budget(self, identity: SpiffeId) -> Budget:
        now = trio.current_time()
        if len(self._budgets) >= _MAX_BUDGETS:
            for each in [each for each, budget in self._budgets.items() if budget.is_full(now=now)]:
                del self._budgets[each]
        return self._budgets.setdefault(identity, Budget(now=now, rate=_RATE, burst=_BURST))
