"""Who may have a connection, by AuthorizationPolicy; and who may keep it.

The destination's agent decides, on the identity that was proven to it, and cuts
what is allowed no longer; the source's hears of it (``foresight`` says what it
need not ask for).

The story enters a connection into the table of live ones, notes who it is, and
then asks.  A change of what decides asks again for all of the table: at once
for a few, in slices of ``_SLICE_S`` for many, so that the bytes of the others
go on.  So whichever comes first, one of the two finds the other; and nothing is
awaited between the answer and its entry in the record.

Fails closed: without policies yet, and when judging raises, nothing is allowed.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import trio

from node_agent.errors import CloseReason, ConnectionFailure, PolicyDenied
from node_agent.frames import CutReason, Denied
from node_agent.model import MtlsMode, OriginalDestination, Workload
from node_agent.policy import Decision, PolicyEngine, Request
from node_agent.proxy.live import LiveConnection, LiveConnections
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.registry import Changes, Registry
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Tunnel

_log: Final = logging.getLogger("ringfence.policy")

_AT_ONCE: Final = 100  # about a millisecond
_SLICE_S: Final = 0.002
_JUDGED_A_LOOK: Final = 16  # between two looks at the clock


class PolicyGate:
    """Asks ``engine``, and enforces its changes on ``live`` connections.

    ``clock`` is monotonic seconds that go on while code runs.
    """

    def __init__(
        self,
        *,
        engine: PolicyEngine,
        registry: Registry,
        live: LiveConnections,
        counts: PolicyCounts,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._live = live
        self._counts = counts
        self._clock = clock
        self._version = engine.version
        self._pending: OrderedDict[LiveConnection, None] = OrderedDict()
        self._has_pending = trio.Event()

    @property
    def version(self) -> tuple[int, int]:
        """Another one after whatever may change what is said to a connection."""
        return self._registry.revision, self._engine.version

    # -- new ones -------------------------------------------------------------------

    def admit(self, record: ConnectionRecord) -> None:
        """Raise ConnectionFailure if an inbound connection is not allowed; what ``record`` says of it is judged.

        From now on it is judged again at each change.
        """
        record.is_judged = True
        self._require(record)

    def foresee(self, record: ConnectionRecord) -> None:
        """Raise PolicyDenied if the destination would refuse an outbound connection, as far as is known here."""
        self._require(record)

    def allows(self, request: Request) -> bool:
        """Whether a connection would be let in; nobody asks for one: nothing is noted or counted."""
        if self._registry.mtls_mode(request.destination, request.port) is MtlsMode.STRICT and (
            request.source_identity is None
        ):
            return False
        try:
            return self._decide(request).allowed
        except PolicyDenied:
            return False

    def look_back(self, record: ConnectionRecord) -> ConnectionFailure | None:
        """Note in the record of a connection that is over already what the policies say to it, and return that."""
        return self._why_not(record)

    def look_back_at_all(self, record: ConnectionRecord) -> bool:
        """The same for all connections that are like this one; False, and nothing noted, where each is counted."""
        try:
            decision = self._decide(self._request(record))
        except PolicyDenied:
            return False
        if decision.audited or decision.would_deny is not None:
            return False
        self._note(record, decision)
        return True

    def admit_check(self, destination: Workload, tunnel: Tunnel, to: OriginalDestination, source_ip: str) -> None:
        """Raise PolicyDenied if a health check is not allowed to ask; it says no more than that.

        It is no connection: not recorded, not counted.
        """
        request = Request(
            source_identity=tunnel.peer.identity,
            source_ip=source_ip,
            destination=self._now(destination),
            port=to.port,
            destination_ip=to.ip,
        )
        try:
            allowed = self._decide(request).allowed
        except PolicyDenied:
            allowed = False
        if not allowed:
            raise PolicyDenied("", policy=None)

    def _require(self, record: ConnectionRecord) -> None:
        failure = self._why_not(record)
        if failure is not None:
            self._counts.denied(failure)
            raise failure

    # -- live ones ------------------------------------------------------------------

    def follow(self, changes: Changes) -> None:
        """The registry, and the engine with it, has taken a step: judge again whom it may concern."""
        if changes.mtls_changed or self._engine.version != self._version:
            self._version = self._engine.version
            self._judge_again(self._live.everyone)
        elif changes.workloads_changed and (everyone := self._live.everyone):
            uids = {workload.uid for workload in changes.workloads_changed}
            self._judge_again([each for each in everyone if each.destination_uid in uids])

    async def run(self) -> None:
        """Judge what is pending, until cancelled."""
        while True:
            await self._has_pending.wait()
            until = self._clock() + _SLICE_S
            while self._pending and self._clock() < until:
                for _ in range(min(_JUDGED_A_LOOK, len(self._pending))):
                    connection, _ = self._pending.popitem(last=False)
                    self._judge_live(connection)
            if not self._pending:
                self._has_pending = trio.Event()
            await trio.lowlevel.checkpoint()

    def _judge_again(self, connections: Iterable[LiveConnection]) -> None:
        # Who is pending already keeps its place, or changes in quick succession would never come to the last ones.
        self._pending.update(dict.fromkeys(connections))
        if len(self._pending) > _AT_ONCE:
            self._has_pending.set()
            return
        while self._pending:
            connection, _ = self._pending.popitem(last=False)
            self._judge_live(connection)

    def _judge_live(self, connection: LiveConnection) -> None:
        if connection in self._live.connections or connection in self._live.on_the_lane:
            connection.cut_if(self._why_cut)

    def _why_cut(self, record: ConnectionRecord) -> ConnectionFailure | None:
        if not record.is_judged or record.close_reason is not None:
            return None  # its story is going to ask, or it is being cut
        failure = self._why_not(record)
        if failure is not None:
            self._counts.denied(failure)
        return failure

    # -- judging --------------------------------------------------------------------

    def _why_not(self, record: ConnectionRecord) -> ConnectionFailure | None:
        try:
            request = self._request(record)
            if request.source_identity is None and self._is_strict(request):
                return ConnectionFailure(
                    CloseReason.PLAINTEXT_REFUSED,
                    f"{request.destination.name} takes only mutual TLS on port {request.port} "
                    "(PeerAuthentication STRICT)",
                )
            decision = self._decide(request)
        except PolicyDenied as failure:
            return failure
        self._note(record, decision)
        if not decision.allowed:
            return PolicyDenied(decision.detail, policy=_text(decision))
        if request.source_identity is None and decision.policy is not None:
            return self._why_not_believed(request)
        return None

    def _is_strict(self, request: Request) -> bool:
        return self._registry.mtls_mode(request.destination, request.port) is MtlsMode.STRICT

    def _why_not_believed(self, request: Request) -> PolicyDenied | None:
        """An ALLOW policy may have looked at the address of a plaintext connection: is it whose it seems to be?

        What an enrolled workload sends to an enrolled one comes through a tunnel, without exception.
        """
        owner = self._registry.workload_at(request.source_ip)
        if owner is None or not owner.enrolled:
            return None
        return PolicyDenied(
            f"plaintext from {request.source_ip}, the address of {owner.name}, which would come through a tunnel: "
            "no ALLOW policy holds for it",
            policy=None,
        )

    def _decide(self, request: Request) -> Decision:
        if not self._registry.revision:
            raise PolicyDenied("the policies are not loaded yet", policy=None)
        try:
            return self._engine.decide(request)
        except Exception as error:
            _log.exception("a connection to %s could not be judged", request.destination.name)
            raise PolicyDenied(
                f"the policies could not be judged ({type(error).__name__}); the agent's log says more", policy=None
            ) from error

    def _request(self, record: ConnectionRecord) -> Request:
        """What a record says, as its destination sees it."""
        to = record.original_destination if record.direction == "inbound" else record.endpoint
        if to is None or record.destination is None or record.source_address is None:
            raise PolicyDenied("it is not known who talks to whom", policy=None)
        return Request(
            source_identity=record.source_identity,
            source_ip=record.source_address.ip,
            destination=self._now(record.destination),
            port=to.port,
            destination_ip=to.ip,
        )

    def _now(self, workload: Workload) -> Workload:
        """The workload with the labels that it has now."""
        known = self._registry.workload_named(workload.name)
        return known if known is not None and known.uid == workload.uid else workload

    def _note(self, record: ConnectionRecord, decision: Decision) -> None:
        """Write into the record what is not the verdict; a policy that has its say again says nothing new."""
        if decision.allowed:
            record.policy = _text(decision)
        if decision.audited and record.audit is None:
            names = list(dict.fromkeys(str(each.policy) for each in decision.audited))
            record.audit = ", ".join(names)
            self._counts.audited(names)
        if decision.would_deny is not None and record.dry_run is None:
            record.dry_run = f"denied by {decision.would_deny.policy}"
            self._counts.would_deny(str(decision.would_deny.policy))
        elif decision.would_allow is not None and record.dry_run is None:
            record.dry_run = f"allowed by {decision.would_allow.policy}"


def cut_reason(record: ConnectionRecord) -> CutReason | None:
    """Why a connection is cut, as the other agent is told."""
    return Denied(policy=record.policy) if record.close_reason is CloseReason.POLICY_DENIED else record.close_reason


def cut_failure(reason: CutReason) -> ConnectionFailure:
    """Why the other agent has cut a connection."""
    if isinstance(reason, Denied):
        by = "no ALLOW policy matches any more" if reason.policy is None else f"denied by policy {reason.policy}"
        return PolicyDenied(f"cut by the destination's agent: {by}", policy=reason.policy)
    return ConnectionFailure(reason)


def _text(decision: Decision) -> str | None:
    return None if decision.policy is None else str(decision.policy)
