"""The profile, the stacks and the memory of one process, as plain data."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node_agent.telemetry.debugging.profiler import Profiler


class ProcessDebugging:
    """Imports what it needs when it is asked: an agent that nobody looks into has nothing of it in memory."""

    def __init__(self) -> None:
        self._profiler: Profiler | None = None

    def start_profile(self, seconds: float) -> None:
        """Begin a profile; raises ValueError, AlreadyRunning (``profiler``)."""
        if self._profiler is None:
            from node_agent.telemetry.debugging.profiler import Profiler  # noqa: PLC0415

            self._profiler = Profiler()
        self._profiler.start(seconds)

    def profile(self) -> dict[str, object]:
        """The last profile, or as much of it as there is."""
        nothing: dict[str, object] = {"running": False, "seconds": 0.0, "samples": 0, "idle": {}, "stacks": {}}
        return {"pid": os.getpid(), **(nothing if self._profiler is None else self._profiler.describe())}

    def stacks(self) -> dict[str, object]:
        """Tasks and threads; called from trio's thread."""
        from node_agent.telemetry.debugging import stacks  # noqa: PLC0415

        return {"pid": os.getpid(), "tasks": stacks.task_lines(), "threads": stacks.thread_lines()}

    def memory(self) -> dict[str, object]:
        """See ``memory``."""
        from node_agent.telemetry.debugging import memory  # noqa: PLC0415

        return {"pid": os.getpid(), **memory.describe()}
