"""The workers as the operator's commands, the probes and Prometheus see them: as one agent.

The HTTP servers call ``prepare`` with the path of a request; it asks the workers
for what the handler, which can not wait, is going to show.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import trio

from node_agent.balance.loads import EndpointLoad
from node_agent.model import Endpoint
from node_agent.telemetry.metrics import FamilyReading, Metrics
from node_agent.workers.figures import OPEN, TOTAL, TUNNELS_BUSY, TUNNELS_IDLE
from node_agent.workers.group import Workers
from node_agent.workers.messages import Topic

_SIGHT: Final = (Topic.CONNECTIONS, Topic.RECENT, Topic.LOADS, Topic.METRICS, Topic.COUNTS)
_DEBUGGING: Final[Mapping[str, Topic]] = {
    "/debug/profile": Topic.PROFILE,
    "/debug/stacks": Topic.STACKS,
    "/debug/memory": Topic.MEMORY,
}
_TOPICS: Final[Mapping[str, tuple[Topic, ...]]] = {
    "/status": (Topic.COUNTS,),
    "/connections": (Topic.CONNECTIONS,),
    "/endpoints": (Topic.LOADS,),
    "/explain": (Topic.LOADS,),
    "/explain/record": (Topic.LOADS, Topic.CONNECTIONS, Topic.ARCHIVE),
    "/policies": (Topic.METRICS,),
    "/metrics": (Topic.METRICS,),
    "/mesh": _SIGHT,
    "/sight": _SIGHT,
    "/traffic": (Topic.METRICS, Topic.LOADS),
    "/recent": (Topic.RECENT,),
    **{path: (topic,) for path, topic in _DEBUGGING.items()},
}
_MOST_ROUNDS: Final = 5


class WorkersView:
    """What ``Report`` and the metrics ask; the answers are those of the last ``prepare``."""

    def __init__(self, workers: Workers, *, metrics: Metrics, revision: Callable[[], int]) -> None:
        """``metrics`` are the parent's own; ``revision`` is its registry's."""
        self._workers = workers
        self._figures = workers.figures
        self._metrics = metrics
        self._revision = revision

    async def prepare(self, path: str) -> None:
        """Ask the workers for what ``path`` shows.

        An answer comes after all that was sent before: who reads a revision in the
        status may rely on every worker having it.
        """
        for topic in _TOPICS.get(path, ()):
            if topic is Topic.METRICS:
                for _ in self._metrics.steps():
                    await trio.lowlevel.checkpoint()
            await self._refresh(topic)

    async def _refresh(self, topic: Topic) -> None:
        for _ in range(_MOST_ROUNDS):
            revision = self._revision()
            await self._workers.refresh(topic)
            if revision == self._revision() or topic is not Topic.COUNTS:
                return

    @property
    def open_connections(self) -> int:
        return int(self._figures.count(OPEN))

    @property
    def total_connections(self) -> int:
        return int(self._figures.count(TOTAL))

    @property
    def idle_count(self) -> int:
        return int(self._figures.count(TUNNELS_IDLE))

    @property
    def busy_count(self) -> int:
        return int(self._figures.count(TUNNELS_BUSY))

    def problems(self) -> list[str]:
        """What operators should know of the workers."""
        return self._figures.problems()

    def live(self) -> Iterator[Mapping[str, object]]:
        """The rows of ``ringfence connections``, each with its worker."""
        return iter(self._figures.connections())

    def recent(self) -> Iterator[Mapping[str, object]]:
        """The access records of the connections that ended last, newest first."""
        return iter(self._figures.recent())

    def archive(self) -> Iterator[bytes]:
        """The access records of some thousand connections that ended, for ``archive.find_record``."""
        return iter(self._figures.take_archive())

    def families(self) -> Iterator[FamilyReading]:
        """The metrics of all processes, added up, as numbers."""
        return self._figures.families(self._metrics.read())

    def debugging(self, path: str) -> list[dict[str, object]]:
        """What the workers answer to a path of ``telemetry.debugging.routes``."""
        return self._figures.debugging(_DEBUGGING[path])

    def load_of(self, endpoint: Endpoint, _now: float) -> EndpointLoad:
        """What all balancers together know of an endpoint."""
        return self._figures.load(*endpoint.key)
