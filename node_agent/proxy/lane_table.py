"""The connections that the kernel carries: found, recorded as any other, judged again, and cut.

    in the kernel's map --adopt--> live, with two records --its end is told--> records written
                  |                      | a change forbids it: SOCK_DESTROY, and its end is told
                  +--------------- its end is told: records made and written at once

``adopt`` judges what it finds, with the policies of now.  So whatever becomes
open while something is revoked is judged by one of the two: the gates, who ask
for all that are live, or the next ``adopt``.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from node_agent.capture.lane_end import LaneConnection, LaneEnd, LaneFate, RawEnd
from node_agent.capture.netns import NetworkNamespace
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import OriginalDestination, ServicePort, Workload
from node_agent.proxy.lane_likenesses import Likenesses
from node_agent.proxy.live import LiveConnection, LiveConnections
from node_agent.proxy.policy_gate import PolicyGate, cut_failure, cut_reason
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Registry
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.alike import Ending
from node_agent.telemetry.connection_record import ConnectionRecord

if TYPE_CHECKING:
    from node_agent.capture.lane import KernelLane

_log: Final = logging.getLogger("ringfence.lane")

_REASONS: Final = {
    LaneFate.COMPLETE: CloseReason.OK,
    LaneFate.CLIENT_RESET: CloseReason.DOWNSTREAM_RESET,
    LaneFate.SERVER_RESET: CloseReason.UPSTREAM_RESET,
    LaneFate.REFUSED: CloseReason.CONNECT_REFUSED,
    LaneFate.NO_ANSWER: CloseReason.CONNECT_TIMEOUT,
    LaneFate.GRANT_GONE: CloseReason.CONNECT_REFUSED,
    LaneFate.CUT: CloseReason.DOWNSTREAM_RESET,  # by somebody else than us: we would have written the reason before
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who may talk to whom on the lane, and as what."""

    source: Workload
    destination: Workload
    service: ServicePort | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Open:
    """One that is live here; ``ends`` are its entries in the table of live connections."""

    connection: LaneConnection
    outbound: ConnectionRecord
    inbound: ConnectionRecord
    ends: tuple[LiveConnection, ...] = ()
    is_cut: bool = False


