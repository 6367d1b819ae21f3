"""Put together what agents are to judge peers by, out of the store.  Blocking.

The result depends on nothing but the tables, so that two replicas that have
read the same version hand out the same bytes.
"""

from typing import Final

from cryptography.hazmat.primitives import serialization

from ca.authority.records import AuthorityKind, AuthorityState
from ca.authority.store import Store
from ca.trust import Trust, TrustBundle

REFRESH_HINT_S: Final = 300.0  # Trust Domain and Bundle 4.1.3: the default is five minutes


def assemble(store: Store, *, trust_domain: str) -> Trust:
    """Read everything; the version first, so that the rest is at least as new.

    Raises:
        StoreError: the store can not be asked.
    """
    version = store.trust.version()
    federated = [each.bundle for each in store.federation.domains() if each.bundle is not None]
    return Trust(
        version=version,
        bundles=(own_bundle(store, trust_domain=trust_domain), *federated),
        revocations=store.revocations.to_distribute(),
    )


def own_bundle(store: Store, *, trust_domain: str) -> TrustBundle:
    """The bundle of our own trust domain: every root and every JWT key that is published.

    The sequence counts their changes: one for each that came and one for each that went.
    """
    roots = [record for record in store.authorities() if record.kind is AuthorityKind.ROOT]
    published = [record for record in roots if record.state is not AuthorityState.RETIRED]
    return TrustBundle(
        trust_domain=trust_domain,
        sequence=2 * len(roots) - len(published) + store.jwt_keys.changes(),
        refresh_hint_s=REFRESH_HINT_S,
        x509_der=tuple(record.certificate.public_bytes(serialization.Encoding.DER) for record in published),
        jwt_keys=store.jwt_keys.published(),
    )
