"""One caller: a process, and the workload that it belongs to, looked up afresh whenever it matters."""

from typing import Final, Protocol

from node_agent.model import Workload
from node_agent.workload_api.process import PeerProcess


class WorkloadOf(Protocol):
    """How to tell which workload a process belongs to: by its network namespace today, by its cgroup where that is it.

    Returns None for a process of no workload that this agent serves, and
    whenever there is a doubt: nobody gets an identity by default.
    """

    def __call__(self, process: PeerProcess, /) -> Workload | None: ...


class Caller:
    """Owns the process until ``close``."""

    __slots__ = ("_first", "_workload_of", "process")

    def __init__(self, process: PeerProcess, *, workload_of: WorkloadOf) -> None:
        self.process: Final = process
        self._workload_of = workload_of
        self._first = workload_of(process)

    @property
    def group(self) -> str:
        """The uid of the workload that called; empty if it was none."""
        return "" if self._first is None else self._first.uid

    @property
    def name(self) -> str:
        """Of the workload, for logs."""
        return "no pod" if self._first is None else f"pod {self._first.name}"

    def workload(self) -> Workload | None:
        """The workload that it is now; None if it was none, has become another or none, has moved, or has ended.

        Who was one workload when it connected is never another on the same
        connection: a connection that is handed on would carry the identity along.
        """
        if self._first is None:
            return None
        now = self._workload_of(self.process)
        if now is None or now.uid != self._first.uid or now.identity != self._first.identity:
            return None
        return now

    def close(self) -> None:
        """Let go of the process."""
        self.process.close()
