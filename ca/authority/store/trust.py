"""The version of everything that agents judge peers by, and which agent has which version in force.

Whoever changes something of it (roots, federation, JWT keys, revocations) calls
``bump`` in the same transaction: the version is how other processes and
replicas, and the agents, learn of it.  It only ever grows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ca.authority.store.database import Database, Transaction
from ca.authority.store.times import from_seconds, to_seconds
from ca.trust import serial_hex

_LEAP: Final = 1_000_000  # more changes than can have been lost


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """The last that was heard of an agent: the version that it has in force (0: none), when, from where.

    ``serial`` is that of the certificate that it has shown; 0 if that is not known.
    """

    node: str
    version: int
    seen_at: datetime
    address: str
    serial: int = 0


def bump(transaction: Transaction) -> int:
    """Count a change of the trust, in the transaction that makes it; returns the new version."""
    if not transaction.execute("UPDATE trust_version SET version = version + 1"):
        transaction.execute("INSERT INTO trust_version (version) VALUES (2)")  # without a row it is 1
    return int(transaction.query("SELECT version FROM trust_version")[0][0])


def leap(transaction: Transaction) -> None:
    """Go on from a version that nobody has seen: after the database went back in time, in the same transaction.

    Otherwise an agent could have a version in force that is yet to come, with other content.
    """
    bump(transaction)
    transaction.execute("UPDATE trust_version SET version = version + ?", (_LEAP,))


class TrustRecords:
    """The tables ``trust_version`` and ``trust_agents``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def version(self) -> int:
        """The version now; 1 for an authority that has never changed."""
        rows = self._database.query("SELECT version FROM trust_version")
        return int(rows[0][0]) if rows else 1

    def acknowledge(self, node: str, version: int, *, at: datetime, address: str = "", serial: int = 0) -> None:
        """Remember that an agent has ``version`` in force."""
        self.acknowledge_all([AgentRecord(node=node, version=version, seen_at=at, address=address, serial=serial)])

    def acknowledge_all(self, agents: Iterable[AgentRecord]) -> None:
        """The same for many, in one transaction."""
        with self._database.transaction(alone=False) as transaction:
            transaction.executemany(
                "INSERT INTO trust_agents (node, version, seen_at, address, serial) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (node) DO UPDATE SET version = excluded.version, seen_at = excluded.seen_at,"
                " address = excluded.address, serial = excluded.serial",
                # In one order everywhere: two replicas that write the same two rows do not wait for each other.
                [
                    (agent.node, agent.version, to_seconds(agent.seen_at), agent.address, serial_hex(agent.serial))
                    for agent in sorted(agents, key=lambda agent: agent.node)
                ],
            )

    def agents(self) -> list[AgentRecord]:
        """Every agent that ever said which version it has, by name."""
        rows = self._database.query("SELECT node, version, seen_at, address, serial FROM trust_agents ORDER BY node")
        return [
            AgentRecord(
                node=row[0],
                version=row[1],
                seen_at=from_seconds(row[2]),
                address=row[3],
                serial=int(row[4] or "0", 16),
            )
            for row in rows
        ]

    def has_shown_newer(self, node: str, serial: int) -> bool:
        """Whether a node has shown a certificate that was issued after ``serial``; also if that is not in the journal.

        One that was issued and never arrived does not count: its node could not know of it.
        """
        rows = self._database.query("SELECT rowid FROM certificates WHERE serial = ?", (serial_hex(serial),))
        if not rows:
            return True
        newer = self._database.query(
            "SELECT 1 FROM trust_agents JOIN certificates ON certificates.serial = trust_agents.serial"
            " WHERE trust_agents.node = ? AND certificates.rowid > ?",
            (node, rows[0][0]),
        )
        return bool(newer)
