"""What happens to a request before and after it is answered: limits, who answers it, counting.

over a limit               refused at once, with the time to come again
WatchTrust                 held until there is something to say; no thread waits meanwhile
Attest, AttestWithToken    judged by their plugin, which may ask the network, then as all others
all others                 ``worker.py``
"""

import logging
import random
from datetime import UTC, datetime
from typing import Any, Final

import trio

from ca.authority import attestation
from ca.authority.admission import Admission, Visit
from ca.authority.attestation.plugins import Attestors
from ca.authority.drain import Drain
from ca.authority.errors import Refusal
from ca.authority.logs import log
from ca.authority.quiet import LogGate
from ca.authority.requests import Asked, Requester
from ca.authority.statistics import Statistics
from ca.authority.trust_feed import TrustFeed
from ca.authority.worker import Worker
from ca.messages import (
    Attest,
    AttestWithToken,
    Issued,
    RefusalCode,
    Refused,
    Reply,
    Request,
    SignWorkloads,
    WatchTrust,
    parse_request,
)

_JITTER_S: Final = 1.0


class FrontDesk:
    """Answers one request after the other; ``statistics`` is shared with whoever shows it."""

    def __init__(
        self,
        *,
        admission: Admission,
        worker: Worker,
        trust: TrustFeed,
        attestors: Attestors,
        trust_domain: str,
        drain: Drain,
        gate: LogGate,
        statistics: Statistics,
        rng: random.Random,
    ) -> None:
        self._admission = admission
        self._worker = worker
        self._trust = trust
        self._attestors = attestors
        self._trust_domain = trust_domain
        self._drain = drain
        self._gate = gate
        self._statistics = statistics
        self._rng = rng

    async def answer(self, fields: dict[str, Any], requester: Requester, visit: Visit) -> Reply:
        """Answer one decoded request.

        Raises:
            WireError: it is no request.
        """
        request = parse_request(fields)
        began = trio.current_time() - visit.waited_s
        visit.waited_s = 0.0
        try:
            self._require_within_limits(request, requester, visit)
            self._require_trusted_root(requester)
        except Refusal as exc:
            reply: Reply = exc.reply()
        else:
            reply = await self._dispatch(request, requester, visit, since=began)
        self._count(request, reply)
        if not isinstance(request, WatchTrust):  # how long that takes says nothing
            self._statistics.latencies.add(trio.current_time() - began)
        return reply

    def over_limit(self, limit: str, requester: Requester, *, wait_s: float) -> Refusal:
        """The refusal for whoever is over ``limit``, which is counted, and logged now and then."""
        self._statistics.over_limit[limit] += 1
        peer = str(requester.identity or requester.address)
        if self._gate.admits("over_limit", peer, now=trio.current_time()):
            log("over_limit", level=logging.WARNING, limit=limit, requester=requester.address, peer=peer)
        retry_after_s = wait_s + _JITTER_S * self._rng.random()
        text = f"too much at once: the authority allows no more ({limit} under [limits] of its ca.toml)"
        return Refusal(RefusalCode.RATE_LIMITED, text, retry_after_s=retry_after_s)

    def _count(self, request: Request, reply: Reply) -> None:
        outcome = str(reply.code) if isinstance(reply, Refused) else "ok"
        self._statistics.requests[request.TYPE, outcome] += 1
        if isinstance(reply, Issued):
            refused = [item.error.code for item in reply.certificates if item.error is not None]
            self._statistics.certificates[request.TYPE] += len(reply.certificates) - len(refused)
            self._statistics.refused_certificates.update(map(str, refused))

    def _require_within_limits(self, request: Request, requester: Requester, visit: Visit) -> None:
        certificates = len(request.requests) if isinstance(request, SignWorkloads) else 1
        over = self._admission.ask(visit, certificates=certificates, now=trio.current_time())
        if over is not None:
            raise self.over_limit(over[0], requester, wait_s=over[1])

    def _require_trusted_root(self, requester: Requester) -> None:
        """A connection outlives the moment at which its certificate was judged; the root may be gone since.

        That is so after the root was replaced in an emergency: whoever stole its key may be connected.
        """
        if requester.root_der and requester.root_der not in self._trust.trust.own.x509_der:
            text = "the root that vouched for this certificate is not trusted any more: the node has to join again"
            raise Refusal(RefusalCode.UNAUTHENTICATED, text)

    async def _dispatch(self, request: Request, requester: Requester, visit: Visit, *, since: float) -> Reply:
        if isinstance(request, WatchTrust):
            return await self._watch(request, requester)
        judged = None
        joins = isinstance(request, Attest | AttestWithToken)
        if isinstance(request, Attest | AttestWithToken):
            judged = await self._attestors.judge(request, at=datetime.now(UTC))
        asked = Asked(request=request, requester=requester, judged=judged)
        reply = await self._worker.ask(asked, peer=visit.peer, since=since)
        if joins and isinstance(reply, Refused) and reply.code is not RefusalCode.UNAVAILABLE:
            self._admission.refused_to_join(visit, now=trio.current_time())
        return reply

    async def _watch(self, request: WatchTrust, requester: Requester) -> Reply:
        try:
            attested = attestation.by_certificate(trust_domain=self._trust_domain, presented=requester.identity)
            requester.require_unexpired(datetime.now(UTC))
            host = requester.address.rpartition(":")[0]
            with self._drain.given_up_at_the_end():  # when we go down the agent is answered, and asks the next one
                await self._trust.watch(request, attested.identity, requester.serial, address=host)
            return self._trust.trust
        except Refusal as exc:
            if self._gate.admits("refused", host_of(requester), now=trio.current_time()):
                log("refused", level=logging.WARNING, code=str(exc.code), why=exc.text, requester=requester.address)
            return exc.reply()


def host_of(requester: Requester) -> str:
    """Its address without the port, which it can choose."""
    return requester.address.rpartition(":")[0]
