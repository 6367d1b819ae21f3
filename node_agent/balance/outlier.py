"""Eject an endpoint that fails its connections, and let it back in by a probe.

Sans-I/O: callers pass ``now`` (monotonic seconds).

    serving --failures in a row--> ejected --time is up--> probing --one connect succeeds--> serving
                                      ^                       |
                                      +------- it fails ------+   (for longer)

While it is probing one connection at a time tries it: if that fails, it goes to
another endpoint like any other that fails to connect.

Its time is up, too, when most of its zone had failed and the zone is back
(recovery.py).

The time grows with each ejection, up to a most, and forgets one ejection for
each ``base_ejection_s`` that was served well.  How many may be ejected at once
is for the pool to say, which knows the others.

The counters and their defaults are Envoy's ("outlier detection", consecutive
locally originated failures), but for the interval: Envoy looks every 10 s, this
ejects with the failure that is one too many.
"""

from enum import StrEnum

from ca.manifests.traffic import OutlierDetection


class Why(StrEnum):
    """What an endpoint was ejected for."""

    CONNECT_FAILURES = "consecutive connect failures"
    EARLY_RESETS = "consecutive resets before the first byte"
    LATENCY = "connect latency far off its peers'"


class Outlier:
    """What is remembered of one endpoint."""

    __slots__ = ("_ejections", "_failures", "_probe", "_probes", "_resets", "_served_since", "ejected_until", "why")

    def __init__(self) -> None:
        self._failures = 0
        self._resets = 0
        self._ejections = 0
        self._served_since = 0.0
        self.ejected_until: float | None = None
        self._probes = 0
        self._probe = 0  # which of them is under way, 0: none
        self.why: Why | None = None

    def may_serve(self, now: float) -> bool:
        """Whether a connection may be sent there: it is not ejected, or nobody probes it yet."""
        return self.ejected_until is None or (now >= self.ejected_until and not self._probe)

    def is_ejected(self, now: float) -> bool:
        """Whether its time is not up yet."""
        return self.ejected_until is not None and now < self.ejected_until

    def picked(self, now: float) -> int:
        """A connection was sent there; the number of the probe that it is, or 0."""
        if self.ejected_until is None or now < self.ejected_until or self._probe:
            return 0
        self._probes += 1
        self._probe = self._probes
        return self._probe

    def connected(self, now: float) -> bool:
        """A connect succeeded; True if that ended an ejection."""
        self._failures = 0
        if self.ejected_until is None or now < self.ejected_until:
            return False
        self.ejected_until = None
        self._probe = 0
        self.why = None
        self._served_since = now
        return True

    def may_be_probed(self, now: float) -> None:
        """Its time ends early: others of its zone are back (recovery.py)."""
        if self.ejected_until is not None:
            self.ejected_until = min(self.ejected_until, now)

    def given_up(self, probe: int) -> None:
        """A probe ended without a result."""
        if probe == self._probe:
            self._probe = 0

    def said_something(self) -> None:
        """The endpoint sent a byte."""
        self._resets = 0

    def connect_failed(self, config: OutlierDetection, now: float) -> Why | None:
        """A connect failed; returns why it is to be ejected, if it is."""
        self._failures += 1
        if self.ejected_until is not None:
            return Why.CONNECT_FAILURES if now >= self.ejected_until else None
        return Why.CONNECT_FAILURES if config.enabled and self._failures >= config.connect_failures else None

    def reset_early(self, config: OutlierDetection) -> Why | None:
        """A connection was reset before the endpoint had said anything."""
        self._resets += 1
        if self.ejected_until is not None or not config.enabled or self._resets < config.early_resets:
            return None
        return Why.EARLY_RESETS

    def eject(self, why: Why, config: OutlierDetection, now: float) -> None:
        """Send nothing there for a time; the caller has made sure that enough others are left."""
        if self.ejected_until is None:
            forgotten = int((now - self._served_since) / config.base_ejection_s)
            self._ejections = max(0, self._ejections - forgotten)
        self._ejections += 1
        self.ejected_until = now + min(config.base_ejection_s * self._ejections, config.max_ejection_s)
        self._probe = 0
        self.why = why
        self._failures = 0
        self._resets = 0


def may_eject_another(*, ejected: int, of: int, max_percent: int) -> bool:
    """Whether one more of so many endpoints may be ejected: never the last, one always if there are two."""
    return ejected < min(max(1, of * max_percent // 100), of - 1)
