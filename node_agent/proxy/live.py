"""The connections that are alive now, and the way to end one from outside.

A connection is registered *before* it is authorized, so that a change which
forbids it finds it in the table whichever comes first (as ztunnel does).
"""

from collections.abc import Callable, Collection, Set
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from ca.manifests.traffic import Timeouts
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import Workload
from node_agent.relay import Pair
from node_agent.telemetry.connection_record import ConnectionRecord

if TYPE_CHECKING:
    from node_agent.proxy.timeouts import Watch


@dataclass(slots=True, kw_only=True)
class Carried:
    """A connection whose bytes move, and how long it may go on; ``watch`` and ``look_at`` are the timekeeper's."""

    pair: Pair
    timeouts: Timeouts
    began_at: float
    watch: "Watch | None" = None
    look_at: float = 0.0


class LiveConnection:
    """The ``with`` block of one connection; leaving it takes the connection out of the table.

    ``carried`` is set by the story when the bytes begin to move, if there are times to be kept.
    One that no story serves (lane_table.py) is ended by ``end``, and is no block.
    """

    __slots__ = ("_end", "_record", "_scope", "_table", "carried", "workload_uid")

    def __init__(
        self,
        table: "LiveConnections",
        record: ConnectionRecord,
        workload_uid: str,
        end: Callable[[], None],
        scope: trio.CancelScope | None = None,
    ) -> None:
        """``end`` ends it; ``scope`` is entered and left with the block."""
        self._table = table
        self._record = record
        self._scope = scope
        self._end = end
        self.carried: Carried | None = None
        self.workload_uid = workload_uid

    @property
    def destination_uid(self) -> str | None:
        """Which workload serves it, as far as is known."""
        return None if self._record.destination is None else self._record.destination.uid

    def end_among(self, uids: Set[str]) -> Workload | None:
        """Which of these workloads opened or serves it, as far as is known."""
        for end in (self._record.source, self._record.destination):
            if end is not None and end.uid in uids:
                return end
        return None

    def cut_if(self, why: Callable[[ConnectionRecord], ConnectionFailure | None]) -> None:
        """End the connection if ``why`` finds a reason in its record."""
        failure = why(self._record)
        if failure is not None:
            self._record.failed(failure)
            self._end()

    def cut(self, reason: CloseReason, detail: str) -> None:
        """End the connection: the reason first, then the cancellation."""
        self._record.close_because(reason, detail)
        self._end()

    def __enter__(self) -> Self:
        self._table.connections.add(self)
        if self._scope is not None:
            self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._table.leave(self)
        self._end = _it_is_over  # the scope may be another connection's from now on
        return self._scope is not None and bool(self._scope.__exit__(kind, error, trace))


def _it_is_over() -> None:
    pass


class LiveConnections:
    """All live connections of the agent; one trio thread, no locks.

    ``on_the_lane`` are those that the kernel carries: what forbids them ends them
    too, but nobody waits for them, and they outlive the agent.
    """

    def __init__(self) -> None:
        self.connections: set[LiveConnection] = set()
        self.on_the_lane: set[LiveConnection] = set()
        self._none = trio.Event()

    def track(
        self, record: ConnectionRecord, workload_uid: str, around: trio.CancelScope | None = None
    ) -> LiveConnection:
        """Return the block that a connection of the local workload ``workload_uid`` lives in.

        The block absorbs the cancellation that ends it, unless it has a scope ``around`` it that does.
        """
        if around is not None:
            return LiveConnection(self, record, workload_uid, around.cancel)
        scope = trio.CancelScope()
        return LiveConnection(self, record, workload_uid, scope.cancel, scope)

    @property
    def everyone(self) -> list[LiveConnection]:
        """Every live connection, whoever carries it."""
        return [*self.connections, *self.on_the_lane]

    def leave(self, connection: LiveConnection) -> None:
        """Called by the block's end."""
        self.connections.discard(connection)
        if not self.connections:
            self._none.set()
            self._none = trio.Event()

    async def wait_until_none(self) -> None:
        """Return when no connection is alive."""
        while self.connections:
            await self._none.wait()

    def cut_workload(self, workload_uid: str, reason: CloseReason, detail: str) -> None:
        """Cut every connection of one local workload."""
        for connection in [live for live in self.everyone if live.workload_uid == workload_uid]:
            connection.cut(reason, detail)

    def cut_removed(self, workloads: Collection[Workload]) -> None:
        """Cut every connection from or to workloads that are gone, wherever they were.

        Their own agent does it too, if it is still there and the link to it is.
        """
        uids = {workload.uid for workload in workloads}
        for connection in self.everyone if uids else ():
            end = connection.end_among(uids)
            if end is not None:
                connection.cut(CloseReason.WORKLOAD_REMOVED, f"{end.name} was removed")

    def cut_where(self, why: Callable[[ConnectionRecord], ConnectionFailure | None]) -> None:
        """Cut every connection for which ``why`` has a reason."""
        for connection in self.everyone:
            connection.cut_if(why)

    def cut_all(self, reason: CloseReason, detail: str) -> None:
        for connection in list(self.connections):
            connection.cut(reason, detail)
