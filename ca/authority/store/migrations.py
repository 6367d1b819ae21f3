"""How the tables came to be: one entry a version, applied in order, each once.

An entry that was released never changes; a change of the schema is a new entry
at the end.  All entries that are missing are applied in one transaction that is
alone on the database, so that of two replicas which start at once one migrates
and the other finds it done, and one that is killed leaves the old version.

Entries are written in SQLite's words (see ``database.py``) and translated for
PostgreSQL word by word: INTEGER has 64 bits in the one and 32 in the other, and
``rowid`` is there by itself only in SQLite.
"""

import re
from typing import Final

from ca.authority.errors import AuthorityError
from ca.authority.store.database import Database, Dialect, Transaction

MIGRATIONS: Final[tuple[str, ...]] = (
    # 1: the journal, join tokens, the public half of the hierarchy
    """
    CREATE TABLE authorities (
        key_id TEXT PRIMARY KEY,             -- subject key identifier, hex: names the key file
        kind TEXT NOT NULL,                  -- root | intermediate
        state TEXT NOT NULL,                 -- prepared | active | retired
        certificate BLOB NOT NULL,           -- DER
        issuer_key_id TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE certificates (
        serial TEXT PRIMARY KEY,             -- hex
        identity TEXT NOT NULL,
        node TEXT NOT NULL,                  -- the node that asked; empty for the CA's own
        not_before INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        issued_at INTEGER NOT NULL,
        attestation TEXT NOT NULL,           -- how the asker proved itself
        requester TEXT NOT NULL,             -- its address
        issuer_key_id TEXT NOT NULL
    ) STRICT;
    CREATE INDEX certificates_node ON certificates (node, issued_at);
    CREATE INDEX certificates_identity ON certificates (identity, issued_at);
    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY,               -- sha256; the token itself is never stored
        node TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        used_at INTEGER,
        used_by TEXT                         -- serial of the certificate that it bought
    ) STRICT;
    """,
    # 2: signing keys, for replicas that share a database; SQLite keeps them as files beside it
    """
    CREATE TABLE signing_keys (
        key_id TEXT PRIMARY KEY,
        encrypted_pem BLOB NOT NULL          -- PKCS #8, encrypted under the passphrase
    ) STRICT;
    """,
    # 3: since when a signing key is in its state, and when the last certificate that it signed ends
    """
    ALTER TABLE authorities ADD COLUMN since INTEGER;  -- NULL: since it was made
    CREATE INDEX certificates_issuer ON certificates (issuer_key_id, not_after);
    """,
    # 4: the version of the trust, which agents have which, and what is revoked
    """
    CREATE TABLE trust_version (
        version INTEGER NOT NULL             -- one row at most; without one it is 1
    ) STRICT;
    CREATE TABLE trust_agents (
        node TEXT PRIMARY KEY,
        version INTEGER NOT NULL,            -- which the agent has in force
        seen_at INTEGER NOT NULL,
        address TEXT NOT NULL
    ) STRICT;
    CREATE TABLE revocations (
        kind TEXT NOT NULL,                  -- serial | identity | node
        value TEXT NOT NULL,
        revoked_at INTEGER NOT NULL,
        until INTEGER,                       -- when the last certificate that it names has ended
        why TEXT NOT NULL,
        PRIMARY KEY (kind, value)
    ) STRICT;
    CREATE TABLE revoked_certificates (
        serial TEXT PRIMARY KEY,             -- hex; of revoked nodes
        node TEXT NOT NULL,
        not_after INTEGER NOT NULL
    ) STRICT;
    """,
    # 5: JWT-SVIDs: the keys that sign them, and the journal of tokens
    """
    CREATE TABLE jwt_keys (
        key_id TEXT PRIMARY KEY,             -- names the private half among the signing keys
        state TEXT NOT NULL,                 -- prepared | active | retiring | retired
        public_key BLOB NOT NULL,            -- SubjectPublicKeyInfo, DER
        since INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX jwt_keys_one_each ON jwt_keys (state) WHERE state IN ('prepared', 'active');
    CREATE TABLE jwt_svids (
        token_id TEXT PRIMARY KEY,           -- jti; the token itself is never stored
        identity TEXT NOT NULL,
        node TEXT NOT NULL,
        audience TEXT NOT NULL,              -- JSON
        issued_at INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        key_id TEXT NOT NULL,
        attestation TEXT NOT NULL,
        requester TEXT NOT NULL
    ) STRICT;
    CREATE INDEX jwt_svids_end ON jwt_svids (not_after);
    CREATE INDEX jwt_svids_identity ON jwt_svids (identity, issued_at);
    """,
    # machines that have attested with a document of theirs: each does so once
    """
    CREATE TABLE instances (
        method TEXT NOT NULL,                -- the plugin
        id TEXT NOT NULL,                    -- unique within the method
        node TEXT NOT NULL,
        attested_at INTEGER NOT NULL,
        serial TEXT NOT NULL,                -- of the certificate that it bought, hex
        PRIMARY KEY (method, id)
    ) STRICT;
    """,
    # 6: the trust domains that are federated
    """
    CREATE TABLE federation (
        trust_domain TEXT PRIMARY KEY,
        endpoint TEXT NOT NULL,              -- https URL
        profile TEXT NOT NULL,               -- https_spiffe | https_web
        endpoint_id TEXT NOT NULL,           -- SPIFFE ID of the endpoint, empty for https_web
        added_at INTEGER NOT NULL,
        bundle BLOB NOT NULL,                -- JWK set, empty before there was any
        polled_at INTEGER,                   -- when a bundle was last fetched
        next_poll_at INTEGER NOT NULL,
        failures INTEGER NOT NULL,           -- polls that failed in a row
        problem TEXT NOT NULL                -- why the last one did
    ) STRICT;
    """,
    # 7: which certificate a node has shown last: what it had before is worth nothing once it has expired
    """
    ALTER TABLE trust_agents ADD COLUMN serial TEXT;
    """,
)
_COMMENT: Final = re.compile(r"--[^\n]*")
_POSTGRESQL_WORDS: Final = {
    "INTEGER": "BIGINT",
    "BLOB": "BYTEA",
    ") STRICT": ", rowid BIGINT GENERATED ALWAYS AS IDENTITY)",
}


