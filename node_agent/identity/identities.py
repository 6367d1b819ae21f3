"""SVIDs for the workloads of this node: get them, renew them, hand them out.

Theory of operation.  One task (``run``) does everything that talks to the CA,
one request at a time: first the node's own certificate, then one
``SignWorkloads`` for all identities that are due.  ``rotation`` decides what
is due; this file asks it, does it, and tells it how it went.  Connections
never talk to the CA: they take what is there (``current``) or wait for the
task to get it (``wait_for``).

What fails stays where it is: an SVID that can not be renewed is used until it
expires, and then ``current`` is None, which closes the gate.  One that is
revoked is dropped in the moment in which ``TrustStore`` hears of it.
"""

import logging
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import trio
from cryptography import x509

from ca.client import CaClient, load_chain
from ca.csr import PrivateKey, build_csr, new_key
from ca.errors import CaError, CaProtocolError, CaRefused, CaUnreachable
from ca.messages import MAX_REQUESTS, Issued, IssuedCertificate, RefusalCode, SignRequest
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.credentials import Credentials, leads_to, make_credentials, with_roots
from node_agent.identity.expiry import ExpiryWatch, Held, described, near_their_end
from node_agent.identity.node_credentials import NodeCredentials
from node_agent.identity.rotation import (
    LONGEST_PAUSE_S,
    Expired,
    Renew,
    WaitFor,
)
from node_agent.identity.slots import Slot
from node_agent.identity.trust import Certificate, TrustStore

_log: Final = logging.getLogger("ringfence.identity")
_COALESCE_S: Final = 0.005  # pods come in groups; one request for all of them


