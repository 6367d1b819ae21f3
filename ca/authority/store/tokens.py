"""Join tokens: hashed, for one node, good once."""

from datetime import datetime

from ca.authority.records import TokenRecord
from ca.authority.store.database import Database, Transaction
from ca.authority.store.times import from_seconds, to_seconds

_KEEP_S = 86_400  # so that who comes too late is told that it expired


class TokenAlreadyUsed(Exception):
    """Somebody else used the token between the check and the journal: nothing was written."""


class Tokens:
    """The table ``tokens``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, token: TokenRecord, *, at: datetime) -> None:
        """Remember a token, and forget those that ended more than a day ago."""
        with self._database.transaction() as transaction:
            transaction.execute("DELETE FROM tokens WHERE expires_at < ?", (to_seconds(at) - _KEEP_S,))
            transaction.execute(
                "INSERT INTO tokens (hash, node, created_at, expires_at) VALUES (?, ?, ?, ?)",
                (token.token_hash, token.node, to_seconds(at), to_seconds(token.expires_at)),
            )

    def find(self, token_hash: bytes) -> TokenRecord | None:
        """Look a token up by its hash."""
        rows = self._database.query("SELECT node, expires_at, used_at FROM tokens WHERE hash = ?", (token_hash,))
        if not rows:
            return None
        node, expires_at, used_at = rows[0]
        used = None if used_at is None else from_seconds(used_at)
        return TokenRecord(token_hash=token_hash, node=node, expires_at=from_seconds(expires_at), used_at=used)

    def pending(self, *, at: datetime) -> list[TokenRecord]:
        """Tokens that can still be used, the next to expire first."""
        rows = self._database.query(
            "SELECT hash, node, expires_at FROM tokens WHERE used_at IS NULL AND expires_at > ? ORDER BY expires_at",
            (to_seconds(at),),
        )
        return [TokenRecord(token_hash=row[0], node=row[1], expires_at=from_seconds(row[2])) for row in rows]


def void_all(transaction: Transaction) -> None:
    """Forget every token that is not known to be used."""
    transaction.execute("DELETE FROM tokens WHERE used_at IS NULL")


def use_up(transaction: Transaction, token_hash: bytes, *, used_by: str, at: datetime) -> None:
    """Use a token, in the transaction that journals what it buys; of two who try, the second waits and fails.

    Raises:
        TokenAlreadyUsed: it is used or gone.
    """
    used = transaction.execute(
        "UPDATE tokens SET used_at = ?, used_by = ? WHERE hash = ? AND used_at IS NULL",
        (to_seconds(at), used_by, token_hash),
    )
    if used != 1:
        raise TokenAlreadyUsed
