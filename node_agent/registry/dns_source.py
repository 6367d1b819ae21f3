"""The edge: the names of places outside, resolved and kept up to date, become updates of the registry.

When to ask what is decided in dns_names.py; the questions are asked in the
network namespace of the node.  Nothing that a server says, or does not say, ends
the source: what can not be resolved is in ``problems``.
"""

import importlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import trio

from ca.manifests import ObjectKey
from node_agent.config import HostPort
from node_agent.registry.changes import ResolvedName, Update
from node_agent.registry.dns_names import DnsNames, Question

_AT_A_TIME: Final = 16
_FIRST_ANSWERS_S: Final = 2.0  # that a starting agent waits, so that the first connections find their services


class DnsSource:
    """Resolves what is wanted, for as long as ``run`` runs.

    Args:
        servers: to ask; none for those of /etc/resolv.conf.
        draw: numbers of [0, 1).
        on_update: gets every change; must not block.
    """

    def __init__(
        self, *, servers: Sequence[HostPort], draw: Callable[[], float], on_update: Callable[[Update], None]
    ) -> None:
        self._servers = servers
        self._names = DnsNames(draw=draw)
        self._on_update = on_update
        self._published: dict[str, ResolvedName] = {}
        self._running = 0
        self._woken = trio.Event()
        self._door: Any = None

    def want(self, names: Collection[str]) -> None:
        """From now on exactly these names are resolved; may be called before ``run``."""
        gone = self._names.want(names, trio.current_time())
        known = [name for name in gone if self._published.pop(name, None) is not None]
        if known:
            self._on_update(Update(deletes=tuple(ObjectKey("ResolvedName", "", name) for name in known)))
        self._woken.set()

    def objects(self) -> Iterator[ResolvedName]:
        """All that was given to ``on_update`` and is in force."""
        return iter(list(self._published.values()))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Names that can not be resolved, and why."""
        return self._names.problems()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resolve until cancelled; started when every name had its first chance, or after two seconds."""
        started_at = trio.current_time()
        is_started = False
        async with trio.open_nursery() as questions:
            while True:
                self._woken = trio.Event()
                now = trio.current_time()
                wait_until = math.inf
                if not is_started:
                    wait_until = started_at + _FIRST_ANSWERS_S
                    if not self._names.is_pending() or now >= wait_until:
                        is_started = True
                        task_status.started()
                        wait_until = math.inf
                for question in self._names.due(now, _AT_A_TIME - self._running):
                    self._running += 1
                    questions.start_soon(self._ask, question)
                if self._running < _AT_A_TIME:
                    wait_until = min(wait_until, self._names.next_at())
                with trio.move_on_at(wait_until):
                    await self._woken.wait()

    async def _ask(self, question: Question) -> None:
        try:
            if self._door is None:
                self._door = await trio.to_thread.run_sync(importlib.import_module, "node_agent.registry.dns_lookup")
            try:
                answer = await self._door.lookup(question, self._servers)
            except self._door.LookupFailedError as error:
                self._names.failed(question, str(error), trio.current_time())
            else:
                self._names.answered(question, answer.addresses, answer.ttl_s, trio.current_time())
        finally:
            self._running -= 1
            self._woken.set()
        self._publish(question.name)

    def _publish(self, name: str) -> None:
        resolved = self._names.resolved(name)
        if resolved is not None and resolved != self._published.get(name, ResolvedName(name=name)):
            self._published[name] = resolved
            self._on_update(Update(upserts=(resolved,)))
