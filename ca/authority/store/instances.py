"""Machines that have attested with a document of theirs: each does so once."""

from ca.authority.records import CertificateRecord, Instance, InstanceRecord
from ca.authority.store.database import Database, Transaction
from ca.authority.store.times import from_seconds, to_seconds


class Instances:
    """The table ``instances``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> list[InstanceRecord]:
        """Every machine that has attested, in that order."""
        rows = self._database.query("SELECT method, id, node, attested_at FROM instances ORDER BY rowid")
        return [
            InstanceRecord(instance=Instance(method=method, id=name), node=node, attested_at=from_seconds(at))
            for method, name, node, at in rows
        ]

    def forget(self, id: str) -> bool:
        """Let a machine attest once more; whether there was one of that id."""
        with self._database.transaction() as transaction:
            return transaction.execute("DELETE FROM instances WHERE id = ?", (id,)) > 0


def take_up(transaction: Transaction, instance: Instance, *, record: CertificateRecord) -> bool:
    """Use up the one attestation of a machine, in the transaction that journals what it buys; False: it is used."""
    inserted = transaction.execute(
        "INSERT INTO instances (method, id, node, attested_at, serial) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (method, id) DO NOTHING",
        (instance.method, instance.id, record.node, to_seconds(record.issued_at), record.serial_hex),
    )
    return inserted == 1
