"""One request in, one reply out: what the authority does with each message.

Blocking (signing and the database): ``worker.py`` calls it in its one thread,
with the requests that came meanwhile, so that they share one transaction.  The
order is always the same: prove who asks, judge what is asked, sign, check,
write to the journal, and only then answer.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from ca.authority import attestation
from ca.authority.attestation import Attested
from ca.authority.errors import Refusal, StoreError
from ca.authority.issue_log import RefusalLog, log_issued, log_issued_jwt
from ca.authority.jwt import JwtSigner
from ca.authority.logs import log
from ca.authority.placement import PlacementDirectory, Placements
from ca.authority.records import CertificateRecord
from ca.authority.revocation import RevocationGuard, Revoked
from ca.authority.signer import Signer, Svid, requested_key
from ca.authority.store import JournalEntry, JwtRecord, Store
from ca.messages import (
    Attest,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    IssuedCertificate,
    JwtIssued,
    RefusalCode,
    RenewNode,
    Reply,
    Request,
    SignJwt,
    SignWorkloads,
    WatchTrust,
)
from ca.spiffe import SpiffeId
from ca.svid import CLOCK_SKEW

_REFRESH_HINT_S = 300.0  # SPIFFE Trust Domain and Bundle 4.1.3: the default is five minutes
_STORE_RETRY_S = 5.0
_CHANGED_RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Who is at the other end; ``identity`` is what TLS and the SVID rules proved, or None."""

    address: str
    identity: SpiffeId | None
    serial: int = 0  # of the certificate that proved it
    root_der: bytes = b""  # that vouched for that certificate, when the connection was opened
    not_after: datetime | None = None  # of that certificate: a connection may outlive it

    def expired_at(self, at: datetime) -> datetime | None:
        """When the certificate ended, if it did: then it can only be renewed."""
        return self.not_after if self.not_after is not None and at > self.not_after + CLOCK_SKEW else None

    def require_unexpired(self, at: datetime) -> None:
        """Raise Refusal if the certificate has ended."""
        ended = self.expired_at(at)
        if ended is not None:
            raise Refusal(
                RefusalCode.UNAUTHENTICATED,
                f"the client certificate is refused: expired at {ended:%Y-%m-%dT%H:%M:%SZ}, and it is "
                f"{at:%Y-%m-%dT%H:%M:%SZ} here (RFC 5280 section 4.1.2.5): it can only be renewed",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request and who asked; ``judged`` is what the plugin that an ``Attest`` names has found before."""

    request: Request
    requester: Requester
    judged: Attested | Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unwritten:
    """A reply that may not leave before ``entry`` is in the journal."""

    asked: Asked
    entry: JournalEntry
    reply: Issued | JwtIssued


class RequestHandler:
    """Owns nothing: store and signer belong to whoever made them."""

    def __init__(
        self,
        *,
        trust_domain: str,
        signer: Signer,
        store: Store,
        placement: PlacementDirectory,
        guard: RevocationGuard | None = None,
        node_grace: timedelta = timedelta(0),
        jwt: JwtSigner | None = None,
    ) -> None:
        """``jwt`` None: no JWT-SVIDs are signed."""
        self._trust_domain = trust_domain
        self._signer = signer
        self._store = store
        self._placement = placement
        self._guard = guard or RevocationGuard(store)
        self._node_grace = node_grace
        self._jwt = jwt
        self._refusals = RefusalLog()

    def handle(
        self, request: Request, requester: Requester, *, at: datetime, judged: Attested | Refusal | None = None
    ) -> Reply:
        """Answer one request; see ``handle_all``."""
        return self.handle_all([Asked(request=request, requester=requester, judged=judged)], at=at)[0]

    def handle_all(self, group: Sequence[Asked], *, at: datetime) -> list[Reply]:
        """Answer requests that came at about the same time, each on its own; a refusal is an answer too.

        What they add to the journal is written in one transaction, so that they share the wait for the disk, and
        before any of them is answered.  Never raises what a requester caused.
        """
        try:
            revoked = self._guard.current()
        except StoreError:
            self._refusals.store_failed("store_failed", requests=len(group))
            return [_store_failed()] * len(group)
        placements = cache(self._placement.current)  # the manifests are looked at once for all of them
        answers = [self._judge(asked, placements, at) for asked in group]
        unwritten = [answer for answer in answers if isinstance(answer, _Unwritten)]
        if unwritten:
            replies = iter(self._write(unwritten, at, revoked))
            return [next(replies) if isinstance(answer, _Unwritten) else answer for answer in answers]
        return [answer for answer in answers if not isinstance(answer, _Unwritten)]

    def _judge(self, asked: Asked, placements: Callable[[], Placements], at: datetime) -> "Reply | _Unwritten":
        request = asked.request
        try:
            match request:
                case AttestWithToken():
                    return self._attest(asked, request, attestation.token_hash(request.token), at)
                case Attest(plugin=attestation.JOIN_TOKEN):
                    return self._attest(asked, request, attestation.token_hash(request.evidence), at)
                case Attest():
                    proven = _proven(asked.judged)
                    self._guard.current().require_admitted(proven.node)
                    return self._issue_node(asked, proven, request.csr_der, at)
                case RenewNode():
                    return self._renew(asked, request, at)
                case SignWorkloads():
                    return self._sign(asked, request, placements, at)
                case SignJwt():
                    return self._sign_jwt(asked, request, placements, at)
                case GetBundle():
                    return self._bundle()
                case WatchTrust():
                    raise AssertionError("held by the trust feed, never queued")
        except Refusal as exc:
            self._log_refused(exc, asked)
            return exc.reply()
        except StoreError:
            self._refusals.store_failed("journal_failed", requests=1)
            return _store_failed()
        except Exception:  # a bug of ours, or a certificate that broke its profile: nothing was handed out
            log("internal_error", level=logging.ERROR, exc_info=True, request=request.TYPE)
            return _failed()

    def _attest(self, asked: Asked, request: AttestWithToken | Attest, token_hash: bytes, at: datetime) -> "_Unwritten":
        if isinstance(asked.judged, Refusal):  # join tokens are not enabled
            raise asked.judged
        found = self._store.token(token_hash)
        attested = attestation.by_token(trust_domain=self._trust_domain, node=request.node, found=found, at=at)
        return self._issue_node(asked, attested, request.csr_der, at)

    def _renew(self, asked: Asked, request: RenewNode, at: datetime) -> "_Unwritten":
        ended = asked.requester.expired_at(at)
        if ended is None:
            attested = self._by_certificate(asked.requester, at)
        else:
            attested = self._by_expired_certificate(asked.requester, ended, at)
        return self._issue_node(asked, attested, request.csr_der, at)

    def _by_expired_certificate(self, requester: Requester, ended: datetime, at: datetime) -> Attested:
        """A node that comes back after an outage renews the certificate that it had, once more.

        Not if the node has shown a newer one since: then this is an old copy; nor if it is of before the node was
        revoked, because revocations of certificates are forgotten when those have expired.
        """
        attested = attestation.by_certificate(trust_domain=self._trust_domain, presented=requester.identity)
        self._guard.require_expired_certificate(attested.identity, requester.serial)
        if at > ended + self._node_grace:
            reason = f"expired at {ended:%Y-%m-%dT%H:%M:%SZ}, longer ago than node_grace_s"
        elif self._store.trust.has_shown_newer(attested.node, requester.serial):
            reason = f"expired at {ended:%Y-%m-%dT%H:%M:%SZ}, and the node has shown a newer one since"
        else:
            return replace(attested, method="expired_node_certificate")
        text = f"the client certificate is refused: {reason}, and it is {at:%Y-%m-%dT%H:%M:%SZ} here"
        raise Refusal(RefusalCode.UNAUTHENTICATED, f"{text}: the node has to join again")

    def _by_certificate(self, requester: Requester, at: datetime) -> Attested:
        requester.require_unexpired(at)
        attested = attestation.by_certificate(trust_domain=self._trust_domain, presented=requester.identity)
        self._guard.require_certificate(attested.identity, requester.serial)
        return attested

    def _issue_node(self, asked: Asked, attested: Attested, csr_der: bytes, at: datetime) -> "_Unwritten":
        svid = self._signer.sign(attested.identity, requested_key(csr_der, attested.identity), at=at)
        return self._unwritten(asked, attested, [svid], at)

    def _sign(
        self, asked: Asked, request: SignWorkloads, placements: Callable[[], Placements], at: datetime
    ) -> "Reply | _Unwritten":
        attested = self._by_certificate(asked.requester, at)
        revoked, placed = self._guard.current(), placements()
        results: list[Svid | IssuedCertificate] = []
        for item in request.requests:
            try:
                placed.require_placed(item.identity, node=attested.node)
                revoked.require_identity(item.identity)
                results.append(self._signer.sign(item.identity, requested_key(item.csr_der, item.identity), at=at))
            except Refusal as exc:
                self._log_refused(exc, asked, identity=item.identity)
                results.append(IssuedCertificate(identity=item.identity, error=exc.reply()))
        unwritten = self._unwritten(asked, attested, results, at)
        return unwritten if unwritten.entry.records else unwritten.reply

    def _sign_jwt(
        self, asked: Asked, request: SignJwt, placements: Callable[[], Placements], at: datetime
    ) -> "_Unwritten":
        """A token for an identity follows the rules of a certificate for it."""
        attested = self._by_certificate(asked.requester, at)
        placements().require_placed(request.identity, node=attested.node)
        self._guard.current().require_identity(request.identity)
        if self._jwt is None:
            raise Refusal(RefusalCode.UNAVAILABLE, "this authority signs no JWT-SVIDs")
        ttl = timedelta(seconds=request.ttl_s) if request.ttl_s else None
        signed = self._jwt.sign(request.identity, request.audience, ttl=ttl, at=at)
        record = JwtRecord(
            token_id=signed.token_id,
            identity=str(request.identity),
            node=attested.node,
            audience=request.audience,
            issued_at=signed.issued_at,
            not_after=signed.not_after,
            key_id=signed.key_id,
            attestation=attested.method,
            requester=asked.requester.address,
        )
        return _Unwritten(asked=asked, entry=JournalEntry(jwts=(record,)), reply=JwtIssued(token=signed.token))

    def _unwritten(
        self, asked: Asked, attested: Attested, results: Sequence[Svid | IssuedCertificate], at: datetime
    ) -> "_Unwritten":
        """The reply to a request, and what has to be in the journal before it may leave."""
        records = tuple(
            journal_record(svid, node=attested.node, method=attested.method, requester=asked.requester.address, at=at)
            for svid in results
            if isinstance(svid, Svid)
        )
        certificates = tuple(
            IssuedCertificate(identity=result.identity, chain_der=result.chain_der)
            if isinstance(result, Svid)
            else result
            for result in results
        )
        return _Unwritten(
            asked=asked,
            entry=JournalEntry(records=records, token_hash=attested.token_hash, instance=attested.instance),
            reply=Issued(certificates=certificates, bundle_der=self._signer.roots_der, trust_domain=self._trust_domain),
        )

    def _write(self, unwritten: Sequence["_Unwritten"], at: datetime, revoked: Revoked) -> list[Reply]:
        """Write to the journal, and only then let the replies go.

        If something was revoked since ``revoked``, nothing leaves that the revocation might not have found in the
        journal: it is asked for again, and judged by what is revoked then.
        """
        try:
            written = self._store.journal_all([each.entry for each in unwritten], at=at)
            changed = self._guard.current() is not revoked
        except StoreError:
            self._refusals.store_failed("journal_failed", requests=len(unwritten))
            return [_store_failed()] * len(unwritten)
        except Exception:
            log("internal_error", level=logging.ERROR, exc_info=True, requests=len(unwritten))
            return [_failed()] * len(unwritten)
        return [
            self._changed_meanwhile(each) if changed and self._is_revoked(each) else self._after_writing(each, good)
            for each, good in zip(unwritten, written, strict=True)
        ]

    def _is_revoked(self, unwritten: "_Unwritten") -> bool:
        """Whether it would be refused by what is revoked now.  A token that was voided could not be used up."""
        request, requester = unwritten.asked.request, unwritten.asked.requester
        try:
            revoked = self._guard.current()
            if isinstance(request, Attest):
                revoked.require_admitted(request.node)
            elif requester.identity is not None and not isinstance(request, AttestWithToken):
                self._guard.require_certificate(requester.identity, requester.serial)
            names = {each.identity for each in unwritten.entry.records}
            for name in names | {each.identity for each in unwritten.entry.jwts}:
                revoked.require_identity(SpiffeId.parse(name))
        except (Refusal, StoreError):
            return True
        return False

    def _after_writing(self, unwritten: "_Unwritten", written: bool) -> Reply:
        if written:
            for record in unwritten.entry.records:
                log_issued(record)
            for jwt in unwritten.entry.jwts:
                log_issued_jwt(jwt)
            return unwritten.reply
        if (instance := unwritten.entry.instance) is not None:
            text = (
                f"machine {instance.id} has attested before, and each does so once: if it has lost its certificate, "
                f"run: ringfence ca instances --forget {instance.id}"
            )
            refusal = Refusal(RefusalCode.ATTESTATION_REFUSED, text)
        else:
            text = "the join token was used already, by a request that came a moment earlier"
            refusal = Refusal(RefusalCode.TOKEN_INVALID, text)
        self._log_refused(refusal, unwritten.asked)
        return refusal.reply()

    def _changed_meanwhile(self, unwritten: "_Unwritten") -> Reply:
        refusal = Refusal(
            RefusalCode.UNAVAILABLE,
            "the trust changed while this was answered: ask again",
            retry_after_s=_CHANGED_RETRY_S,
        )
        self._log_refused(refusal, unwritten.asked)
        return refusal.reply()

    def _log_refused(self, refusal: Refusal, asked: Asked, *, identity: SpiffeId | None = None) -> None:
        requester = asked.requester
        self._refusals.refused(
            refusal,
            address=requester.address,
            requester=requester.identity,
            request=asked.request.TYPE,
            identity=identity,
        )

    def _bundle(self) -> Bundle:
        return Bundle(
            trust_domain=self._trust_domain,
            roots_der=self._signer.roots_der,
            sequence=self._signer.bundle_sequence,
            refresh_hint_s=_REFRESH_HINT_S,
        )


def _store_failed() -> Reply:
    text = "the authority can not write its journal, so it hands out nothing"
    return Refusal(RefusalCode.UNAVAILABLE, text, retry_after_s=_STORE_RETRY_S).reply()


def _failed() -> Reply:
    return Refusal(RefusalCode.INTERNAL, "the authority failed; its log says why").reply()


def _proven(judged: Attested | Refusal | None) -> Attested:
    if isinstance(judged, Refusal):
        raise judged
    if judged is None:
        raise ValueError("an Attest has to be judged by its plugin before it is handled")
    return judged


def journal_record(svid: Svid, *, node: str, method: str, requester: str, at: datetime) -> CertificateRecord:
    """The line of the journal for one certificate."""
    return CertificateRecord(
        serial=svid.certificate.serial_number,
        identity=str(svid.identity),
        node=node,
        not_before=svid.certificate.not_valid_before_utc,
        not_after=svid.certificate.not_valid_after_utc,
        issued_at=at,
        attestation=method,
        requester=requester,
        issuer_key_id=svid.issuer_key_id,
    )
