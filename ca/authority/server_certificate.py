"""The authority's own TLS identity: issued by itself, short-lived, only in memory.

Clients know it by ``spiffe://<trust domain>/ringfence/ca`` under the roots that
they were configured with; it is an SVID like any other, and in the journal.
"""

import logging
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime

import trio
from cryptography import x509

from ca.authority.hierarchy import Hierarchy
from ca.authority.issue_log import log_issued
from ca.authority.logs import log
from ca.authority.requests import journal_record
from ca.authority.signer import Signer, requested_key
from ca.authority.store import Store
from ca.csr import build_csr, new_key
from ca.messages import ALPN
from ca.spiffe import SpiffeId
from ca.svid import load_certificate
from ca.tls import KeyAndChain, check_time_ourselves, strict_context

_RETRY_S = 5.0
_CLOCK_CHECK_S = 60.0  # the wall clock may be set while we sleep


class ServerCertificate:
    """Holds the TLS context that new connections are served with, and replaces it in time.

    ``worker`` is the limiter of the one thread that may use the store.
    """

    def __init__(self, *, trust_domain: str, signer: Signer, store: Store, worker: trio.CapacityLimiter) -> None:
        self._identity = SpiffeId.authority(trust_domain)
        self._signer = signer
        self._store = store
        self._worker = worker
        self._context: ssl.SSLContext | None = None
        self._own: KeyAndChain | None = None
        self._renew_at = datetime.min.replace(tzinfo=UTC)
        self._wake = trio.Event()
        self._made_with: Hierarchy | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """For new connections; those that are open keep theirs."""
        assert self._context is not None, "renew() has been called"
        return self._context

    @property
    def own(self) -> KeyAndChain:
        """Key and chain that ``context`` presents, for other servers of the authority."""
        assert self._own is not None, "renew() has been called"
        return self._own

    async def run(self) -> None:
        """Renew at half-life and when the hierarchy has changed, for ever; ``renew`` has been called once."""
        while True:
            remaining_s = (self._renew_at - datetime.now(UTC)).total_seconds()
            if remaining_s > 0:
                with trio.move_on_after(min(remaining_s, _CLOCK_CHECK_S)):
                    await self._wake.wait()
                continue
            self._wake = trio.Event()
            try:
                await self.renew()
            except Exception:  # what serves now stays valid for the other half of its life
                log("server_certificate_failed", level=logging.ERROR, exc_info=True)
                await trio.sleep(_RETRY_S)

    def renew_if_replaced(self) -> None:
        """Let ``run`` renew now, if the signer signs with another hierarchy, or trusts other roots."""
        if self._made_with is not None and self._made_with is not self._signer.hierarchy:
            self._renew_at = datetime.min.replace(tzinfo=UTC)
            self._wake.set()

    async def renew(self) -> None:
        """Issue a new certificate and serve new connections with it.

        Raises:
            Refusal: the intermediate has no life left.
            StoreError: it could not be journalled, so it is not used.
        """
        at = datetime.now(UTC)
        wake, self._made_with = self._wake, self._signer.hierarchy
        self._context, self._own, not_after = await trio.to_thread.run_sync(self._issue, at, limiter=self._worker)
        if not wake.is_set():  # else the hierarchy has changed while this one was made
            self._renew_at = at + (not_after - at) / 2

    def _issue(self, at: datetime) -> tuple[ssl.SSLContext, KeyAndChain, datetime]:
        key = new_key()
        svid = self._signer.sign(self._identity, requested_key(build_csr(key, self._identity), self._identity), at=at)
        record = journal_record(svid, node="", method="self", requester="", at=at)
        self._store.journal([record])
        log_issued(record)
        chain = tuple(load_certificate(der) for der in svid.chain_der)
        own = KeyAndChain(key=key, chain=chain)
        return server_context(self._signer.roots, own), own, record.not_after


def server_context(roots: Sequence[x509.Certificate], own: KeyAndChain) -> ssl.SSLContext:
    """The strict context, but for the client certificate: optional, because a new node has none yet.

    One that is presented must still be ours, or the handshake fails.
    """
    context = strict_context(server_side=True, roots=roots, alpn=ALPN, own=own)
    context.verify_mode = ssl.CERT_OPTIONAL
    check_time_ourselves(context)  # clocks differ: the server compares the dates, with tolerance
    return context
