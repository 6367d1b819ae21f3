"""What the log says of requests: every certificate, and refusals and failures as far as they do not flood it.

In those the field ``left_out`` says how many lines like it were left out before it.
"""

import logging
import time
from typing import Final

from ca.authority.errors import Refusal
from ca.authority.logs import log
from ca.authority.quiet import LogGate
from ca.authority.records import CertificateRecord
from ca.authority.store import JwtRecord
from ca.spiffe import SpiffeId

_REFUSALS_A_MINUTE_OF_A_PEER: Final = 600  # a node whose manifests are late may be refused hundreds of identities
_REFUSALS_A_MINUTE: Final = 6_000
_FAILURES_A_MINUTE: Final = 60  # while the database is gone every request of every agent fails the same way


class RefusalLog:
    """One thread at a time."""

    def __init__(self) -> None:
        self._gate = LogGate(of_a_peer=_REFUSALS_A_MINUTE_OF_A_PEER, of_all=_REFUSALS_A_MINUTE)
        self._failures = LogGate(of_a_peer=_FAILURES_A_MINUTE, of_all=_FAILURES_A_MINUTE)

    def store_failed(self, event: str, *, requests: int) -> None:
        """Say, from an ``except``, that the store could not be used for some requests."""
        if self._failures.admits(event, "", now=time.monotonic()):
            left_out = sum(self._failures.left_out().values())
            log(event, level=logging.ERROR, exc_info=True, requests=requests, left_out=left_out)

    def refused(
        self,
        refusal: Refusal,
        *,
        address: str,
        requester: SpiffeId | None,
        request: str,
        identity: SpiffeId | None = None,
    ) -> None:
        """Say that a request, or one identity of it, was refused."""
        peer = address.rpartition(":")[0] if requester is None else str(requester)
        if not self._gate.admits("refused", peer, now=time.monotonic()):
            return
        left_out = sum(self._gate.left_out().values())
        log(
            "refused",
            level=logging.WARNING,
            code=str(refusal.code),
            why=refusal.text,
            requester=address,
            requester_identity=None if requester is None else str(requester),
            request=request,
            identity=None if identity is None else str(identity),
            left_out=left_out,
        )


def log_issued(record: CertificateRecord) -> None:
    """Say that a certificate was issued; only after it is in the journal."""
    log(
        "issued",
        identity=record.identity,
        serial=record.serial_hex,
        node=record.node,
        not_after=record.not_after.isoformat(),
        attestation=record.attestation,
        requester=record.requester,
    )


def log_issued_jwt(record: JwtRecord) -> None:
    """Say that a JWT-SVID was issued; only after it is in the journal."""
    log(
        "issued_jwt",
        identity=record.identity,
        token_id=record.token_id,
        audience=record.audience,
        node=record.node,
        not_after=record.not_after.isoformat(),
        attestation=record.attestation,
        requester=record.requester,
    )
