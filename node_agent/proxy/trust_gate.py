"""Who may have a connection, by what is revoked and federated; and who may keep it.

A connection stands on certificates: the local workload's, and in a tunnel the
peer's.  The story writes them into the record, which is in the table of live
connections already, and then asks; a change of the trust asks again for all of
the table.  So whichever comes first, one of the two finds the other.

A local workload whose identity is revoked has no connections at all, plaintext
ones included: its identity does not enter those, but it is the workload that is
not trusted any more.
"""

import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Final

from ca.spiffe import SpiffeId
from node_agent.errors import ConnectionFailure
from node_agent.identity import PeerCertificate
from node_agent.identity.trust import Certificate, TrustStore
from node_agent.proxy.live import LiveConnections
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Tunnel, TunnelClient, TunnelKey

_NO_SERIAL: Final = 0  # certificates have positive ones: only the identity counts


class TrustGate:
    """Asks ``trust``, and enforces its changes on ``live`` connections and idle ``tunnels``."""

    def __init__(self, *, trust: TrustStore, live: LiveConnections) -> None:
        self._trust = trust
        self._live = live
        self._tunnels: TunnelClient | None = None
        trust.on_changed.append(self._enforce)

    def guard(self, tunnels: TunnelClient) -> None:
        """Close idle tunnels of these, too, when they are no longer to be trusted."""
        self._tunnels = tunnels

    def dialled(
        self, verify: Callable[[ssl.SSLSocket, datetime], PeerCertificate]
    ) -> Callable[[ssl.SSLSocket, datetime], PeerCertificate]:
        """Make ``verify`` refuse a destination that is revoked before anything is asked of it.

        A source that is revoked is refused at its OPEN instead, where the refusal can still be told to it.
        """

        def verified(tls: ssl.SSLSocket, at: datetime) -> PeerCertificate:
            peer = verify(tls, at)
            self._trust.require_trusted(peer.identity, peer.serial)
            return peer

        return verified

    def admit(self, record: ConnectionRecord, *identities: SpiffeId) -> None:
        """Raise ConnectionFailure if one of the workloads is not to have connections, whatever its certificate."""
        record.stands_on = tuple((identity, _NO_SERIAL) for identity in identities)
        self._require(record)

    def admit_tunnel(self, record: ConnectionRecord, own: SpiffeId, tunnel: Tunnel) -> None:
        """Raise ConnectionFailure if one end of a tunnel is revoked."""
        record.stands_on = _ends(own, tunnel)
        self._require(record)

    def admit_move(self, record: ConnectionRecord, own: SpiffeId, tunnel: Tunnel) -> None:
        """The same for a connection that is to go on in ``tunnel``; if it may not, it stands on what it stood on."""
        ends = _ends(own, tunnel)
        for identity, serial in ends:
            self._trust.require_trusted(identity, serial)
        record.stands_on = ends

    def admit_check(self, own: SpiffeId, tunnel: Tunnel) -> None:
        """The same for a health check, which is over at once: it has no record, and nobody has to cut it."""
        for identity, serial in _ends(own, tunnel):
            self._trust.require_trusted(identity, serial)

    def admit_check_of(self, *identities: SpiffeId) -> None:
        """The same before there is a tunnel."""
        for identity in identities:
            self._trust.require_trusted(identity, _NO_SERIAL)

    def _require(self, record: ConnectionRecord) -> None:
        for identity, serial in record.stands_on:
            self._trust.require_trusted(identity, serial)

    def _enforce(self) -> None:
        if self._tunnels is not None:
            self._tunnels.end_idle(self.is_unwanted)
        self._live.cut_where(self._why_cut)

    def is_unwanted(self, key: TunnelKey, tunnel: Tunnel) -> bool:
        """Whether an idle tunnel, or one that is coming back, is not to be used any more."""
        return self._why_not(_ends(key.source, tunnel)) is not None

    def _why_cut(self, record: ConnectionRecord) -> ConnectionFailure | None:
        return self._why_not(record.stands_on)

    def _why_not(self, ends: tuple[tuple[SpiffeId, int], ...]) -> ConnectionFailure | None:
        for identity, serial in ends:
            failure = self._trust.why_not(Certificate(identity=identity, serial=serial))
            if failure is not None:
                return failure
        return None


def _ends(own: SpiffeId, tunnel: Tunnel) -> tuple[tuple[SpiffeId, int], ...]:
    return (own, tunnel.own_serial), (tunnel.peer.identity, tunnel.peer.serial)
