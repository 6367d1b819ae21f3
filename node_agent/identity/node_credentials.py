"""The node's own certificate: bought once with a proof of the node (``node_proof.py``), then renewed with itself.

It proves to the CA which node asks, and to the agents of other nodes who wants to
know what they see (node_agent/sight); it is never shown for a workload.  Without a
valid one no workload on this node gets an SVID, so its failures are readiness.
"""

import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import trio
from cryptography import x509

from ca.client import CaClient, load_chain
from ca.csr import build_csr, new_key
from ca.errors import CaError, CaProtocolError, CaRefused, CaUnreachable
from ca.messages import Issued, RefusalCode
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from node_agent.identity.credentials import leads_to, require_issued_to
from node_agent.identity.expiry import Held
from node_agent.identity.key_store import NodeKeyStore
from node_agent.identity.node_proof import NodeProof
from node_agent.identity.rotation import LONGEST_PAUSE_S, LONGEST_PAUSE_WITHOUT_S, Expired, Rotation, Step

_log: Final = logging.getLogger("ringfence.identity")


class NodeCredentials:
    """Holds the node's certificate and gets the next one; ``Identities`` calls it."""

    def __init__(
        self,
        *,
        node: str,
        trust_domain: str,
        ca: CaClient,
        key_store: NodeKeyStore,
        proof: Callable[[], NodeProof],
        utc_now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        """Take up the certificate of the last run, if there is one for this node that is still valid.

        ``proof`` is called for each attempt without one; it raises CaError.

        Raises:
            AgentError: there is one that can not be read.
        """
        self._node = node
        self._identity = SpiffeId.node(trust_domain, node)
        self._ca = ca
        self._key_store = key_store
        self._proof = proof
        self._utc_now = utc_now
        self._rng = rng
        self._rotation = Rotation()
        self._own: KeyAndChain | None = None
        self._issued_at: datetime | None = None
        self._ended: KeyAndChain | None = None  # has expired, or is revoked; the CA may renew it once more
        self._refused = False
        self.last_error = self._said = ""
        self._take_up(key_store.load())

    @property
    def own(self) -> KeyAndChain | None:
        """The certificate to ask with, or None if there is none that is valid."""
        return self._own if self._rotation.valid(self._utc_now()) else None

    def next_step(self, *, now: float, wanted: bool) -> Step:
        """What to do now; ``wanted``: SVIDs wait for it."""
        at = self._utc_now()
        # A token that was refused does not get better by asking twice a second.
        wanted = wanted and self._own is None and not self._refused
        step = self._rotation.next_step(at=at, now=now, wanted=wanted)
        if isinstance(step, Expired):
            self._ended, self._own = self._own, None
            self._rotation.dropped()
            step = self._rotation.next_step(at=at, now=now, wanted=wanted)
        return step

    async def renew(self) -> tuple[x509.Certificate, ...]:
        """Get the next certificate; returns the trust bundle that came along.

        Does not raise: after a failure the bundle is empty, and ``last_error`` says why.
        """
        try:
            roots = await self._renew()
        except CaError as error:
            self._failed(error)
            return ()
        self._refused = False
        self.last_error = self._said = ""
        return roots

    def refused(self, error: CaRefused) -> None:
        """The CA has refused what the certificate was shown for; one that is revoked is of no use for now.

        The node then has to prove itself anew, with a join token that was made since; or the revocation is undone,
        which only the CA can tell: so the certificate is shown to it at each attempt, and to nobody else.
        """
        if error.code == RefusalCode.REVOKED and self._own is not None:
            _log.error("the node certificate of %s is revoked: %s", self._identity, error.text)
            self.last_error = f"the CA refuses this node: {error}"
            self._ended, self._own = self._own, None
            self._rotation.dropped()

    def roots_replaced(self, roots: Sequence[x509.Certificate]) -> None:
        """The trust bundle is another now; a certificate that it does not vouch for proves nothing any more.

        That is so after the root was replaced in an emergency: the node has to prove itself anew.
        """
        if self._ended is not None and not leads_to(self._ended, roots):
            self._ended = None
        if self._own is not None and not leads_to(self._own, roots):
            _log.error("the root of the node certificate of %s is not trusted any more", self._identity)
            self.last_error = "the root of its certificate was replaced: the node has to prove itself again"
            self._own = None
            self._rotation.dropped()

    def held(self) -> Held | None:
        """The certificate as far as its end is concerned."""
        if self._own is None or self._issued_at is None:
            return None
        error = self.last_error if self._rotation.failures else ""
        return Held(name=str(self._identity), issued_at=self._issued_at, not_after=_end(self._own), error=error)

    def ready(self) -> tuple[bool, str]:
        """Whether SVIDs can be asked for; if not, why."""
        if self.own is not None:
            return True, ""
        return False, f"node {self._node} has no certificate: {self.last_error or 'the CA has not answered yet'}"

    def status(self) -> dict[str, Any]:
        """The same fields as ``Identities.status``."""
        own = self.own
        leaf = None if own is None else own.chain[0]
        return {
            "identity": str(self._identity),
            "serial": None if leaf is None else f"{leaf.serial_number:x}",
            "not_before": None if leaf is None else leaf.not_valid_before_utc.isoformat(),
            "not_after": None if leaf is None else leaf.not_valid_after_utc.isoformat(),
            "state": "pending" if leaf is None else "valid",
            "last_error": self.last_error or None,
        }

    async def _renew(self) -> tuple[x509.Certificate, ...]:
        key = new_key()
        csr_der = build_csr(key, self._identity)
        own = self.own
        if own is None and self._ended is not None:
            issued = await self._renew_ended(self._ended, csr_der)
        elif own is None:
            issued = await self._attest(csr_der)
        else:
            issued = await self._ca.renew_node(csr_der, own)
        renewed = KeyAndChain(key=key, chain=_only_chain(issued))
        roots, at = load_chain(issued.bundle_der), self._utc_now()
        require_issued_to(identity=self._identity, own=renewed, roots=roots, at=at)
        self._own, self._ended = renewed, None
        self._issued_at = at
        self._rotation.issued(at=at, not_after=_end(renewed), draw=self._rng.random())
        _log.info("node certificate of %s valid until %s", self._identity, _end(renewed).isoformat())
        try:
            await trio.to_thread.run_sync(self._key_store.save, renewed)
        except OSError as error:
            # It works until the agent is restarted; then it takes a new join token.
            _log.error("the node's key could not be stored: %s", error)
        return roots

    async def _attest(self, csr_der: bytes) -> Issued:
        proof = self._proof()
        return await self._ca.attest_with(proof.plugin, proof.evidence, self._node, csr_der)

    async def _renew_ended(self, ended: KeyAndChain, csr_der: bytes) -> Issued:
        """After an outage that was longer than our certificate lives, or a revocation that may have been undone.

        No new proof is needed, if the CA agrees.
        """
        try:
            return await self._ca.renew_node(csr_der, ended)
        except CaRefused as error:
            if error.code == RefusalCode.REVOKED:
                return await self._attest_anew(error, csr_der)
            if error.code not in (RefusalCode.UNAVAILABLE, RefusalCode.RATE_LIMITED, RefusalCode.INTERNAL):
                self._ended = None  # from now on by the proof
            raise

    async def _attest_anew(self, revoked: CaRefused, csr_der: bytes) -> Issued:
        """The operator may have let this node in again with a new token; else what is wrong is that it is revoked."""
        try:
            return await self._attest(csr_der)
        except CaRefused as error:
            if error.busy or error.code == RefusalCode.REVOKED:
                raise
            raise CaRefused(revoked.code, f"{revoked.text}; and its proof is refused, too: {error}") from error
        except CaUnreachable as error:
            raise CaRefused(revoked.code, f"{revoked.text}; and {error}") from error

    def _failed(self, error: CaError) -> None:
        # Unavailable is not a verdict: the CA, or whoever it asks about us, may answer the next time.
        self._refused = isinstance(error, CaRefused) and not error.busy
        wish_s = error.retry_after_s if isinstance(error, CaRefused) else 0.0
        is_without = self._own is None and not self._refused
        self._rotation.failed(
            now=trio.current_time(),
            draw=self._rng.random(),
            longest_pause_s=LONGEST_PAUSE_WITHOUT_S if is_without else LONGEST_PAUSE_S,
            wish_s=wish_s,
        )
        if isinstance(error, CaRefused):
            self.refused(error)
        text = f"the CA refuses this node: {error}" if self._refused else str(error)
        is_new = text != self._said
        self._said = text  # without the clocks, whose times are others at each attempt
        if self._ca.clock is not None and self._ca.clock.problem is not None:
            text = f"{text}; {self._ca.clock.problem}"
        if is_new:
            _log.warning("no node certificate: %s", text)
        self.last_error = text

    def _take_up(self, stored: KeyAndChain | None) -> None:
        if stored is None:
            return
        at = self._utc_now()
        if at >= _end(stored):
            self._ended = stored if leads_to(stored, self._ca.roots) else None
            return
        try:
            require_issued_to(identity=self._identity, own=stored, roots=self._ca.roots, at=at)
        except CaProtocolError as error:
            _log.warning("the stored node certificate is of no use, the join token is needed: %s", error)
            return
        self._own = stored
        self._issued_at = stored.chain[0].not_valid_before_utc
        self._rotation.issued(at=stored.chain[0].not_valid_before_utc, not_after=_end(stored), draw=self._rng.random())


def _only_chain(issued: Issued) -> tuple[x509.Certificate, ...]:
    if len(issued.certificates) != 1:
        raise CaProtocolError(f"the CA sent {len(issued.certificates)} certificates instead of one")
    error = issued.certificates[0].error
    if error is not None:
        raise CaRefused(error.code, error.text, error.retry_after_s)
    return load_chain(issued.certificates[0].chain_der)


def _end(own: KeyAndChain) -> datetime:
    return min(certificate.not_valid_after_utc for certificate in own.chain)
