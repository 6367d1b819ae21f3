"""A root makes way for the next: published, waited for, activated; or replaced at once in an emergency.

    prepare, or publish_foreign      every agent learns to trust it      (undone by withdraw)
    (wait until all live agents have said so: ``rotation.not_acknowledged``)
    activate                         its intermediate signs from now on
    (the server retires the old root when nothing under it is valid any more)

Blocking, like ``succession.py``.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from ca.authority import founding, profile, rotation
from ca.authority.errors import AuthorityError
from ca.authority.keys import write_key
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.rotation import SigningKey
from ca.authority.store import authorities as table
from ca.authority.store.database import Transaction
from ca.authority.store.jwt_keys import distrust_all
from ca.authority.succession import Overtaken, Succession


class RootSuccession:
    """The steps of the rotation of a root."""

    def __init__(self, succession: Succession) -> None:
        self._succession = succession

    def prepare(self, *, at: datetime) -> str:
        """Publish a new root of our own, with an intermediate that waits under it; returns its key's identifier.

        Raises:
            Overtaken: one is prepared already.
            AuthorityError: as ``Succession.require_passphrase``.
        """
        self._succession.require_passphrase()
        records = self._make(AuthorityState.PREPARED, at=at)
        self._publish(records)
        return records[0].key_id

    def publish_foreign(self, certificate: x509.Certificate, *, at: datetime) -> bytes:
        """Publish somebody else's root; returns the request for the intermediate under it, in PEM.

        Raises:
            Overtaken: one is prepared already.
            AuthorityError: this root is, or was, one of ours already.
        """
        key_id = profile.key_id(certificate)
        if any(record.key_id == key_id for record in self._succession.records()):
            raise AuthorityError(f"the root {key_id} is known here already; a new root has a new key")
        self._publish([founding.record_of(AuthorityKind.ROOT, AuthorityState.PREPARED, certificate, key_id, at=at)])
        return self.new_request()

    def new_request(self) -> bytes:
        """Ask somebody else for an intermediate: a key of ours, and the request for its certificate, in PEM."""
        succession = self._succession
        return founding.new_request(succession.config, succession.store, passphrase=succession.passphrase)

    def activate(self, *, at: datetime) -> None:
        """Let the intermediate under the prepared root sign; what is under the old one signs no more.

        Raises:
            Overtaken: no root with an intermediate under it is prepared any more.
            AuthorityError: as ``Succession.require_passphrase``.
        """
        _, waiting = _prepared(self._succession.signing_keys())
        self._succession.require_passphrase(successor=waiting.key_id)

        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            root, successor = _prepared(keys)
            for key in keys:
                if key.kind is AuthorityKind.UPSTREAM or key in (root, successor):
                    continue
                if key.state is AuthorityState.ACTIVE:
                    table.set_state(transaction, key.key_id, AuthorityState.RETIRING, at=at)
                elif key.state is AuthorityState.PREPARED:
                    table.set_state(transaction, key.key_id, AuthorityState.RETIRED, at=at)
            for key in (root, successor):
                table.set_state(transaction, key.key_id, AuthorityState.ACTIVE, at=at)

        self._succession.change(change)
        self._succession.sweep()

    def withdraw(self, *, at: datetime) -> None:
        """Take a prepared root, and what is under it, out of the bundle again.

        Raises:
            Overtaken: no root is prepared.
        """

        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            root = rotation.prepared_root(keys)
            if root is None:
                raise Overtaken("no root is prepared")
            for key in keys:
                if rotation.root_of(key, keys) == root:
                    table.set_state(transaction, key.key_id, AuthorityState.RETIRED, at=at)

        self._succession.change(change)
        self._succession.sweep()

    def replace_everything(self, *, at: datetime) -> str:
        """Distrust the whole hierarchy at once: for a root key that somebody has stolen.

        A root of somebody else's that is prepared takes its place, or a new one
        of ours; one of ours that was prepared may be stolen as well, and so may
        the keys that sign JWTs.  Returns the new root's key identifier.
        """
        keys = self._succession.signing_keys()
        prepared = rotation.prepared_root(keys)
        foreign = prepared is not None and not self._succession.store.keys.has(prepared.key_id)
        records = [] if foreign else self._make(AuthorityState.ACTIVE, at=at)
        gone: list[str] = []

        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            successors = _prepared(keys) if foreign else ()
            stay = [key for key in keys if successors and rotation.root_of(key, keys) == successors[0]]
            for key in keys:
                if key not in stay:
                    table.set_state(transaction, key.key_id, AuthorityState.RETIRED, at=at)
            for key in successors:
                table.set_state(transaction, key.key_id, AuthorityState.ACTIVE, at=at)
            table.add(transaction, records)
            gone.extend(distrust_all(transaction))

        self._succession.change(change)
        self._succession.sweep()
        for key_id in gone:
            self._succession.store.keys.remove(key_id)
        found = rotation.active_root(self._succession.signing_keys())
        assert found is not None
        return found.key_id

    def _make(self, state: AuthorityState, *, at: datetime) -> list[AuthorityRecord]:
        """Make a root of ours and an intermediate under it, and keep their keys."""
        succession = self._succession
        root = founding.make_root(succession.config, at=at)
        made = founding.make_intermediate(succession.config, root=root, at=at)
        root_id = profile.key_id(root.certificate)
        records = [
            founding.record_of(AuthorityKind.ROOT, state, root.certificate, root_id, at=at),
            founding.record_of(AuthorityKind.INTERMEDIATE, state, made.certificate, root_id, at=at),
        ]
        write_key(succession.root.keys, root_id, root.key, succession.root.passphrase)
        write_key(succession.store.keys, records[1].key_id, made.key, succession.passphrase)
        return records

    def _publish(self, records: Sequence[AuthorityRecord]) -> None:
        def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
            if rotation.prepared_root(keys) is not None:
                raise Overtaken("a root is prepared already")
            table.add(transaction, records)

        self._succession.change(change)


def _prepared(keys: Sequence[SigningKey]) -> tuple[SigningKey, SigningKey]:
    root = rotation.prepared_root(keys)
    successor = None if root is None else rotation.prepared_intermediate(keys, root=root)
    if root is None or successor is None:
        raise Overtaken("no root with an intermediate under it is prepared")
    return root, successor
