"""One wanted identity: its SVID, its rotation, who waits for it, and what is said of it."""

from datetime import datetime
from typing import Any

import trio

from ca.errors import CaError, CaRefused
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.credentials import Credentials
from node_agent.identity.expiry import Held
from node_agent.identity.rotation import (
    LONGEST_PAUSE_NOT_SCHEDULED_S,
    LONGEST_PAUSE_S,
    LONGEST_PAUSE_WITHOUT_S,
    Rotation,
)


class Slot:
    """What ``Identities`` knows of one identity; ``code`` is the CA's refusal, None if it did not refuse."""

    __slots__ = (
        "_said",
        "arrived",
        "code",
        "credentials",
        "identity",
        "issued_at",
        "last_error",
        "rotation",
        "waiting",
    )

    def __init__(self, identity: SpiffeId) -> None:
        self.identity = identity
        self.credentials: Credentials | None = None
        self.issued_at: datetime | None = None
        self.rotation = Rotation()
        self.waiting = 0
        self.arrived = trio.Event()
        self.last_error = self._said = ""
        self.code: str | None = None

    @property
    def urgent(self) -> bool:
        """Whether a connection waits for it."""
        return self.waiting > 0 and self.credentials is None

    def wake(self) -> None:
        """Let those who wait look again."""
        self.arrived.set()
        self.arrived = trio.Event()

    def drop(self) -> None:
        """The SVID is no longer to be used."""
        self.credentials = None
        self.rotation.dropped()

    def take(self, credentials: Credentials, *, at: datetime, draw: float) -> None:
        """The CA has issued an SVID."""
        self.credentials = credentials
        self.issued_at = at
        self.rotation.issued(at=at, not_after=credentials.not_after, draw=draw)
        self.last_error = self._said = ""
        self.code = None
        self.wake()

    def failed(self, error: CaError, *, clock_problem: str | None, now: float, draw: float) -> bool:
        """The CA has not; returns whether it is for another reason than the last time."""
        self.code = error.code if isinstance(error, CaRefused) and not error.busy else None
        # Refused because the CA reads its manifests a moment after we read ours: soon is soon enough.
        placed_late = self.code == RefusalCode.NOT_SCHEDULED
        if placed_late:
            longest_pause_s = LONGEST_PAUSE_NOT_SCHEDULED_S
        else:
            is_without = self.credentials is None and self.code is None
            longest_pause_s = LONGEST_PAUSE_WITHOUT_S if is_without else LONGEST_PAUSE_S
        self.rotation.failed(
            now=now,
            draw=draw,
            longest_pause_s=longest_pause_s,
            wish_s=error.retry_after_s if isinstance(error, CaRefused) and not placed_late else 0.0,
        )
        text = f"the CA refuses: {error}" if self.code else str(error)
        self.last_error = text if clock_problem is None else f"{text}; {clock_problem}"
        said, self._said = self._said, text  # without the clocks, whose times are others at each attempt
        return said != text

    def failure(self, detail: str) -> ConnectionFailure:
        """What a connection is told that can not have the SVID."""
        revoked = self.code == RefusalCode.REVOKED
        reason = CloseReason.IDENTITY_REVOKED if revoked else CloseReason.IDENTITY_UNAVAILABLE
        return ConnectionFailure(reason, detail)

    def held(self) -> Held | None:
        """The SVID as far as its end is concerned."""
        if self.credentials is None or self.issued_at is None:
            return None
        error = self.last_error if self.rotation.failures else ""
        not_after = self.credentials.not_after
        return Held(name=str(self.identity), issued_at=self.issued_at, not_after=not_after, error=error)

    def status(self, valid: Credentials | None) -> dict[str, Any]:
        """One entry of ``ringfence certs``; ``valid`` is the SVID, None if it has expired."""
        if valid is not None:
            state = "valid"
        elif self.code == RefusalCode.REVOKED:
            state = "revoked"
        else:
            state = "pending" if self.code is None else "refused"
        return {
            "identity": str(self.identity),
            "serial": None if valid is None else f"{valid.serial:x}",
            "not_before": None if valid is None else valid.not_before.isoformat(),
            "not_after": None if valid is None else valid.not_after.isoformat(),
            "state": state,
            "last_error": self.last_error or None,
        }
