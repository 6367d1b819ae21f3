"""The federated trust domains: what the operator configured, and the bundle that is in force of each.

What changes whom agents believe bumps the trust version in the same
transaction.  A poll that comes back when its relation was removed, or removed
and added again, changes nothing.
"""

from collections.abc import Callable
from datetime import datetime

from ca.authority.federation.relation import EndpointUrl, FederatedDomain, Profile, Relation
from ca.authority.store.database import Database, Row, Transaction
from ca.authority.store.times import from_seconds, to_seconds
from ca.authority.store.trust import bump
from ca.bundle import BundleError, parse_bundle, write_bundle
from ca.spiffe import SpiffeId
from ca.trust import TrustBundle

_COLUMNS = "trust_domain, endpoint, profile, endpoint_id, added_at, bundle, polled_at, next_poll_at, failures, problem"
_MAX_PROBLEM = 500


class Federation:
    """The table ``federation``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, relation: Relation, bundle: TrustBundle | None, *, check: Callable[[list[FederatedDomain]], None]
    ) -> None:
        """Begin a relation; it is polled at once.

        ``check`` is called with all that there are, in the transaction; what
        it raises is raised here, and nothing is changed.
        """
        with self._database.transaction() as transaction:
            check(_read(transaction))
            at = to_seconds(relation.added_at)
            transaction.execute(
                f"INSERT INTO federation ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
                (
                    relation.trust_domain,
                    str(relation.url),
                    str(relation.profile),
                    "" if relation.endpoint_id is None else str(relation.endpoint_id),
                    at,
                    b"" if bundle is None else write_bundle(bundle),
                    None,
                    at,
                    0,
                    "",
                ),
            )
            if bundle is not None:
                bump(transaction)

    def remove(self, trust_domain: str) -> bool:
        """End a relation, and with it the trust; False if there was none."""
        with self._database.transaction() as transaction:
            found = transaction.execute("DELETE FROM federation WHERE trust_domain = ?", (trust_domain,))
            if found:
                bump(transaction)
        return bool(found)

    def refresh(self, trust_domain: str | None, *, at: datetime) -> int:
        """Let one trust domain, or all, be polled at once; returns how many there are."""
        with self._database.transaction() as transaction:
            if trust_domain is None:
                return transaction.execute("UPDATE federation SET next_poll_at = ?", (to_seconds(at),))
            return transaction.execute(
                "UPDATE federation SET next_poll_at = ? WHERE trust_domain = ?", (to_seconds(at), trust_domain)
            )

    def domains(self) -> list[FederatedDomain]:
        """All of them, by name."""
        return _read(self._database)

    def polled(
        self, relation: Relation, found: TrustBundle, *, in_force: TrustBundle | None, at: datetime, next_at: datetime
    ) -> bool:
        """Put a bundle that was fetched in force, in place of ``in_force``; returns whether that is a change."""
        before = b"" if in_force is None else write_bundle(in_force)
        document = write_bundle(found)
        with self._database.transaction() as transaction:
            ours = transaction.execute(
                "UPDATE federation SET bundle = ?, polled_at = ?, next_poll_at = ?, failures = 0, problem = ''"
                " WHERE trust_domain = ? AND added_at = ? AND endpoint = ? AND bundle = ?",
                (
                    document,
                    to_seconds(at),
                    to_seconds(next_at),
                    relation.trust_domain,
                    to_seconds(relation.added_at),
                    str(relation.url),
                    before,
                ),
            )
            if ours and document != before:
                bump(transaction)
        return bool(ours) and document != before

    def poll_failed(self, relation: Relation, problem: str, *, next_at: datetime) -> None:
        """Remember why; what is in force stays."""
        with self._database.transaction() as transaction:
            transaction.execute(
                "UPDATE federation SET next_poll_at = ?, failures = failures + 1, problem = ?"
                " WHERE trust_domain = ? AND added_at = ?",
                (
                    to_seconds(next_at),
                    problem[:_MAX_PROBLEM],
                    relation.trust_domain,
                    to_seconds(relation.added_at),
                ),
            )


def _read(source: Transaction | Database) -> list[FederatedDomain]:
    rows = source.query(f"SELECT {_COLUMNS} FROM federation ORDER BY trust_domain")  # noqa: S608 - a constant
    return [_domain(row) for row in rows]


def _domain(row: Row) -> FederatedDomain:
    trust_domain, endpoint, profile, endpoint_id, added_at, bundle, polled_at, next_poll_at, failures, problem = row
    relation = Relation(
        trust_domain=trust_domain,
        url=EndpointUrl.parse(endpoint),
        profile=Profile(profile),
        endpoint_id=SpiffeId.parse(endpoint_id) if endpoint_id else None,
        added_at=from_seconds(added_at),
    )
    found = None
    try:
        found = parse_bundle(bytes(bundle), trust_domain=trust_domain) if bundle else None
    except BundleError as error:  # written by a version that was less strict: trusted no longer, until the next poll
        problem = f"the stored bundle is not accepted: {error}"
    return FederatedDomain(
        relation=relation,
        bundle=found,
        polled_at=None if polled_at is None else from_seconds(polled_at),
        next_poll_at=from_seconds(next_poll_at),
        failures=failures,
        problem=problem,
    )
