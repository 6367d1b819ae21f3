"""Changes of the trust reach every agent within seconds: the held requests, and what wakes them.

Theory of operation.  Commands (``ringfence ca revoke``) and other replicas
change the database, and count a version there.  ``run`` looks at that number
about once a second; when it has changed, everything that depends on it is
loaded again, in the worker's thread, and then the agents whose ``WatchTrust``
is held here are answered.  What an agent says it has in force is remembered,
and written with that of all others once a second.

An agent may ask a replica that has not looked yet; one that says a higher
version than ours makes us look first, so that it is not told an older trust.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import trio

from ca.authority.errors import AuthorityError, Refusal, StoreError
from ca.authority.logs import log
from ca.authority.revocation import Revoked
from ca.authority.store.trust import AgentRecord
from ca.messages import RefusalCode, WatchTrust
from ca.spiffe import SpiffeId
from ca.trust import Trust

POLL_S: Final = 1.0
HOLD_S: Final = 25.0  # shorter than an agent's patience, and than what middleboxes call idle
_SEEN_AGAIN_S: Final = 60.0  # an agent that says the same is written down this often
_TIDY_S: Final = 60.0  # between looks for revocations that name only expired certificates


class TrustFeed:
    """Holds the trust of now.

    All callables that are given block, and run in ``limiter``'s thread:
    ``version`` reads the count, ``load`` everything (it is called with every
    change and may do more, such as loading the hierarchy again), ``save``
    writes acknowledgements, ``tidy`` is called about once a minute.
    """

    def __init__(
        self,
        *,
        version: Callable[[], int],
        load: Callable[[], tuple[Trust, Revoked]],
        save: Callable[[list[AgentRecord]], None],
        tidy: Callable[[], None],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._read_version = version
        self._load = load
        self._save = save
        self._tidy = tidy
        self._limiter = limiter
        self._trust: Trust | None = None
        self._digest = b""
        self._revoked: Revoked | None = None
        self._changed = trio.Event()
        self._looking: trio.Event | None = None
        self._unsaved: dict[str, AgentRecord] = {}
        self._saved: dict[str, AgentRecord] = {}
        self._tidied_at = trio.current_time()
        self._failing = False
        self.on_changed: list[Callable[[Trust], None]] = []

    @property
    def trust(self) -> Trust:
        """The trust as of the last look; ``look`` has been called."""
        assert self._trust is not None, "look() has been called"
        return self._trust

    async def run(self) -> None:
        """Look about once a second, for ever."""
        while True:
            await trio.sleep(POLL_S)
            try:
                await self.look()
                await self._write_down()
                self._failing = False
            except (StoreError, AuthorityError, Refusal) as exc:
                # What was loaded last stays in force; it is tried again in a second.
                if not self._failing:
                    log("trust_not_loaded", level=logging.ERROR, why=str(exc))
                self._failing = True

    async def look(self) -> None:
        """Load everything if the version has changed; those who call meanwhile share the look.

        Raises:
            StoreError: the database can not be asked; what was loaded last stays in force.
        """
        if self._looking is not None:
            await self._looking.wait()
            return
        self._looking = trio.Event()
        try:
            found = await trio.to_thread.run_sync(self._load_if_changed, limiter=self._limiter)
        finally:
            self._looking.set()
            self._looking = None
        if found is not None:
            self._take(*found)

    async def watch(self, request: WatchTrust, node: SpiffeId, serial: int, *, address: str) -> None:
        """Return when ``trust`` is another than the agent's, or after ``HOLD_S``.

        Raises:
            Refusal: the node's certificate is revoked.
        """
        if request.version > self.trust.version:
            try:
                await self.look()
            except StoreError as exc:
                text = "the authority can not read its database"
                raise Refusal(RefusalCode.UNAVAILABLE, text, retry_after_s=5.0) from exc
        if self._revoked is not None:
            self._revoked.require_certificate(node, serial)
        assert node.node_name is not None
        self._heard(
            AgentRecord(node=node.node_name, version=request.version, seen_at=_now(), address=address, serial=serial)
        )
        with trio.move_on_after(HOLD_S):
            while self._is_in_force(request):
                await self._changed.wait()

    def _is_in_force(self, request: WatchTrust) -> bool:
        same = request.version == self.trust.version
        return same and (not request.digest or request.digest == self._digest)

    def _load_if_changed(self) -> tuple[Trust, Revoked] | None:
        if self._trust is not None and self._read_version() == self._trust.version:
            return None
        return self._load()

    def _take(self, trust: Trust, revoked: Revoked) -> None:
        first = self._trust is None
        self._trust, self._digest, self._revoked = trust, trust.digest, revoked
        self._changed.set()
        self._changed = trio.Event()
        if not first:
            log("trust_changed", version=trust.version, revocations=len(trust.revocations))
        for call in self.on_changed:
            call(trust)

    def _heard(self, agent: AgentRecord) -> None:
        saved = self._saved.get(agent.node)
        if (
            saved is None
            or (saved.version, saved.address, saved.serial) != (agent.version, agent.address, agent.serial)
            or (agent.seen_at - saved.seen_at).total_seconds() >= _SEEN_AGAIN_S
        ):
            self._unsaved[agent.node] = agent

    async def _write_down(self) -> None:
        agents = list(self._unsaved.values())
        if agents:
            self._unsaved = {}
            try:
                await trio.to_thread.run_sync(self._save, agents, limiter=self._limiter)
            except BaseException:
                self._unsaved = {agent.node: agent for agent in agents} | self._unsaved
                raise
            self._saved.update({agent.node: agent for agent in agents})
        if trio.current_time() - self._tidied_at >= _TIDY_S:
            self._tidied_at = trio.current_time()
            await trio.to_thread.run_sync(self._tidy, limiter=self._limiter)


def _now() -> datetime:
    return datetime.now(UTC)