class LaneTable:
    """Everything that is open on the lane.

    ``grant_of`` knows what a number means, if it was given by this agent;
    ``namespace_of`` the network namespace with a cookie, if we serve a pod in it.
    """

    def __init__(
        self,
        *,
        kernel: "KernelLane",
        access_log: AccessLog,
        live: LiveConnections,
        registry: Registry,
        policies: PolicyGate,
        trust: TrustGate,
        grant_of: Callable[[int], Grant | None],
        namespace_of: Callable[[int], NetworkNamespace | None],
        on_unreachable: Callable[[], None],
    ) -> None:
        """``on_unreachable`` is told when a connection was not taken by the program it was for."""
        self._kernel = kernel
        self._access_log = access_log
        self._live = live
        self._registry = registry
        self._policies = policies
        self._trust = trust
        self._grant_of = grant_of
        self._namespace_of = namespace_of
        self._on_unreachable = on_unreachable
        self._likenesses = Likenesses(note=self._note_alike, access_log=access_log, version=lambda: policies.version)
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    # -- live ones --------------------------------------------------------------------

    def adopt(self) -> None:
        """Make what the kernel has opened since the last time live, and cut what is not allowed.

        What belongs to a pod that we do not serve yet has to wait.
        """
        for connection in self._kernel.connections():
            known = self._open.get(connection.cookie)
            if known is not None:
                self._see(known, connection)
            elif self._namespace_of(connection.netns_cookie) is not None:
                self._adopt(connection)

    def _adopt(self, connection: LaneConnection) -> None:
        found = self._open[connection.cookie] = self._made(connection)
        source, destination = found.outbound.source, found.outbound.destination
        found.ends = tuple(
            LiveConnection(self._live, record, uid, end=lambda: self._cut(found))
            for record, uid in (
                (found.outbound, source.uid if source else ""),
                (found.inbound, destination.uid if destination else ""),
            )
        )
        self._live.on_the_lane.update(found.ends)
        self._see(found, connection)
        try:
            identities = [each.identity for each in (source, destination) if each is not None]
            self._trust.admit(found.outbound, *identities)
            self._trust.admit(found.inbound, *identities)
            self._policies.admit(found.inbound)
        except ConnectionFailure as failure:
            found.inbound.failed(failure)
            self._cut(found)

    def _see(self, known: _Open, connection: LaneConnection) -> None:
        if connection.established_at is not None and known.outbound.connect_ms is None:
            for record in (known.outbound, known.inbound):
                record.connect_ms = (connection.established_at - connection.began_at) * 1000
                record.opened()
        if known.is_cut:
            self._destroy(known)  # what was refused the last time

    def _cut(self, found: _Open) -> None:
        """One of its records says why."""
        found.is_cut = True
        _agree(found)
        self._destroy(found)

    def _destroy(self, found: _Open) -> None:
        namespace = self._namespace_of(found.connection.netns_cookie)
        if namespace is None:
            _log.warning("%s: its pod is not served here, and can not be cut yet", found.outbound.id)
            return
        try:
            self._kernel.cut(namespace, found.connection)
        except OSError as error:
            _log.error("%s could not be cut, trying again: %s", found.outbound.id, error.strerror)

    # -- ends -------------------------------------------------------------------------

    def ended(self, ends: Iterable[RawEnd]) -> None:
        """Write the records of connections that are over, in this order."""
        alike: list[Ending] = []
        self._likenesses.follow()
        for end in ends:
            ending = None if end.cookie in self._open else self._likenesses.ending(end)
            if ending is not None:
                alike.append(ending)
                continue
            if alike:
                self._access_log.end_alike(alike)
                alike = []
            self._ended(self._kernel.told(end))
        if alike:
            self._access_log.end_alike(alike)

    def _ended(self, end: LaneEnd) -> None:
        found = self._open.pop(end.connection.cookie, None)
        is_new = found is None
        if found is None:
            found = self._made(end.connection)
        self._live.on_the_lane.difference_update(found.ends)
        self._see(found, end.connection) if not found.is_cut else None
        reason, detail = self._reason(found, end, is_new=is_new)
        found.inbound.close_because(reason, detail)
        _agree(found)
        for record in (found.outbound, found.inbound):
            record.sent_bytes, record.received_bytes = end.sent_bytes, end.received_bytes
            self._access_log.end(record, ended_at=end.ended_at)
        if end.fate in (LaneFate.REFUSED, LaneFate.NO_ANSWER, LaneFate.GRANT_GONE):
            self._on_unreachable()

    def _reason(self, found: _Open, end: LaneEnd, *, is_new: bool) -> tuple[CloseReason, str]:
        denied = self._policies.look_back(found.inbound) if is_new else None
        if end.fate is LaneFate.GRANT_GONE:
            if denied is not None:
                found.inbound.failed(denied)
            return CloseReason.CONNECT_REFUSED, "what had allowed it changed while it connected"
        if end.fate is LaneFate.NO_ANSWER and end.connection.established_at is not None:
            return CloseReason.UPSTREAM_RESET, "the network gave up"
        return _REASONS[end.fate], ""

    # -- records ----------------------------------------------------------------------

    def _made(self, connection: LaneConnection) -> _Open:
        """Two live records, as the two agents of a proxied connection would have them."""
        outbound = self._access_log.unattended("outbound", began_at=connection.began_at)
        inbound = self._access_log.unattended("inbound", began_at=connection.began_at)
        self._note(outbound, inbound, connection)
        return _Open(connection=connection, outbound=outbound, inbound=inbound)

    def _note(self, outbound: ConnectionRecord, inbound: ConnectionRecord, connection: LaneConnection) -> None:
        grant = self._grant_of(connection.grant)
        if grant is not None:
            source: Workload | None = grant.source
            destination: Workload | None = grant.destination
            service = grant.service
        else:  # of an agent before us
            source = self._registry.workload_at(connection.client.ip)
            destination = self._registry.workload_at(connection.server.ip)
            service = self._registry.service_at(*connection.original)
        for record, asked_for in ((outbound, connection.original), (inbound, OriginalDestination(*connection.server))):
            record.attempts = 1
            record.note(
                source=source,
                source_address=connection.client,
                source_identity=source.identity if source else None,
                original_destination=asked_for,
                destination=destination,
                destination_identity=destination.identity if destination else None,
            )
        outbound.note(service=service, endpoint=connection.server)

    def _note_alike(self, outbound: ConnectionRecord, inbound: ConnectionRecord, end: RawEnd) -> bool:
        """Whether all that are like this one are told the same: not where policies count each of them."""
        if self._grant_of(end.grant) is None:
            return False
        self._note(outbound, inbound, self._kernel.told(end).connection)
        return self._policies.look_back_at_all(inbound)


def _agree(found: _Open) -> None:
    """Let both records say why, as if one agent had told the other."""
    if found.inbound.close_reason is None and found.outbound.close_reason is not None:
        found.inbound.close_because(found.outbound.close_reason, found.outbound.detail)
    reason = cut_reason(found.inbound)
    if found.outbound.close_reason is None and reason is not None:
        if found.inbound.close_reason is CloseReason.POLICY_DENIED:
            found.outbound.failed(cut_failure(reason))
        else:
            found.outbound.close_because(found.inbound.close_reason or CloseReason.OK, found.inbound.detail)
