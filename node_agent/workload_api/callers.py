"""Who has how much of the Workload API: bounds for each workload, so that none takes what is another's.

``now`` is monotonic seconds.  A group is the connections of one
workload, or of all processes that belong to none: they get an answer (no), but
few of them at a time.
"""

from typing import Final

import trio

from node_agent.workload_api.budget import CONNECTION_COST, Budget

MAX_CONNECTIONS: Final = 1024  # about 60 KiB each when somebody fills them
MAX_CONNECTIONS_A_WORKLOAD: Final = 32
MAX_UNKNOWN_CONNECTIONS: Final = 16
MAX_CALLS_A_WORKLOAD: Final = 256  # streams that are open, nearly all of them waiting
UNKNOWN: Final = ""
_MAX_IDLE_GROUPS: Final = 1024


class Group:
    """The connections of one workload (``key`` is its uid), or of unknown processes.

    Who reads holds ``turn`` meanwhile, so that the budget is that of all of them together.
    """

    __slots__ = ("budget", "calls", "connections", "key", "turn")

    def __init__(self, key: str, *, now: float) -> None:
        self.key = key
        self.budget = Budget(now=now)
        self.connections = 0
        self.calls = 0
        self.turn = trio.Lock()

    @property
    def may_call(self) -> bool:
        """Whether one more call may begin."""
        return self.calls < MAX_CALLS_A_WORKLOAD


class Callers:
    """Every group that has a connection, or had one so lately that it still has to be paid for."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self.connections = 0
        self.turned_away = 0

    def enter(self, key: str, *, now: float) -> Group | None:
        """Count one more connection of a group; None if it has too many, and the connection is to be closed."""
        group = self._groups.get(key)
        if group is None:
            self._forget_idle(now)
            group = self._groups[key] = Group(key, now=now)
        most = MAX_UNKNOWN_CONNECTIONS if key == UNKNOWN else MAX_CONNECTIONS_A_WORKLOAD
        group.budget.spend(CONNECTION_COST, now=now)
        if group.connections >= most or self.connections >= MAX_CONNECTIONS:
            self.turned_away += 1
            return None
        group.connections += 1
        self.connections += 1
        return group

    def leave(self, group: Group) -> None:
        """A connection that ``enter`` counted has ended."""
        group.connections -= 1
        self.connections -= 1

    def _forget_idle(self, now: float) -> None:
        if len(self._groups) < _MAX_IDLE_GROUPS:
            return
        for key, group in list(self._groups.items()):
            if group.connections == 0 and group.budget.is_full(now=now):
                del self._groups[key]