def migrate(database: Database, *, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring the schema up to date; ``migrations`` is another list only in tests.

    Raises:
        AuthorityError: the schema is of a newer version of Ringfence; nothing was changed.
        StoreError: the database can not be used.
    """
    with database.transaction() as transaction:
        transaction.execute(
            _translated("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT", database.dialect)
        )
        version = _version(transaction)
        if version > len(migrations):
            raise AuthorityError(
                f"{database}: schema version {version} is newer than this program's {len(migrations)}; "
                "run the version of Ringfence that wrote it, or a later one"
            )
        for number, script in enumerate(migrations[version:], start=version + 1):
            for statement in statements(script, database.dialect):
                transaction.execute(statement)
            transaction.execute("INSERT INTO schema_version (version) VALUES (?)", (number,))


def statements(script: str, dialect: Dialect) -> list[str]:
    """One migration as single statements in the words of ``dialect``, without comments."""
    bare = _COMMENT.sub("", script)
    return [_translated(each.strip(), dialect) for each in bare.split(";") if each.strip()]


def _version(transaction: Transaction) -> int:
    rows = transaction.query("SELECT max(version) FROM schema_version")
    return int(rows[0][0] or 0)


def _translated(statement: str, dialect: Dialect) -> str:
    match dialect:
        case Dialect.SQLITE:
            return statement
        case Dialect.POSTGRESQL:
            for word, replacement in _POSTGRESQL_WORDS.items():
                pattern = r"\s*\)\s*STRICT\b" if word.startswith(")") else rf"\b{word}\b"
                statement = re.sub(pattern, replacement, statement)
            return statement
