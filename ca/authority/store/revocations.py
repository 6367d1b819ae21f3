"""What is revoked: certificates, identities and nodes.

A revoked *identity* is in force until it is undone.  A revoked *serial* is
forgotten when the certificate has expired.  Revoking a *node* does two things:
every unexpired certificate that the journal says it was issued is revoked, each
until it expires; and the node is shut out until it is undone, or until the
operator makes a join token for it, which is how a rebuilt node comes back while
what was stolen from it stays revoked.

Every change bumps the trust version in the same transaction, and no certificate
is issued meanwhile (``alone``): what is issued later is judged by
``ca.authority.revocation``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ca.authority.errors import AuthorityError
from ca.authority.store.database import Database, Transaction
from ca.authority.store.times import from_seconds, to_seconds
from ca.authority.store.trust import bump
from ca.spiffe import SpiffeId
from ca.svid import CLOCK_SKEW
from ca.trust import MAX_REVOCATIONS, Revocation, RevocationKind, serial_hex

# The index on the journal is by node and issue; nothing that was issued longer ago is valid still.
_LONGEST_LIFE: Final = timedelta(days=8)
# What agents are told has to fit a frame of 1 MiB, together with the bundles.
_MOST_SERIALS: Final = 16_384  # of all revoked nodes together: 320 KiB
_MOST_BYTES: Final = 384 * 1024
_REVOCATION_BYTES: Final = 80  # of one, beside its value and its reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """One revocation as the operator sees it.

    ``certificates`` is how many unexpired certificates it covers now, as far
    as the journal knows; ``until`` is None while it has no end.
    """

    kind: RevocationKind
    value: str
    at: datetime
    until: datetime | None
    why: str
    certificates: int


class Revocations:
    """The tables ``revocations`` and ``revoked_certificates``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def revoke_serial(self, serial: int, *, at: datetime, why: str) -> Revoked:
        """Revoke one certificate.

        Raises:
            AuthorityError: the journal does not know it, or it has expired.
        """
        value = serial_hex(serial)
        with self._database.transaction() as transaction:
            rows = transaction.query("SELECT not_after, identity FROM certificates WHERE serial = ?", (value,))
            if not rows:
                raise AuthorityError(
                    f"serial {value}: this authority has not issued it, or its record was lost with a restored backup; "
                    "to be safe revoke its identity. A root or intermediate is replaced with: ringfence ca rotate"
                )
            node = SpiffeId.parse(rows[0][1]).node_name
            if node is not None:  # with it, it could renew it as long as it is shut out by nothing else
                raise AuthorityError(f"serial {value}: is node {node}'s own; run: ringfence ca revoke node {node}")
            until = from_seconds(rows[0][0]) + CLOCK_SKEW
            if until <= at:
                raise AuthorityError(f"serial {value}: it expired at {from_seconds(rows[0][0]):%Y-%m-%dT%H:%M:%SZ}")
            _write(transaction, RevocationKind.SERIAL, value, at=at, until=until, why=why)
            bump(transaction)
        return Revoked(kind=RevocationKind.SERIAL, value=value, at=at, until=until, why=why, certificates=1)

    def revoke_identity(self, identity: str, *, at: datetime, why: str, unseen: bool = False) -> Revoked:
        """Revoke an identity: all its certificates, and no new ones.

        Raises:
            AuthorityError: the journal has no certificate of it, and not ``unseen``.
        """
        with self._database.transaction() as transaction:
            if not unseen and not transaction.query(
                "SELECT 1 FROM certificates WHERE identity = ? LIMIT 1", (identity,)
            ):
                raise AuthorityError(
                    f"{identity}: no certificate was ever issued for it; is it spelt right? "
                    "To revoke it all the same, before it is ever used, add --unseen"
                )
            _write(transaction, RevocationKind.IDENTITY, identity, at=at, until=None, why=why)
            bump(transaction)
            count = _unexpired(transaction, "identity", identity, at)
        return Revoked(
            kind=RevocationKind.IDENTITY, value=identity, at=at, until=None, why=why, certificates=len(count)
        )

    def revoke_node(self, node: str, *, at: datetime, why: str) -> Revoked:
        """Shut a node out, and revoke what it was issued; its join tokens are void.

        Raises:
            AuthorityError: nothing is known of such a node, or more is revoked already than agents can be told.
        """
        with self._database.transaction() as transaction:
            tokens = transaction.execute("DELETE FROM tokens WHERE node = ? AND used_at IS NULL", (node,))
            known = transaction.query("SELECT 1 FROM certificates WHERE node = ? LIMIT 1", (node,))
            if not tokens and not known:
                raise AuthorityError(
                    f"node {node}: it was never issued anything and has no join token; "
                    "the nodes are listed by: ringfence ca status"
                )
            found = _unexpired(transaction, "node", node, at)
            until = max((not_after for _, not_after in found), default=to_seconds(at)) + int(CLOCK_SKEW.total_seconds())
            _write(transaction, RevocationKind.NODE, node, at=at, until=from_seconds(until), why=why)
            transaction.executemany(
                "INSERT INTO revoked_certificates (serial, node, not_after) VALUES (?, ?, ?)"
                " ON CONFLICT (serial) DO NOTHING",
                [(serial, node, not_after) for serial, not_after in found],
            )
            if transaction.query("SELECT count(*) FROM revoked_certificates")[0][0] > _MOST_SERIALS:
                raise AuthorityError(
                    f"node {node}: with its {len(found)} certificates more than {_MOST_SERIALS} would be revoked, "
                    "which agents can not be told; replace the root instead (docs/ca.md, in an emergency)"
                )
            bump(transaction)
        return Revoked(
            kind=RevocationKind.NODE,
            value=node,
            at=at,
            until=from_seconds(until),
            why=why,
            certificates=len(found),
        )

    def undo(self, kind: RevocationKind, value: str) -> None:
        """Take a revocation back, as if it had never been made.

        Raises:
            AuthorityError: there is none.
        """
        with self._database.transaction() as transaction:
            if not transaction.execute("DELETE FROM revocations WHERE kind = ? AND value = ?", (str(kind), value)):
                raise AuthorityError(
                    f"{kind} {value}: it is not revoked; what is, is listed by: ringfence ca revoke list"
                )
            if kind is RevocationKind.NODE:
                transaction.execute("DELETE FROM revoked_certificates WHERE node = ?", (value,))
            bump(transaction)

    def forget_expired(self, *, at: datetime) -> int:
        """Drop what names only certificates that nobody accepts any more; returns how many certificates those were.

        A node stays shut out.
        """
        now = to_seconds(at)
        with self._database.transaction() as transaction:
            gone = transaction.execute(
                "DELETE FROM revoked_certificates WHERE not_after < ?", (now - int(CLOCK_SKEW.total_seconds()),)
            )
            gone += transaction.execute(
                "DELETE FROM revocations WHERE kind = ? AND until < ?", (str(RevocationKind.SERIAL), now)
            )
            if gone:
                bump(transaction)
        return gone

    def to_distribute(self) -> tuple[Revocation, ...]:
        """What agents have to know, in the order of their making: depends on nothing but the tables."""
        serials: dict[str, list[int]] = {}
        for serial, node in self._database.query("SELECT serial, node FROM revoked_certificates ORDER BY serial"):
            serials.setdefault(node, []).append(int(serial, 16))
        found = []
        for kind, value, revoked_at, until, why in self._rows():
            named = tuple(serials.get(value, ())) if kind == RevocationKind.NODE else ()
            if kind == RevocationKind.NODE and not named:
                continue  # shut out; there is nothing that a peer could meet
            found.append(
                Revocation(
                    kind=RevocationKind(kind),
                    value=value,
                    at=from_seconds(revoked_at),
                    until=None if until is None else from_seconds(until),
                    why=why,
                    serials=named,
                )
            )
        return tuple(found)

    def read(self, *, at: datetime) -> list[Revoked]:
        """Every revocation in force, for the operator."""
        found = []
        for kind, value, revoked_at, until, why in self._rows():
            if kind == RevocationKind.IDENTITY:
                count = len(_unexpired(self._database, "identity", value, at))
            elif kind == RevocationKind.NODE:
                rows = self._database.query("SELECT count(*) FROM revoked_certificates WHERE node = ?", (value,))
                count = int(rows[0][0])
            else:
                count = 1
            found.append(
                Revoked(
                    kind=RevocationKind(kind),
                    value=value,
                    at=from_seconds(revoked_at),
                    until=None if until is None else from_seconds(until),
                    why=why,
                    certificates=count,
                )
            )
        return found

    def knows(self, serial: int) -> bool:
        """Whether the journal has a certificate."""
        return bool(self._database.query("SELECT 1 FROM certificates WHERE serial = ?", (serial_hex(serial),)))

    def issued_since(self, serial: int, moment: datetime) -> bool:
        """Whether the journal has a certificate, and issued it after a moment."""
        return bool(
            self._database.query(
                "SELECT 1 FROM certificates WHERE serial = ? AND issued_at > ?",
                (serial_hex(serial), to_seconds(moment)),
            )
        )

    def shut_out(self) -> dict[str, tuple[datetime, str]]:
        """The nodes that are shut out, but for join tokens: since when, and why.  Also those that came back by one."""
        rows = self._database.query(
            "SELECT value, revoked_at, why FROM revocations WHERE kind = ?", (str(RevocationKind.NODE),)
        )
        return {value: (from_seconds(revoked_at), why) for value, revoked_at, why in rows}

    def _rows(self) -> Iterable[tuple[str, str, int, int | None, str]]:
        rows = self._database.query("SELECT kind, value, revoked_at, until, why FROM revocations ORDER BY rowid")
        return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


