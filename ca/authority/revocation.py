"""What the authority itself does not do any more for whoever is revoked.

    a revoked certificate          is asked nothing, answered nothing
    a revoked identity             is not issued
    a node that is shut out        is not attested, but for a join token that was made since: then its operator
                                   has let it in again (the store voids the tokens that were there)

A revocation and an issue that meet are told apart by the journal.  The
revocation is alone on the database; so either it finds the record of the
certificate and revokes it, or the record is written later, and whoever wrote it
looks here once more before the certificate leaves (``requests.py``).
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ca.authority.errors import Refusal
from ca.authority.store import Store
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from ca.svid import CLOCK_SKEW
from ca.trust import Revocation, RevocationKind, serial_hex, serial_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What is revoked as of one version of the trust."""

    version: int
    serials: Mapping[int, Revocation]
    identities: Mapping[SpiffeId, Revocation]
    shut_out: Mapping[str, tuple[datetime, str]]

    def require_certificate(self, identity: SpiffeId, serial: int) -> None:
        """Raise Refusal if the certificate that a client presents is revoked."""
        found = self.serials.get(serial) or self.identities.get(identity)
        if found is not None:
            raise _refusal(f"the certificate {serial_hex(serial)} of {identity}", found.at, found.why)

    def require_identity(self, identity: SpiffeId) -> None:
        """Raise Refusal if an identity is not to be issued."""
        found = self.identities.get(identity)
        if found is not None:
            raise _refusal(f"the identity {identity}", found.at, found.why)

    def require_admitted(self, node: str) -> None:
        """Raise Refusal if a node is shut out."""
        found = self.shut_out.get(node)
        if found is not None:
            raise _refusal(f"the node {node}", *found)


class RevocationGuard:
    """Reads the store again when something has changed.  Blocking, as the store; thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = threading.Lock()
        self._revoked: Revoked | None = None

    def current(self) -> Revoked:
        """What is revoked now.

        Raises:
            StoreError: the store can not be asked: then nothing is issued either.
        """
        version = self._store.trust.version()
        with self._turn:
            if self._revoked is None or self._revoked.version != version:
                # The version was read first: what is read now is as new or newer.
                self._revoked = _read(self._store, version)
            return self._revoked

    def require_certificate(self, identity: SpiffeId, serial: int) -> None:
        """As ``Revoked.require_certificate``; of a node that is shut out only what the journal knows is believed.

        A certificate that the journal lost (a restored backup) was not found when the node was revoked.
        """
        revoked = self.current()
        revoked.require_certificate(identity, serial)
        node = identity.node_name
        if node is not None and node in revoked.shut_out and not self._store.revocations.knows(serial):
            revoked.require_admitted(node)

    def require_expired_certificate(self, identity: SpiffeId, serial: int) -> None:
        """As ``require_certificate``, when the revocation of an expired certificate may have been forgotten already.

        A node that was revoked and let in again has those that it was issued since.  A minute is left for clocks of
        the authority's machines that differ: it falls on the side of the refusal.
        """
        revoked = self.current()
        revoked.require_certificate(identity, serial)
        node = identity.node_name or ""
        found = revoked.shut_out.get(node)
        if found is not None and not self._store.revocations.issued_since(serial, found[0] + CLOCK_SKEW):
            revoked.require_admitted(node)


def _read(store: Store, version: int) -> Revoked:
    serials: dict[int, Revocation] = {}
    identities: dict[SpiffeId, Revocation] = {}
    for revocation in store.revocations.to_distribute():
        match revocation.kind:
            case RevocationKind.SERIAL:
                serials[serial_of(revocation.value)] = revocation
            case RevocationKind.IDENTITY:
                identities[SpiffeId.parse(revocation.value)] = revocation
            case RevocationKind.NODE:
                serials.update(dict.fromkeys(revocation.serials, revocation))
    return Revoked(version=version, serials=serials, identities=identities, shut_out=dict(store.revocations.shut_out()))


def _refusal(what: str, at: datetime, why: str) -> Refusal:
    since = f"{what} is revoked since {at:%Y-%m-%dT%H:%M:%SZ}"
    return Refusal(RefusalCode.REVOKED, f"{since}: {why}" if why else since)
