"""The task that keeps federated bundles fresh.

Once a second it looks which trust domains are due, in the database, so that a
relation that another process or replica added is asked at once.  Replicas
share the work by having one do it (``is_leader``).  Each endpoint is asked in a
task of its own: one that hangs delays nobody else.

A poll that fails changes nothing but the time of the next one (SPIFFE
Federation 6.2); the bundle in force stays in force.
"""

import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import trio
from cryptography import x509

from ca.authority.errors import StoreError
from ca.authority.federation.fetching import FetchError, fetch
from ca.authority.federation.intake import accept
from ca.authority.federation.relation import FederatedDomain
from ca.authority.federation.schedule import next_poll_at
from ca.authority.logs import log
from ca.authority.store import Store
from ca.bundle import BundleError
from ca.svid import load_certificate
from ca.trust import TrustBundle

_LOOK_S: Final = 1.0
_AFTER_BUG_S: Final = 60.0  # it is still due, and would fill the log


def _utc_now() -> datetime:
    return datetime.now(UTC)


class FederationPoller:
    """Asks every endpoint when it is due; ``run`` never returns.

    ``limiter`` is of the one thread that may use the store; ``own_bundle`` and
    ``issuers`` are asked in it: what agents judge our own trust domain by, and
    the signing certificates of our hierarchy.
    """

    def __init__(
        self,
        *,
        store: Store,
        limiter: trio.CapacityLimiter,
        own_bundle: Callable[[], TrustBundle],
        issuers: Callable[[], Sequence[x509.Certificate]],
        rng: random.Random,
        utc_now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._own_bundle = own_bundle
        self._issuers = issuers
        self._rng = rng
        self._utc_now = utc_now
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Look once a second what is due, and ask."""
        failing = False
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    domains = await trio.to_thread.run_sync(self._domains, limiter=self._limiter)
                    failing = False
                except StoreError as exc:
                    if not failing:
                        log("federation_not_loaded", level=logging.ERROR, why=str(exc))
                    domains, failing = [], True
                for domain in domains:
                    if domain.next_poll_at <= self._utc_now() and domain.trust_domain not in self._asked:
                        self._asked.add(domain.trust_domain)
                        nursery.start_soon(self._poll, domain, domains)
                await trio.sleep(_LOOK_S)

    def _domains(self) -> list[FederatedDomain]:
        return self._store.federation.domains() if self._store.is_leader() else []

    async def _poll(self, domain: FederatedDomain, domains: Sequence[FederatedDomain]) -> None:
        try:
            await self._poll_once(domain, domains)
        except StoreError as exc:  # it is still due, and looked at again in a second
            log("federation_not_stored", level=logging.ERROR, trust_domain=domain.trust_domain, why=str(exc))
        except Exception:  # a bug costs this poll, not the authority
            log("internal_error", level=logging.ERROR, exc_info=True, trust_domain=domain.trust_domain)
            await trio.sleep(_AFTER_BUG_S)
        finally:
            self._asked.discard(domain.trust_domain)

    async def _poll_once(self, domain: FederatedDomain, domains: Sequence[FederatedDomain]) -> None:
        relation, at = domain.relation, self._utc_now()
        try:
            document = await fetch(relation, roots=_roots_for(domain, domains), at=at)
            changed = await trio.to_thread.run_sync(self._take, domain, document, at, limiter=self._limiter)
        except (FetchError, BundleError) as exc:
            problem = f"refused: {exc}" if isinstance(exc, BundleError) else str(exc)
            if problem != domain.problem:
                log("federation_poll_failed", level=logging.WARNING, trust_domain=domain.trust_domain, why=problem)
            await trio.to_thread.run_sync(self._fail, domain, problem, at, limiter=self._limiter)
            return
        if changed or domain.problem:
            log("federation_polled", trust_domain=domain.trust_domain, changed=changed)

    def _take(self, domain: FederatedDomain, document: bytes, at: datetime) -> bool:
        others = [self._own_bundle()]
        others += [
            each.bundle
            for each in self._store.federation.domains()
            if each.bundle is not None and each.trust_domain != domain.trust_domain
        ]
        found = accept(
            document,
            trust_domain=domain.trust_domain,
            in_force=domain.bundle,
            others=others,
            issuers=self._issuers(),
        )
        next_at = next_poll_at(at=at, refresh_hint_s=found.refresh_hint_s, failures=0, draw=self._rng.random())
        return self._store.federation.polled(domain.relation, found, in_force=domain.bundle, at=at, next_at=next_at)

    def _fail(self, domain: FederatedDomain, problem: str, at: datetime) -> None:
        hint_s = None if domain.bundle is None else domain.bundle.refresh_hint_s
        next_at = next_poll_at(at=at, refresh_hint_s=hint_s, failures=domain.failures + 1, draw=self._rng.random())
        self._store.federation.poll_failed(domain.relation, problem, next_at=next_at)


def _roots_for(domain: FederatedDomain, domains: Sequence[FederatedDomain]) -> list[x509.Certificate]:
    """The roots of the trust domain whose server answers: most often the very one that is asked for (5.2.2.2)."""
    endpoint_id = domain.relation.endpoint_id
    if endpoint_id is None:
        return []
    bundles = {each.trust_domain: each.bundle for each in domains}
    bundle = bundles.get(endpoint_id.trust_domain)
    return [] if bundle is None else [load_certificate(der) for der in bundle.x509_der]
