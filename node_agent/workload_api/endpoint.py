"""The Workload API's unix socket: accepts, finds out who calls, and keeps to the bounds.

Anybody may connect (mode 0666): who it is, is for the kernel to say and not for
file permissions.  So the socket has a directory of its own, which can be
mounted into pods without the operator's socket coming along.

What speaks HTTP/2 is imported in a thread when the first caller connects: it
costs 1.3 MB and 40 ms, which an agent that nobody asks does not need, and one
that is asked does not notice.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ca.spiffe import SpiffeId
from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.unix_socket import UnixListener
from node_agent.workload_api.budget import Budget
from node_agent.workload_api.caller import Caller, WorkloadOf
from node_agent.workload_api.callers import UNKNOWN, Callers
from node_agent.workload_api.changes import Changes
from node_agent.workload_api.process import PeerProcess, UnknownProcessError

if TYPE_CHECKING:
    from node_agent.workload_api.service import Service

_log = logging.getLogger("ringfence.workload_api")

_ACCEPT_RATE: Final = 200.0  # connections a second, of all pods together: about 4 % of a core
_ACCEPT_BURST: Final = 1000.0
_LOG_RATE: Final = 1.0  # lines a second about callers that were turned away
_LOG_BURST: Final = 20.0


class WorkloadApi:
    """Serves the Workload API until it is cancelled.  Use ``close`` at the end: it removes the socket."""

    def __init__(
        self,
        *,
        path: Path,
        identities: Identities,
        trust: TrustStore,
        workload_of: WorkloadOf,
        metrics: Metrics,
        utc_now: Callable[[], datetime],
    ) -> None:
        """Listen on ``path``; nobody is served before ``run``.

        Raises:
            AgentError: the path is taken, or can not be used.
        """
        self._path = path
        self._identities = identities
        self._trust = trust
        self._workload_of = workload_of
        self._utc_now = utc_now
        self._changes = Changes()
        self._callers = Callers()
        self._service: Service | None = None
        self._loading = trio.Lock()
        self._log_budget = Budget(now=0.0, rate=_LOG_RATE, burst=_LOG_BURST)
        self._unsaid = 0
        self._listener = UnixListener(path, mode=0o666, setting="[workload_api] socket")
        identities.on_rotated.append(self._rotated)
        trust.on_changed.append(self._changes.of_all)
        metrics.gauge(
            "ringfence_workload_api_connections",
            "Connections of local programs to the SPIFFE Workload API.",
            lambda: float(self._callers.connections),
        )
        metrics.counter(
            "ringfence_workload_api_connections_turned_away_total",
            "Connections to the SPIFFE Workload API that were closed because their workload had too many.",
            lambda: float(self._callers.turned_away),
        )
        metrics.counter(
            "ringfence_workload_api_calls_total",
            "Calls of the SPIFFE Workload API that ended, by method and gRPC status.",
            lambda: {} if self._service is None else self._service.statistics.calls,
            labels=("method", "status"),
        )

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._listener.close()

    def pods_changed(self) -> None:
        """Which pods there are has changed: look again whether each caller still is of one."""
        self._changes.of_all()

    async def run(self) -> None:
        """Accept until cancelled."""
        _log.info("the SPIFFE Workload API is served on unix://%s", self._path)
        budget = Budget(now=trio.current_time(), rate=_ACCEPT_RATE, burst=_ACCEPT_BURST)
        async with trio.open_nursery() as connections:
            while True:
                try:
                    accepted, _ = await self._listener.listener.socket.accept()
                except OSError as error:
                    _log.error("cannot accept on %s: %s", self._path, error.strerror)
                    await trio.sleep(0.1)
                    continue
                self._enter(connections, trio.SocketStream(accepted))
                await trio.sleep(budget.spend(1.0, now=trio.current_time()))

    def _enter(self, connections: trio.Nursery, stream: trio.SocketStream) -> None:
        """Find out who has connected, and serve him if he has not too many connections already."""
        try:
            process = PeerProcess.of(stream.socket)
        except UnknownProcessError as error:
            self._say("a caller was turned away: %s", error)
            stream.socket.close()
            return
        caller = Caller(process, workload_of=self._workload_of)
        group = self._callers.enter(caller.group or UNKNOWN, now=trio.current_time())
        if group is None:
            self._say("%s of %s was turned away: too many connections", process, caller.name)
            caller.close()
            stream.socket.close()
            return

        async def serve() -> None:
            try:
                await trio.sleep(group.budget.spend(0.0, now=trio.current_time()))
                service = await self._loaded()
                await service.serve(stream, caller, group)
            except Exception:
                _log.exception("a connection ended by an unexpected error")
            finally:
                self._callers.leave(group)
                caller.close()
                stream.socket.close()

        connections.start_soon(serve)

    async def _loaded(self) -> "Service":
        async with self._loading:
            if self._service is None:
                kind = await trio.to_thread.run_sync(_import_service)
                self._service = kind(
                    identities=self._identities,
                    trust=self._trust,
                    changes=self._changes,
                    denied=self._denied,
                    utc_now=self._utc_now,
                )
        return self._service

    def _rotated(self, identity: SpiffeId) -> None:
        self._changes.of(identity)
        if self._service is not None and self._identities.current(identity) is None:
            self._service.forget(identity)

    def _denied(self, caller: Caller) -> None:
        self._say(
            "%s is denied: it is not, or no longer, of a pod that is served here (%s)", caller.process, caller.name
        )

    def _say(self, text: str, *arguments: object) -> None:
        """A line in the log, unless there are too many of them: callers must not be able to fill it."""
        if not self._log_budget.try_spend(1.0, now=trio.current_time()):
            self._unsaid += 1
            return
        more, self._unsaid = self._unsaid, 0
        _log.warning(text + (" (and %d more lines like this)" if more else ""), *arguments, *((more,) if more else ()))


def _import_service() -> "type[Service]":
    from node_agent.workload_api.service import Service  # noqa: PLC0415 - see the module's docstring

    return Service