def utc_now() -> datetime:
    """The time by which certificates are judged."""
    return datetime.now(UTC)


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
        trust: TrustStore | None = None,
        utc_now: Callable[[], datetime] = utc_now,
        share_tunnels: bool = True,
    ) -> None:
        """``trust`` is what peers are judged by; the roots that the CA is trusted by, if it is not given.

        ``share_tunnels``: whether a tunnel that we accept may carry many connections.
        """
        self._ca = ca
        self._node = node
        self._trust = trust or TrustStore(trust_domain=ca.trust_domain, roots=ca.roots)
        self._trust.on_changed.append(self._trust_changed)
        self._expiry = ExpiryWatch()
        self._identity_wait_s = identity_wait_s
        self._rng = rng
        self._utc_now = utc_now
        self._share_tunnels = share_tunnels
        self._slots: dict[SpiffeId, Slot] = {}
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

    def held(self) -> list[Credentials]:
        """The SVIDs that are valid now, of all identities."""
        return [found for identity in self._slots if (found := self.current(identity)) is not None]

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
        if self._trust.revocation_of(identity) is not None:
            raise slot.failure(slot.last_error)
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
            raise slot.failure(self._why_not(identity, slot))
        return credentials

    async def sign_jwt(self, identity: SpiffeId, audience: tuple[str, ...]) -> str:
        """Ask the CA for a JWT-SVID of a workload on this node; returns the token, not verified.

        Raises:
            CaError: the CA is away, refuses, or this node can not ask it.
        """
        own = self._node.own
        if own is None:
            raise CaUnreachable(self._node.ready()[1])
        return await self._ca.sign_jwt(identity, audience, own)

    def set_wanted(self, identities: frozenset[SpiffeId]) -> None:
        """Say which identities the workloads on this node have; others are forgotten at once."""
        for identity in self._slots.keys() - identities:
            slot = self._slots.pop(identity)
            slot.arrived.set()
            if slot.credentials is not None:
                self._announce(identity)
        for identity in identities - self._slots.keys():
            self._slots[identity] = Slot(identity)
            self._drop_if_revoked(self._slots[identity])
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
        return [self._node.status(), *(slot.status(self.current(slot.identity)) for slot in self._sorted())]

    def warnings(self) -> list[str]:
        """What does not stop a connection yet and will, or may: for people."""
        at = self._utc_now()
        near = near_their_end(self._held(), at=at)
        found = [described(near, at=at)] if near else []
        if self._ca.clock is not None and self._ca.clock.problem is not None:
            found.append(self._ca.clock.problem)
        return found

    def expiring(self) -> int:
        """How many certificates could not be renewed and are near their end, or past it: an alert outlasts the end."""
        ended = sum(
            slot.issued_at is not None and self.current(identity) is None and not self._trust.revocation_of(identity)
            for identity, slot in self._slots.items()
        )
        return len(near_their_end(self._held(), at=self._utc_now())) + ended

    def clock_ahead_s(self) -> float:
        """How far our clock is ahead of the CA's, as of its last reply; 0 before the first."""
        return 0.0 if self._ca.clock is None else self._ca.clock.ahead_s

    def node_refused(self, error: CaRefused) -> None:
        """The CA has refused the node's certificate on another connection."""
        self._node.refused(error)
        self._wake.set()

    async def adopt_roots(self) -> None:
        """Judge peers, and the CA, by the roots in force: each SVID gets new contexts; none is asked for again."""
        roots = self._trust.every_root
        self._ca.replace_roots(self._trust.roots())
        self._node.roots_replaced(self._trust.roots())
        _log.info("the trust bundle has changed: it has %d roots now", len(self._trust.roots()))
        for slot in list(self._slots.values()):
            if slot.credentials is None or self._slots.get(slot.identity) is not slot:
                continue
            self._ring += 1
            slot.credentials = with_roots(slot.credentials, roots=roots, ring=self._ring)
            if not leads_to(slot.credentials.own, self._trust.roots()):
                slot.rotation.renew_soon(self._utc_now())  # what vouched for it is gone: peers will not take it
            self._announce(slot.identity)
            await trio.lowlevel.checkpoint()  # connections are not to wait for a whole node's
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the SVIDs fresh until cancelled.  Does not wait for the CA to start."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            due, pause_s = self._look()
            self._tell_of_expiry()
            urgent = any(slot.urgent for slot in self._slots.values())
            step = self._node.next_step(now=trio.current_time(), wanted=urgent)
            if isinstance(step, Renew):
                await self._learn_roots(await self._node.renew())
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
            step = slot.rotation.next_step(at=at, now=now, wanted=slot.urgent)
            if isinstance(step, Expired):
                _log.error("the SVID of %s has expired: %s", identity, slot.last_error or "it was not renewed in time")
                slot.drop()
                self._announce(identity)
                step = slot.rotation.next_step(at=at, now=now, wanted=slot.urgent)
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
            if isinstance(error, CaRefused):
                self._node.refused(error)
            for identity in keys:
                self._failed(identity, error)
            return
        self.ca_error = None
        await self._learn_roots(roots)
        for item in issued.certificates:
            try:
                self._install(item, keys[item.identity], issued)
            except CaError as error:
                self._failed(item.identity, error)
            await trio.lowlevel.checkpoint()  # connections are not to wait for a whole node's

    async def _learn_roots(self, roots: tuple[x509.Certificate, ...]) -> None:
        """Until the CA tells its trust (``trust_watch``), the roots that come with certificates are what there is."""
        try:
            changed = self._trust.learn_roots(roots)
        except CaProtocolError as error:
            self.ca_error = str(error)
            return
        if changed:
            await self.adopt_roots()

    def _trust_changed(self) -> None:
        """Called by the trust store, in the moment of the change."""
        for slot in self._slots.values():
            self._drop_if_revoked(slot)
        self._wake.set()

    def _drop_if_revoked(self, slot: Slot) -> None:
        """Without an SVID yet, an identity that is revoked counts too; what is no longer revoked is asked for again."""
        serial = 0 if slot.credentials is None else slot.credentials.serial
        failure = self._trust.why_not(Certificate(identity=slot.identity, serial=serial))
        if failure is None:
            if slot.code == RefusalCode.REVOKED:
                slot.code = None
                slot.rotation.retry()
            return
        if slot.last_error != failure.detail:
            _log.warning("no SVID of %s any more: %s", slot.identity, failure.detail)
        slot.last_error = failure.detail
        slot.code = RefusalCode.REVOKED
        if slot.credentials is not None:
            slot.drop()
            self._announce(slot.identity)
        slot.wake()

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
            roots=self._trust.every_root,
            issued_under=load_chain(issued.bundle_der),
            at=at,
            ring=self._ring + 1,
            shares=self._share_tunnels,
        )
        failure = self._trust.why_not(Certificate(identity=item.identity, serial=credentials.serial))
        if failure is not None:  # issued by a replica that had not heard of it
            raise CaRefused(RefusalCode.REVOKED, failure.detail)
        if credentials.not_after <= at:
            raise CaProtocolError(f"the CA issued an SVID that has expired already, at {credentials.not_after}")
        self._ring += 1
        slot.take(credentials, at=at, draw=self._rng.random())
        self._announce(item.identity)
        _log.info("SVID of %s valid until %s", item.identity, credentials.not_after.isoformat())

    def _failed(self, identity: SpiffeId, error: CaError) -> None:
        slot = self._slots.get(identity)
        if slot is None:
            return
        clock = None if self._ca.clock is None else self._ca.clock.problem
        if slot.failed(error, clock_problem=clock, now=trio.current_time(), draw=self._rng.random()):
            _log.warning("no new SVID of %s: %s", identity, slot.last_error)

    def _held(self) -> Iterator[Held]:
        node = self._node.held()
        if node is not None:
            yield node
        for slot in self._slots.values():
            held = slot.held()
            if held is not None:
                yield held

    def _tell_of_expiry(self) -> None:
        line = self._expiry.to_log(self._held(), at=self._utc_now())
        if line is not None:
            _log.error("%s", line)

    def _announce(self, identity: SpiffeId) -> None:
        for call in self.on_rotated:
            call(identity)

    def _why_not(self, identity: SpiffeId, slot: Slot) -> str:
        node_ready, node_text = self._node.ready()
        text = slot.last_error if node_ready else node_text
        return f"{identity}: {text or 'the CA has not answered yet'}"

    def _sorted(self) -> list[Slot]:
        return sorted(self._slots.values(), key=lambda slot: str(slot.identity))