def _write(
    transaction: Transaction, kind: RevocationKind, value: str, *, at: datetime, until: datetime | None, why: str
) -> None:
    """Add a revocation; one that is there already gets the newer reason.

    It keeps the time of the first, but for a node: that may have come back meanwhile, and what it was issued since is
    told by the time (``ca.authority.revocation``).
    """
    transaction.execute(
        "INSERT INTO revocations (kind, value, revoked_at, until, why) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (kind, value) DO UPDATE SET until = excluded.until, why = excluded.why,"
        " revoked_at = CASE WHEN excluded.kind = ? AND excluded.revoked_at > revocations.revoked_at"
        " THEN excluded.revoked_at ELSE revocations.revoked_at END",
        (str(kind), value, to_seconds(at), None if until is None else to_seconds(until), why, str(RevocationKind.NODE)),
    )
    rows = transaction.query(
        "SELECT count(*), CAST(sum(length(value) + length(why) + ?) AS INTEGER) FROM revocations", (_REVOCATION_BYTES,)
    )
    if rows[0][0] > MAX_REVOCATIONS or rows[0][1] > _MOST_BYTES:
        raise AuthorityError(
            f"{kind} {value}: with this one there would be more revocations than agents can be told "
            f"({MAX_REVOCATIONS}, or {_MOST_BYTES // 1024} KiB of them); undo those of identities and nodes that "
            "are gone for good, or replace the root (docs/ca.md, in an emergency)"
        )


def _unexpired(source: Transaction | Database, column: str, value: str, at: datetime) -> list[tuple[str, int]]:
    """Serial and end of the certificates of a node or an identity that somebody could still accept."""
    rows = source.query(
        f"SELECT serial, not_after FROM certificates WHERE {column} = ? AND issued_at > ? AND not_after > ?",  # noqa: S608
        (value, to_seconds(at - _LONGEST_LIFE), to_seconds(at - CLOCK_SKEW)),
    )
    return [(row[0], row[1]) for row in rows]
