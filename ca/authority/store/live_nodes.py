"""Which nodes are alive: those that hold a node certificate which has not expired and is not revoked."""

from datetime import datetime
from typing import Final

from ca.authority.store.database import Database
from ca.authority.store.times import from_seconds, to_seconds
from ca.spiffe import SpiffeId

# One step of the index a node, instead of a look at every certificate that was ever issued.
_EVERY_NODE: Final = """
WITH RECURSIVE known (node) AS (
    SELECT min(node) FROM certificates
    UNION ALL
    SELECT (SELECT min(node) FROM certificates WHERE node > known.node) FROM known WHERE known.node IS NOT NULL
) SELECT node FROM known WHERE node != ''
"""
# An agent uses the certificate that it got last, whatever others still run.
_LATEST: Final = (
    "SELECT not_after, EXISTS (SELECT 1 FROM revoked_certificates WHERE serial = certificates.serial)"
    " FROM certificates WHERE identity = ? ORDER BY issued_at DESC, not_after DESC LIMIT 1"
)


def live_nodes(database: Database, *, trust_domain: str, at: datetime) -> dict[str, datetime]:
    """Every live node, and when its node certificate ends.

    Raises:
        StoreError: the database can not be used now.
    """
    found = {}
    for (node,) in database.query(_EVERY_NODE):
        rows = database.query(_LATEST, (str(SpiffeId.node(trust_domain, node)),))
        if rows and rows[0][0] > to_seconds(at) and not rows[0][1]:
            found[node] = from_seconds(rows[0][0])
    return found
