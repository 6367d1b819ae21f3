"""One request in, one reply out: what the authority does with each message.

Blocking (signing and SQLite): the server calls it in its one worker thread.
The order is always the same: prove who asks, judge what is asked, sign, check,
write to the journal, and only then answer.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

from ca.authority import attestation
from ca.authority.attestation import Attested
from ca.authority.errors import Refusal, StoreError
from ca.authority.logs import log
from ca.authority.placement import PlacementDirectory
from ca.authority.records import CertificateRecord
from ca.authority.signer import Signer, Svid, requested_key
from ca.authority.store import Store, TokenAlreadyUsed
from ca.messages import (
    Attest,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    IssuedCertificate,
    RefusalCode,
    RenewNode,
    Reply,
    Request,
    SignWorkloads,
    WatchTrust,
)
from ca.spiffe import SpiffeId

_REFRESH_HINT_S = 300.0  # SPIFFE Trust Domain and Bundle 4.1.3: the default is five minutes
_STORE_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Who is at the other end; ``identity`` is what TLS and the SVID rules proved, or None."""

    address: str
    identity: SpiffeId | None


class RequestHandler:
    """Owns nothing: store and signer belong to whoever made them."""

    def __init__(self, *, trust_domain: str, signer: Signer, store: Store, placement: PlacementDirectory) -> None:
        self._trust_domain = trust_domain
        self._signer = signer
        self._store = store
        self._placement = placement

    def handle(
        self, request: Request, requester: Requester, *, at: datetime, judged: Attested | Refusal | None = None
    ) -> Reply:
        """Answer one request; a refusal is an answer too.  Never raises what the requester caused.

        ``judged`` is what the plugin that an ``Attest`` names has found; the server has asked it before.
        """
        try:
            match request:
                case AttestWithToken():
                    return self._attest(request, requester, at)
                case Attest():
                    return self._issue_node(_proven(judged), request.csr_der, requester, at)
                case RenewNode():
                    return self._renew(request, requester, at)
                case SignWorkloads():
                    return self._sign(request, requester, at)
                case GetBundle():
                    return self._bundle()
                case WatchTrust():
                    raise Refusal(RefusalCode.BAD_REQUEST, "this authority does not hold requests")
        except Refusal as exc:
            _log_refused(exc, requester, request=request.TYPE)
            return exc.reply()
        except StoreError:
            log("journal_failed", level=logging.ERROR, exc_info=True, request=request.TYPE)
            text = "the authority can not write its journal, so it hands out nothing"
            return Refusal(RefusalCode.UNAVAILABLE, text, retry_after_s=_STORE_RETRY_S).reply()
        except Exception:  # a bug of ours, or a certificate that broke its profile: nothing was handed out
            log("internal_error", level=logging.ERROR, exc_info=True, request=request.TYPE)
            return Refusal(RefusalCode.INTERNAL, "the authority failed; its log says why").reply()

    def _attest(self, request: AttestWithToken, requester: Requester, at: datetime) -> Reply:
        found = self._store.token(attestation.token_hash(request.token))
        attested = attestation.by_token(trust_domain=self._trust_domain, node=request.node, found=found, at=at)
        return self._issue_node(attested, request.csr_der, requester, at)

    def _renew(self, request: RenewNode, requester: Requester, at: datetime) -> Reply:
        attested = attestation.by_certificate(trust_domain=self._trust_domain, presented=requester.identity)
        return self._issue_node(attested, request.csr_der, requester, at)

    def _issue_node(self, attested: Attested, csr_der: bytes, requester: Requester, at: datetime) -> Reply:
        svid = self._signer.sign(attested.identity, requested_key(csr_der, attested.identity), at=at)
        self._journal([svid], attested, requester, at)
        return self._issued([IssuedCertificate(identity=svid.identity, chain_der=svid.chain_der)])

    def _sign(self, request: SignWorkloads, requester: Requester, at: datetime) -> Reply:
        attested = attestation.by_certificate(trust_domain=self._trust_domain, presented=requester.identity)
        placements = self._placement.current()
        results: list[Svid | IssuedCertificate] = []
        for item in request.requests:
            try:
                placements.require_placed(item.identity, node=attested.node)
                results.append(self._signer.sign(item.identity, requested_key(item.csr_der, item.identity), at=at))
            except Refusal as exc:
                _log_refused(exc, requester, request=request.TYPE, identity=item.identity)
                results.append(IssuedCertificate(identity=item.identity, error=exc.reply()))
        self._journal([result for result in results if isinstance(result, Svid)], attested, requester, at)
        return self._issued(
            [
                IssuedCertificate(identity=result.identity, chain_der=result.chain_der)
                if isinstance(result, Svid)
                else result
                for result in results
            ]
        )

    def _journal(self, svids: list[Svid], attested: Attested, requester: Requester, at: datetime) -> None:
        if not svids:
            return
        records = [
            journal_record(svid, node=attested.node, method=attested.method, requester=requester.address, at=at)
            for svid in svids
        ]
        try:
            self._store.journal(records, token_hash=attested.token_hash, at=at)
        except TokenAlreadyUsed as exc:
            text = "the join token was used already, by a request that came a moment earlier"
            raise Refusal(RefusalCode.TOKEN_INVALID, text) from exc
        for record in records:
            log_issued(record)

    def _issued(self, certificates: list[IssuedCertificate]) -> Issued:
        return Issued(
            certificates=tuple(certificates), bundle_der=self._signer.roots_der, trust_domain=self._trust_domain
        )

    def _bundle(self) -> Bundle:
        return Bundle(
            trust_domain=self._trust_domain,
            roots_der=self._signer.roots_der,
            sequence=self._signer.bundle_sequence,
            refresh_hint_s=_REFRESH_HINT_S,
        )


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


def log_issued(record: CertificateRecord) -> None:
    """Say that a certificate was issued; only after it is in the journal."""
    log(
        "issued",
        identity=record.identity,
        serial=record.serial_hex,
        node=record.node,
        not_after=record.not_after.isoformat(),
        attestation=record.attestation,
        requester=record.requester,
    )


def _log_refused(refusal: Refusal, requester: Requester, *, request: str, identity: SpiffeId | None = None) -> None:
    log(
        "refused",
        level=logging.WARNING,
        code=str(refusal.code),
        why=refusal.text,
        requester=requester.address,
        requester_identity=None if requester.identity is None else str(requester.identity),
        request=request,
        identity=None if identity is None else str(identity),
    )
