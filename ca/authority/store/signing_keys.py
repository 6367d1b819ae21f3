"""Signing keys for replicas that share a database; only their encrypted form gets here."""

from ca.authority.errors import AuthorityError, StoreConflict
from ca.authority.store.database import Database


class KeyTable:
    """The table ``signing_keys``: a ``KeyStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def where(self, key_id: str) -> str:
        """Name the row."""
        return f"{self._database}: signing key {key_id}"

    def add(self, key_id: str, encrypted_pem: bytes) -> None:
        """Keep a key; durable when it returns."""
        try:
            with self._database.transaction() as transaction:
                transaction.execute(
                    "INSERT INTO signing_keys (key_id, encrypted_pem) VALUES (?, ?)", (key_id, encrypted_pem)
                )
        except StoreConflict as exc:
            raise FileExistsError(f"{self.where(key_id)} is there already") from exc

    def read(self, key_id: str) -> bytes:
        """Return the encrypted key."""
        rows = self._database.query("SELECT encrypted_pem FROM signing_keys WHERE key_id = ?", (key_id,))
        if not rows:
            raise AuthorityError(f"{self.where(key_id)} is not there; restore it from a backup")
        return bytes(rows[0][0])

    def has(self, key_id: str) -> bool:
        """Whether the row is there."""
        return bool(self._database.query("SELECT 1 FROM signing_keys WHERE key_id = ?", (key_id,)))

    def remove(self, key_id: str) -> None:
        """Delete the row."""
        with self._database.transaction() as transaction:
            transaction.execute("DELETE FROM signing_keys WHERE key_id = ?", (key_id,))

    def names(self) -> list[str]:
        """The identifiers of all rows."""
        return [key_id for (key_id,) in self._database.query("SELECT key_id FROM signing_keys ORDER BY key_id")]
