"""The server's part in rotation: does what is due and needs nobody, and says what needs an operator.

Theory of operation.  ``catch_up`` asks ``rotation.next_step`` until nothing is
due, and does each step in a transaction of its own (``succession.py``).  Of
several replicas the leader does it; all of them notice, because each step
counts a version of the trust, and ``reload`` then lets the signer go on with
what the store says.  A reload that fails leaves the old hierarchy in force, and
is tried again with every look.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from ca.authority import hierarchy, rotation
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.logs import log
from ca.authority.rotation import Activate, Prepare, Retire, SigningKey
from ca.authority.signer import Signer
from ca.authority.store import Store
from ca.authority.succession import Overtaken, Succession

_REMIND: Final = timedelta(hours=1)
_MOST_STEPS: Final = 8  # a rotation has four; more in one look is a bug, and the next look goes on
_DEFAULT_LIFETIME: Final = timedelta(days=1)  # of an intermediate that could not be read


class Caretaker:
    """Looks after one hierarchy, and keeps ``signer`` signing with it."""

    def __init__(
        self,
        *,
        config: AuthorityConfig,
        store: Store,
        passphrase: bytes,
        signer: Signer,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._store = store
        self._passphrase = passphrase
        self._signer = signer
        self._utc_now = utc_now
        self._succession = Succession(config=config, store=store, passphrase=passphrase)
        self._reminded: dict[str, datetime] = {}

    async def run(self, *, limiter: trio.CapacityLimiter, looked: Callable[[], None]) -> None:
        """Look again and again, in the thread of ``limiter``, until cancelled; ``looked`` is called after each look."""
        while True:
            pause_s = await trio.to_thread.run_sync(self.look, limiter=limiter)
            looked()
            await trio.sleep(pause_s)

    def look(self) -> float:
        """Do what is due; returns after how many seconds to look again.  Blocking."""
        at = self._utc_now()
        active = None
        try:
            if self._store.is_leader():
                catch_up(self._succession, at=at)
            keys = self._succession.signing_keys()
            active = rotation.active_intermediate(keys)
            self._remind(keys, at=at)
        except (AuthorityError, OSError) as exc:
            log("rotation_failed", level=logging.ERROR, why=str(exc))
        self.reload()
        return rotation.pause_s(_DEFAULT_LIFETIME if active is None else active.lifetime)

    def reload(self) -> None:
        """Let the signer go on with what the store says now, if that is something else.  Blocking.

        What can not be used is logged; the signer goes on as before, until the next look.
        """
        try:
            if self._is_current():
                return
            fresh = hierarchy.load(self._config, self._store, passphrase=self._passphrase, at=self._utc_now())
            hierarchy.write_bundle(self._config, fresh.roots)
        except (AuthorityError, OSError) as exc:
            log("hierarchy_not_loaded", level=logging.ERROR, why=str(exc))
            return
        self._signer.replace(fresh)
        log("hierarchy_replaced", issuer_key_id=fresh.issuer_key_id, roots=len(fresh.roots))

    def _is_current(self) -> bool:
        loaded, records = self._signer.hierarchy, self._succession.records()
        active = rotation.active_intermediate(self._succession.signing_keys())
        if active is None or active.key_id != loaded.issuer_key_id:
            return False
        return hierarchy.published_roots(records) == loaded.roots

    def _remind(self, keys: list[SigningKey], *, at: datetime) -> None:
        """Log what an operator has to do, at once and then every hour; as an error once it is late."""
        at_hand = self._succession.root_key_at_hand()
        for due in rotation.upcoming(keys, at=at, root_key_at_hand=at_hand):
            reminded = self._reminded.get(due.what)
            if not (due.needs_operator and due.overdue) or (reminded is not None and at - reminded < _REMIND):
                continue
            self._reminded[due.what] = at
            key = next(key for key in keys if key.key_id == due.key_id)
            level = logging.ERROR if key.should_activate(at) else logging.WARNING
            log("rotation_due", level=level, what=str(due.what), since=due.at.isoformat(), see="ringfence ca rotate")


def catch_up_at_start(config: AuthorityConfig, store: Store, *, passphrase: bytes) -> None:
    """Do what was due while the authority was down; what fails is logged.  Blocking."""
    try:
        if store.is_leader():
            catch_up(Succession(config=config, store=store, passphrase=passphrase), at=datetime.now(UTC))
    except (AuthorityError, OSError) as exc:
        log("rotation_failed", level=logging.ERROR, why=str(exc))


def catch_up(succession: Succession, *, at: datetime) -> None:
    """Do step after step until nothing is due that can be done here.  Blocking.

    Raises:
        AuthorityError: a step failed; those before it are done.
    """
    for _ in range(_MOST_STEPS):
        step = rotation.next_step(succession.signing_keys(), at=at)
        if step is None or (isinstance(step, Prepare) and not succession.root_key_at_hand()):
            break
        try:
            _do(step, succession, at=at)
        except Overtaken:
            continue
    succession.sweep()


def _do(step: rotation.Step, succession: Succession, *, at: datetime) -> None:
    match step:
        case Prepare():
            log("intermediate_prepared", key_id=succession.prepare_intermediate(at=at))
        case Activate(key_id):
            succession.activate_intermediate(key_id, at=at)
            log("intermediate_activated", key_id=key_id)
        case Retire(key_id):
            succession.retire(key_id, at=at)
            log("key_retired", key_id=key_id)
