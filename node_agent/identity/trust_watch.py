"""Follow the CA's trust: what it changes is in force here within seconds.

One connection to the CA stays open, with one request on it that the CA holds
until there is something to say.  What arrives is put in force step by step,
and acknowledged (by the next request) when the last step is done:

    the store (revoked SVIDs dropped, tunnels closed, connections cut)
    > new contexts under the new roots > written to the disk > acknowledged

A connection that ends is opened again after a pause that grows from up to a
second to half a minute, each drawn at random, so that a thousand agents do not
come back to a restarted CA in the same moment.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ca.client import CaClient
from ca.connection import CaConnection
from ca.errors import CaError, CaRefused
from ca.tls import KeyAndChain
from ca.trust import Trust
from node_agent.identity.identities import Identities
from node_agent.identity.trust import TrustStore

_log: Final = logging.getLogger("ringfence.identity")
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_SHORTEST_SHARE: Final = 0.1  # of a pause: the rest is drawn
_LOOK_FOR_CERTIFICATE_S: Final = 0.1  # an agent that joins must not serve for long without knowing who is revoked
_SAVE_AGAIN_S: Final = 2.0
_TOO_SOON_S: Final = 5.0  # an answer that says nothing new is held for longer
_AGAIN_S: Final = (1.0, 5.0)
_SILENT_S: Final = 60.0  # an authority that is restarted is nobody's worry


class TrustWatch:
    """The task that keeps ``trust`` as new as the CA's.

    ``save`` writes to the disk and raises OSError; it runs in a thread.
    """

    def __init__(
        self,
        *,
        ca: CaClient,
        own: Callable[[], KeyAndChain | None],
        trust: TrustStore,
        identities: Identities,
        save: Callable[[Trust], None],
        rng: random.Random,
    ) -> None:
        self._ca = ca
        self._own = own
        self._trust = trust
        self._identities = identities
        self._save = save
        self._rng = rng
        self._in_force = trust.trust if trust.version else None
        self.settled: Callable[[], Awaitable[None]] | None = None
        """Awaited before an acknowledgement: returns when other processes of the agent have what this one has."""
        self.error: str | None = None
        self._heard_at = trio.current_time()
        self._unsaved: str | None = None

    @property
    def acknowledged(self) -> int:
        """The version that is in force in every part of the agent; 0 if none of the CA's is yet."""
        return 0 if self._in_force is None else self._in_force.version

    def warnings(self) -> list[str]:
        """What does not stop a connection yet: for people."""
        found = []
        silent_s = trio.current_time() - self._heard_at
        if self.error is not None and self._unsaved is None and silent_s > _SILENT_S:
            found.append(f"revocations and new roots have not arrived for {silent_s:.0f} s: {self.error}")
        if self._unsaved is not None:
            found.append(self._unsaved)
        return found

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            own = self._own()
            if own is None:
                await trio.sleep(_LOOK_FOR_CERTIFICATE_S)
                continue
            began = trio.current_time()
            try:
                await self._follow(own)
                failures = 0
                continue
            except CaError as error:
                if trio.current_time() - began > _LONGEST_PAUSE_S:
                    failures = 0  # it has worked meanwhile
                self._note(error)
                wish_s = error.retry_after_s if isinstance(error, CaRefused) else 0.0
            longest_s = min(_FIRST_PAUSE_S * 2.0 ** min(failures, 16), _LONGEST_PAUSE_S)
            failures += 1
            await trio.sleep(max(wish_s, longest_s * self._rng.uniform(_SHORTEST_SHARE, 1.0)))

    async def _follow(self, own: KeyAndChain) -> None:
        """Ask on one connection until the node has another certificate; raises CaError."""
        connection = await self._ca.connect(own)
        try:
            while self._own() is own:
                await self._ask(connection)
        finally:
            await connection.close()

    async def _ask(self, connection: CaConnection) -> None:
        known = self._in_force
        asked_at = trio.current_time()
        trust = await self._ca.watch(
            connection,
            version=0 if known is None else known.version,
            digest=b"" if known is None else known.digest,
        )
        self.error = None
        self._heard_at = trio.current_time()
        if known is not None and trust.digest == known.digest:
            if self._heard_at - asked_at < _TOO_SOON_S:
                # It drains, or it sees a difference that we do not: a newer version may tell more than we can read.
                await trio.sleep(self._rng.uniform(*_AGAIN_S))
            return
        if trust.digest != self._trust.trust.digest:
            await self._put_in_force(trust)
        if self.settled is not None:
            await self.settled()
        try:
            await trio.to_thread.run_sync(self._save, trust)
        except OSError as error:
            # In force, but not acknowledged: after a restart we might not trust the CA that we were told to trust.
            text = f"the trust could not be stored: {error.strerror or error}"
            if text != self._unsaved:
                _log.error("%s", text)
            self.error = self._unsaved = text
            await trio.sleep(_SAVE_AGAIN_S)
            return
        self._in_force = trust
        self._unsaved = None

    async def _put_in_force(self, trust: Trust) -> None:
        if trust.version < self._trust.version:
            _log.warning(
                "the CA's trust went back from version %d to %d: it was restored from a backup? "
                "What was revoked since has to be revoked again",
                self._trust.version,
                trust.version,
            )
        roots_changed = self._trust.take(trust)
        _log.info(
            "trust version %d: %d trust domains, %d revocations",
            trust.version,
            len(trust.bundles),
            len(trust.revocations),
        )
        if roots_changed:
            await self._identities.adopt_roots()

    def _note(self, error: CaError) -> None:
        text = str(error)
        if text != self.error:
            _log.warning("changes of the trust do not arrive: %s", text)
        self.error = text
        if isinstance(error, CaRefused):
            self._identities.node_refused(error)
