"""Who is let in: how many connections there may be to a service, and how many a second.

Sans-I/O.  The numbers are in a ``Ledger``, which all processes that carry
connections of one agent share; what is done within ``locked`` is one step for
all of them.  So a limit is never exceeded, whatever the interleaving: looking
and counting are one step.

    admit --within the limits--> connecting --connected--> open --release--> gone
          --over a limit------> Breach       connecting --release--> gone (it failed)
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from ca.manifests.traffic import Limits, RateLimit
from node_agent.balance.bucket import Bucket

_NO_LIMITS: Final = Limits()
_SWEEP_FROM: Final = 1024  # buckets
_LEAST_BURST_S: Final = 0.02  # bytes move in pieces, and timers are late: what came meanwhile must not be lost


class LedgerFullError(Exception):
    """There is no room for another key."""


class Ledger(Protocol):
    """Counts and buckets by key.  ``now`` is ``CLOCK_MONOTONIC``, which is one for all processes.

    Everything but ``locked`` is called within ``locked``.
    """

    def locked(self) -> AbstractContextManager[None]: ...

    def count(self, key: str) -> int:
        """What everybody has added."""

    def add(self, key: str, change: int, now: float) -> None:
        """Add to the own count; raises LedgerFullError for a key that is new."""

    def full_at(self, key: str) -> float:
        """When a bucket will be full again; 0.0 if it is."""

    def set_full_at(self, key: str, full_at: float, now: float) -> None:
        """Raises LedgerFullError for a key that is new."""


class LocalLedger:
    """The ledger of one process: no lock, because nobody else is there."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._full_at: dict[str, float] = {}
        self._sweep_at = _SWEEP_FROM

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nothing to lock."""
        yield

    def count(self, key: str) -> int:
        """What was added."""
        return self._counts.get(key, 0)

    def add(self, key: str, change: int, _now: float) -> None:
        """Never raises."""
        count = self._counts.get(key, 0) + change
        if count:
            self._counts[key] = count
        else:
            self._counts.pop(key, None)

    def full_at(self, key: str) -> float:
        """When a bucket will be full again."""
        return self._full_at.get(key, 0.0)

    def set_full_at(self, key: str, full_at: float, now: float) -> None:
        """Never raises."""
        self._full_at[key] = full_at
        if len(self._full_at) > self._sweep_at:
            self._full_at = {key: each for key, each in self._full_at.items() if each > now}
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._full_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A connection that is not let in; ``limit`` is the field of the policy, None if the ledger has no room."""

    limit: str | None
    value: float = 0.0
    is_rate: bool = False


class Admitted:
    """One connection that counts.  Its methods may be called in any order, and again."""

    __slots__ = ("_counted", "_ledger", "_pending")

    def __init__(self, ledger: Ledger, pending: str, counted: tuple[str, ...]) -> None:
        self._ledger = ledger
        self._pending = pending
        self._counted = counted  # with ``pending`` while it connects

    def connected(self, now: float) -> None:
        """It is no pending connect any more."""
        if self._pending in self._counted:
            self._counted = tuple(each for each in self._counted if each != self._pending)
            with self._ledger.locked():
                self._ledger.add(self._pending, -1, now)

    def release(self, now: float) -> None:
        """It is over, however far it got."""
        counted, self._counted = self._counted, ()
        if counted:
            with self._ledger.locked():
                for key in counted:
                    self._ledger.add(key, -1, now)


class Breaker:
    """Admits connections; one for each process, over the ledger of all."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def admit(self, scope: str, source: str, limits: Limits, rate: RateLimit, now: float) -> Admitted | Breach:
        """Let one connection in, or say which limit it would exceed; then nothing is counted and no token taken.

        All counts are kept while any limit is set, so a limit that is changed
        counts the connections that are there.

        Args:
            scope: whom the policy is about, a service or one of its ports.
            source: who connects.
        """
        pending = f"{scope} pending"
        keys = (f"{scope} open", pending, f"{scope} open {source}") if limits != _NO_LIMITS else ()
        ledger = self._ledger
        with ledger.locked():
            breach = self._over(keys, limits)
            if breach is not None:
                return breach
            try:
                if rate.connections_per_s is not None and not self._take(scope, source, rate, now):
                    return Breach(limit="connectionsPerSecond", value=rate.connections_per_s, is_rate=True)
                self._count(keys, now)
            except LedgerFullError:
                return Breach(limit=None)
        return Admitted(ledger, pending, keys)

    def _over(self, keys: tuple[str, ...], limits: Limits) -> Breach | None:
        for key, limit, most in zip(
            keys,
            ("maxConnections", "maxPendingConnects", "maxConnectionsPerSource"),
            (limits.max_connections, limits.max_pending_connects, limits.max_connections_per_source),
            strict=False,  # no keys: no limits
        ):
            if most is not None and self._ledger.count(key) >= most:
                return Breach(limit=limit, value=most)
        return None

    def _take(self, scope: str, source: str, rate: RateLimit, now: float) -> bool:
        assert rate.connections_per_s is not None
        bucket = Bucket(rate.connections_per_s, rate.connections_burst)
        key = _bucket_key(scope, source if rate.per_source else "", "connections", bucket)
        after = bucket.take(self._ledger.full_at(key), 1.0, now)
        if after is not None:
            self._ledger.set_full_at(key, after, now)
        return after is not None

    def _count(self, keys: tuple[str, ...], now: float) -> None:
        done = 0
        try:
            for key in keys:
                self._ledger.add(key, 1, now)
                done += 1
        except LedgerFullError:
            for key in keys[:done]:
                self._ledger.add(key, -1, now)
            raise


class ByteBudget:
    """The bytes a second of one scope, as one of its connections meets them."""

    __slots__ = ("_bucket", "_key", "_ledger")

    def __init__(self, ledger: Ledger, scope: str, source: str, rate: RateLimit) -> None:
        assert rate.bytes_per_s is not None
        self._ledger = ledger
        self._bucket = Bucket(rate.bytes_per_s, max(rate.bytes_burst, rate.bytes_per_s * _LEAST_BURST_S))
        self._key = _bucket_key(scope, source if rate.per_source else "", "bytes", self._bucket)

    def pay(self, moved_bytes: int, now: float) -> float:
        """Take what was moved; returns the seconds to wait before more is moved."""
        with self._ledger.locked():
            after = self._bucket.pay(self._ledger.full_at(self._key), moved_bytes, now)
            try:
                if moved_bytes:
                    self._ledger.set_full_at(self._key, after, now)
            except LedgerFullError:
                pass  # nobody else will know of it, but this connection waits as long as it has to
        return self._bucket.wait_s(after, now)


def _bucket_key(scope: str, source: str, what: str, bucket: Bucket) -> str:
    """The key of a bucket.  Its rate is a part: connections that began under another one have a bucket of their own.

    In one bucket those with the larger burst in time would always be first.
    """
    return f"{scope} {what} {bucket.rate_per_s}/{bucket.burst} {source}"
