"""Carry out what ``rotation.py`` decides: make keys, and bring signing certificates into their next state.

Every step is one transaction that looks at the states again before it changes
them, and counts a version of the trust, so that all replicas and all agents
hear of it.  A key is written before the certificate that needs it; one whose
certificate never came is of no use to anybody.  So a step that was cut off has
happened or has not, and what comes after it can be done by somebody else.

This file has what the server does by itself; ``root_succession.py`` has what
takes an operator, and ``installation.py`` what somebody else signed.

Blocking: call it from a worker thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.authority import founding, profile, rotation
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.hierarchy import published_roots, require_long_enough, write_bundle
from ca.authority.keys import KeyStore, read_key, write_key
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.rotation import SigningKey
from ca.authority.store import Store
from ca.authority.store import authorities as table
from ca.authority.store.database import Database, Transaction
from ca.authority.store.trust import bump

Change = Callable[[Transaction, Sequence[SigningKey]], None]


class Overtaken(AuthorityError):
    """Somebody else has changed the hierarchy meanwhile; nothing was changed here.  Look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootAccess:
    """Where the keys of roots are, and their passphrase."""

    keys: KeyStore
    passphrase: bytes


class Succession:
    """Changes the hierarchy in a store, which belongs to whoever opened it."""

    def __init__(
        self, *, config: AuthorityConfig, store: Store, passphrase: bytes, root: RootAccess | None = None
    ) -> None:
        self.config = config
        self.store = store
        self.passphrase = passphrase
        self.root = root or RootAccess(keys=store.keys, passphrase=passphrase)

    def records(self) -> list[AuthorityRecord]:
        """Every signing certificate, also those that are retired."""
        return table.read(self.store.database)

    def signing_keys(self) -> list[SigningKey]:
        """Every signing key that is not retired, as rotation sees it."""
        return signing_keys(self.store.database)

    def root_key_at_hand(self) -> bool:
        """Whether an intermediate can be made without the operator."""
        root = rotation.active_root(self.signing_keys())
        return root is not None and self.root.keys.has(root.key_id)

    def require_passphrase(self, *, successor: str | None = None) -> None:
        """The server opens the keys that sign SVIDs with one passphrase, so nothing is rotated to a key under another.

        That would stop the server at its next start, long after the command said
        that all was well.  An emergency is the way to a new passphrase.

        Raises:
            AuthorityError: the key that signs now, or that of ``successor``, is not under our passphrase, or damaged.
        """
        active = rotation.active_intermediate(self.signing_keys())
        for key_id in (None if active is None else active.key_id, successor):
            if key_id is None or not self.store.keys.has(key_id):
                continue
            try:
                read_key(self.store.keys, key_id, self.passphrase)
            except AuthorityError as exc:
                raise AuthorityError(
                    f"{exc}; the key that signs and the next one have to be under the same passphrase, which the "
                    "server has: nothing was changed"
                ) from exc

    def prepare_intermediate(self, *, at: datetime) -> str:
        """Make the next intermediate under the active root; returns its key's identifier.

        Raises:
            Overtaken: there is one already.
            AuthorityError: the root key is not at hand, or the root ends too soon; or as ``require_passphrase``.
        """
        self.require_passphrase()
        root = self._record(rotation.active_root(self.signing_keys()))
        issuer = self._issuer(root)
        made = founding.make_intermediate(self.config, root=issuer, at=at)
        require_long_enough(made.certificate, svid_ttl_s=self.config.svid_ttl_s)
        record = founding.record_of(
            AuthorityKind.INTERMEDIATE, AuthorityState.PREPARED, made.certificate, root.key_id, at=at
        )
        write_key(self.store.keys, record.key_id, made.key, self.passphrase)

        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            active = rotation.active_root(keys)
            if rotation.prepared_intermediate(keys) or active is None or active.key_id != root.key_id:
                raise Overtaken("the next intermediate was prepared by somebody else")
            table.add(transaction, [record])

        try:
            self.change(change)
        except Overtaken:
            self.store.keys.remove(record.key_id)
            raise
        return record.key_id

    def activate_intermediate(self, key_id: str, *, at: datetime) -> None:
        """Let a prepared intermediate under the active root sign; the one before signs no more.

        Raises:
            Overtaken: it is not prepared any more.
            AuthorityError: as ``require_passphrase``.
        """
        self.require_passphrase(successor=key_id)

        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            prepared = rotation.prepared_intermediate(keys)
            if prepared is None or prepared.key_id != key_id:
                raise Overtaken(f"the intermediate {key_id} is not prepared any more")
            before = rotation.active_intermediate(keys)
            if before is not None:
                table.set_state(transaction, before.key_id, AuthorityState.RETIRING, at=at)
            table.set_state(transaction, key_id, AuthorityState.ACTIVE, at=at)

        self.change(change)

    def retire(self, key_id: str, *, at: datetime) -> None:
        """Forget a key: a root leaves the bundle, and the private half is deleted.

        Raises:
            Overtaken: it may not be retired now.
        """

        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            if rotation.next_step(keys, at=at) != rotation.Retire(key_id):
                raise Overtaken(f"{key_id} is not to be retired now")
            table.set_state(transaction, key_id, AuthorityState.RETIRED, at=at)

        self.change(change)
        self.sweep()

    def sweep(self) -> None:
        """Delete the private halves of retired keys; also those that a crash has left."""
        for record in self.records():
            if record.state is AuthorityState.RETIRED and self.store.keys.has(record.key_id):
                self.store.keys.remove(record.key_id)

    def change(self, change: Change) -> None:
        """Make one change and count it, alone on the database; ``change`` raises to leave all as it is."""
        with self.store.database.transaction() as transaction:
            change(transaction, signing_keys(transaction))
            bump(transaction)
        write_bundle(self.config, published_roots(self.records()))

    def _record(self, key: SigningKey | None) -> AuthorityRecord:
        for record in self.records():
            if key is not None and record.key_id == key.key_id:
                return record
        raise AuthorityError(
            f"{self.config.database}: there is no authority here yet; make one with: ringfence ca init"
        )

    def _issuer(self, root: AuthorityRecord) -> profile.Issuer:
        where = self.root.keys.where(root.key_id)
        if not self.root.keys.has(root.key_id):
            raise AuthorityError(
                f"{where}: the root key is not here; bring it (--root-key FILE), or, if the root is somebody else's, "
                "make a request: ringfence ca rotate intermediate --csr FILE"
            )
        key = read_key(self.root.keys, root.key_id, self.root.passphrase)
        try:
            return profile.Issuer(certificate=root.certificate, key=key)
        except profile.ProfileError as exc:
            raise AuthorityError(f"{where}: it is not the key of the active root: {exc}") from exc


def signing_keys(source: Database | Transaction) -> list[SigningKey]:
    """Every signing key that is not retired, as rotation sees it."""
    return [
        SigningKey(
            key_id=record.key_id,
            kind=record.kind,
            state=record.state,
            issuer_key_id=record.issuer_key_id,
            not_before=record.certificate.not_valid_before_utc,
            not_after=record.certificate.not_valid_after_utc,
            since=record.since,
            last_not_after=table.last_not_after(source, record.key_id)
            if record.state is AuthorityState.RETIRING
            else None,
        )
        for record in table.read(source)
        if record.state is not AuthorityState.RETIRED
    ]
