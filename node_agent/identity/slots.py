"""One wanted identity: its SVID, its rotation, who waits for it, and what is said of it."""

from datetime import datetime
from typing import Any

import trio

from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.credentials import Credentials
from node_agent.identity.expiry import Held
from node_agent.identity.rotation import Rotation


class Slot:
    """What ``Identities`` knows of one identity; ``code`` is the CA's refusal, None if it did not refuse."""

    __slots__ = ("arrived", "code", "credentials", "identity", "issued_at", "last_error", "rotation", "waiting")

    def __init__(self, identity: SpiffeId) -> None:
        self.identity = identity
        self.credentials: Credentials | None = None
        self.issued_at: datetime | None = None
        self.rotation = Rotation()
        self.waiting = 0
        self.arrived = trio.Event()
        self.last_error = ""
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
