"""SVIDs for the workloads of this node: get them, renew them, hand them out.

Theory of operation.  One task (``run``) does everything that talks to the CA,
one request at a time: first the node's own certificate, then one
``SignWorkloads`` for all identities that are due.  ``rotation`` decides what
is due; this file asks it, does it, and tells it how it went.  Connections
never talk to the CA: they take what is there (``current``) or wait for the
task to get it (``wait_for``).

What fails stays where it is: an SVID that can not be renewed is used until it
expires, and then ``current`` is None, which closes the gate.
"""

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import trio
from cryptography import x509

from ca.client import CaClient, load_chain
from ca.csr import PrivateKey, build_csr, new_key
from ca.errors import CaError, CaProtocolError, CaRefused
from ca.messages import MAX_REQUESTS, Issued, IssuedCertificate, RefusalCode, SignRequest
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.credentials import Credentials, make_credentials
from node_agent.identity.node_credentials import NodeCredentials
from node_agent.identity.rotation import (
    LONGEST_PAUSE_NOT_SCHEDULED_S,
    LONGEST_PAUSE_S,
    LONGEST_PAUSE_WITHOUT_S,
    Expired,
    Renew,
    Rotation,
    WaitFor,
)

_log: Final = logging.getLogger("ringfence.identity")
_COALESCE_S: Final = 0.005  # pods come in groups; one request for all of them


def utc_now() -> datetime:
    """The time by which certificates are judged."""
    return datetime.now(UTC)


class _Slot:
    """One wanted identity: its SVID, its rotation, and who waits for it."""

    __slots__ = ("arrived", "credentials", "last_error", "refused", "rotation", "waiting")

    def __init__(self) -> None:
        self.credentials: Credentials | None = None
        self.rotation = Rotation()
        self.waiting = 0
        self.arrived = trio.Event()
        self.last_error = ""
        self.refused = False


class Identities:
    """The SVIDs of the wanted identities.

    ``on_rotated`` holds callables that are called with an identity whenever
    ``current`` of it changes: issued, renewed, expired, or no longer wanted.
    They must not raise or block.
    """

    def __init__(
        self,
        *,
        ca: CaClient,
        node: NodeCredentials,
        identity_wait_s: float,
        rng: random.Random,
        utc_now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._ca = ca
        self._node = node
        self._identity_wait_s = identity_wait_s
        self._rng = rng
        self._utc_now = utc_now
        self._slots: dict[SpiffeId, _Slot] = {}
        self._wake = trio.Event()
        self._ring = 0
        self.on_rotated: list[Callable[[SpiffeId], None]] = []
        self.ca_error: str | None = None

    def current(self, identity: SpiffeId) -> Credentials | None:
        """Return the SVID of an identity, or None if it has none that is valid now."""
        slot = self._slots.get(identity)
        if slot is None or slot.credentials is None or self._utc_now() >= slot.credentials.not_after:
            return None
        return slot.credentials

    async def wait_for(self, identity: SpiffeId) -> Credentials:
        """Return the SVID of an identity, waiting up to ``identity_wait_s`` for it.

        Raises:
            ConnectionFailure: IDENTITY_UNAVAILABLE, with what the CA said.
        """
        credentials = self.current(identity)
        if credentials is not None:
            return credentials
        slot = self._slots.get(identity)
        if slot is None:
            raise ConnectionFailure(CloseReason.IDENTITY_UNAVAILABLE, f"{identity} belongs to no workload on this node")
        slot.waiting += 1
        self._wake.set()
        try:
            with trio.move_on_after(self._identity_wait_s):
                while credentials is None and self._slots.get(identity) is slot:
                    await slot.arrived.wait()
                    credentials = self.current(identity)
        finally:
            slot.waiting -= 1
        if credentials is None:
            raise ConnectionFailure(CloseReason.IDENTITY_UNAVAILABLE, self._why_not(identity, slot))
        return credentials

    def set_wanted(self, identities: frozenset[SpiffeId]) -> None:
        """Say which identities the workloads on this node have; others are forgotten at once."""
        for identity in self._slots.keys() - identities:
            slot = self._slots.pop(identity)
            slot.arrived.set()
            if slot.credentials is not None:
                self._announce(identity)
        for identity in identities - self._slots.keys():
            self._slots[identity] = _Slot()
        self._wake.set()

    def ready(self) -> tuple[bool, str]:
        """Whether every wanted identity has a valid SVID; if not, why.

        With all of them at hand a CA that is down is no reason to be unready.
        """
        missing = sorted(str(identity) for identity in self._slots if self.current(identity) is None)
        if missing:
            first = SpiffeId.parse(missing[0])
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            return False, f"no valid SVID for {self._why_not(first, self._slots[first])}{more}"
        return (True, "") if self._slots else self._node.ready()

    def status(self) -> list[dict[str, Any]]:
        """One entry an identity; the node's own comes first."""
        return [self._node.status(), *(self._status_of(identity) for identity in sorted(self._slots, key=str))]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the SVIDs fresh until cancelled.  Does not wait for the CA to start."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            due, pause_s = self._look()
            urgent = any(self._is_urgent(slot) for slot in self._slots.values())
            step = self._node.next_step(now=trio.current_time(), wanted=urgent)
            if isinstance(step, Renew):
                self._take_bundle(await self._node.renew())
                self.ca_error = self._node.last_error or None
            elif due and self._node.own is not None:
                await trio.sleep(_COALESCE_S)
                await self._sign(self._look()[0])
            else:
                assert isinstance(step, WaitFor)
                with trio.move_on_after(step.seconds if due else min(step.seconds, pause_s)):
                    await self._wake.wait()

    def _look(self) -> tuple[list[SpiffeId], float]:
        """Drop what has expired; return what is due now, those with waiters first, and when to look again."""
        at, now = self._utc_now(), trio.current_time()
        due, pause_s = [], LONGEST_PAUSE_S
        for identity, slot in self._slots.items():
            step = slot.rotation.next_step(at=at, now=now, wanted=self._is_urgent(slot))
            if isinstance(step, Expired):
                _log.error("the SVID of %s has expired: %s", identity, slot.last_error or "it was not renewed in time")
                slot.credentials = None
                slot.rotation.dropped()
                self._announce(identity)
                step = slot.rotation.next_step(at=at, now=now, wanted=self._is_urgent(slot))
            if isinstance(step, Renew):
                due.append(identity)
            elif isinstance(step, WaitFor):
                pause_s = min(pause_s, step.seconds)
        due.sort(key=lambda identity: self._slots[identity].credentials is not None)
        return due, pause_s

    async def _sign(self, due: list[SpiffeId]) -> None:
        own = self._node.own
        if own is None or not due:
            return
        keys, requests = {}, []
        for identity in due[:MAX_REQUESTS]:
            keys[identity] = key = new_key()
            requests.append(SignRequest(identity=identity, csr_der=build_csr(key, identity)))
            await trio.lowlevel.checkpoint()
        try:
            issued = await self._ca.sign(requests, own)
            roots = load_chain(issued.bundle_der)
        except CaError as error:
            self.ca_error = str(error)
            for identity in keys:
                self._failed(identity, error)
            return
        self.ca_error = None
        self._take_bundle(roots)
        for item in issued.certificates:
            try:
                self._install(item, keys[item.identity], issued)
            except CaError as error:
                self._failed(item.identity, error)
            # Two contexts take OpenSSL 3.0 about 4 ms: connections are not to wait for those of a whole node.
            await trio.lowlevel.checkpoint()

    def _take_bundle(self, roots: tuple[x509.Certificate, ...]) -> None:
        """A context trusts the roots it was made with: when they change, every identity needs new contexts."""
        if roots and set(roots) != set(self._ca.roots):
            _log.info("the trust bundle has changed: it has %d roots now", len(roots))
            self._ca.replace_roots(roots)
            for slot in self._slots.values():
                slot.rotation.renew_soon(self._utc_now())

    def _install(self, item: IssuedCertificate, key: PrivateKey, issued: Issued) -> None:
        slot = self._slots.get(item.identity)
        if slot is None:  # the workload went away while the CA was answering
            return
        if item.error is not None:
            raise CaRefused(item.error.code, item.error.text, item.error.retry_after_s)
        at = self._utc_now()
        credentials = make_credentials(
            identity=item.identity,
            own=KeyAndChain(key=key, chain=load_chain(item.chain_der)),
            roots=load_chain(issued.bundle_der),
            at=at,
            ring=self._ring + 1,
        )
        if credentials.not_after <= at:
            raise CaProtocolError(f"the CA issued an SVID that has expired already, at {credentials.not_after}")
        self._ring += 1
        slot.credentials = credentials
        slot.rotation.issued(at=at, not_after=credentials.not_after, draw=self._rng.random())
        slot.last_error = ""
        slot.refused = False
        slot.arrived.set()
        slot.arrived = trio.Event()
        self._announce(item.identity)
        _log.info("SVID of %s valid until %s", item.identity, credentials.not_after.isoformat())

    def _failed(self, identity: SpiffeId, error: CaError) -> None:
        slot = self._slots.get(identity)
        if slot is None:
            return
        code = error.code if isinstance(error, CaRefused) else None
        # Refused because the CA reads its manifests a moment after we read ours: soon is soon enough.
        placed_late = code == RefusalCode.NOT_SCHEDULED
        if placed_late:
            longest_pause_s = LONGEST_PAUSE_NOT_SCHEDULED_S
        else:
            is_without = slot.credentials is None and code is None
            longest_pause_s = LONGEST_PAUSE_WITHOUT_S if is_without else LONGEST_PAUSE_S
        slot.rotation.failed(
            now=trio.current_time(),
            draw=self._rng.random(),
            longest_pause_s=longest_pause_s,
            wish_s=error.retry_after_s if isinstance(error, CaRefused) and not placed_late else 0.0,
        )
        text = f"the CA refuses: {error}" if code else str(error)
        if text != slot.last_error:
            _log.warning("no new SVID of %s: %s", identity, text)
        slot.last_error = text
        slot.refused = code is not None

    def _is_urgent(self, slot: _Slot) -> bool:
        return slot.waiting > 0 and slot.credentials is None

    def _announce(self, identity: SpiffeId) -> None:
        for call in self.on_rotated:
            call(identity)

    def _why_not(self, identity: SpiffeId, slot: _Slot) -> str:
        node_ready, node_text = self._node.ready()
        text = slot.last_error if node_ready else node_text
        return f"{identity}: {text or 'the CA has not answered yet'}"

    def _status_of(self, identity: SpiffeId) -> dict[str, Any]:
        slot, valid = self._slots[identity], self.current(identity)
        if valid is not None:
            state = "valid"
        else:
            state = "refused" if slot.refused else "pending"
        return {
            "identity": str(identity),
            "serial": None if valid is None else f"{valid.serial:x}",
            "not_before": None if valid is None else valid.not_before.isoformat(),
            "not_after": None if valid is None else valid.not_after.isoformat(),
            "state": state,
            "last_error": slot.last_error or None,
        }
