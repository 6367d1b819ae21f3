"""Take up an intermediate that an existing PKI signed, with the certificates between it and its root.

Blocking, like ``succession.py``.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from cryptography import x509

from ca.authority import external, founding, profile, rotation
from ca.authority.errors import AuthorityError
from ca.authority.hierarchy import published_roots, require_long_enough
from ca.authority.keys import read_key, write_key
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.rehearsal import rehearse
from ca.authority.rotation import SigningKey
from ca.authority.store import authorities as table
from ca.authority.store.database import Transaction
from ca.authority.succession import Succession
from ca.svid import SvidError, check_dates


def install(succession: Succession, certificates: Sequence[x509.Certificate], *, at: datetime) -> SigningKey:
    """Judge a chain, rehearse it, and keep it: active if it is the first, prepared if there is one that signs.

    Raises:
        AuthorityError: it is not for a key of ours, or no agent would accept what it signs.
    """
    records = succession.records()
    known = {record.key_id: record for record in records}
    certificate, key_name = _waited_for(succession, certificates, known)
    chain, root = _judged(succession, certificates, certificate, key_name, published_roots(records), at=at)
    issuers = [*chain[1:], root]
    key_id, root_id = profile.key_id(certificate), profile.key_id(root)
    if key_id != key_name:  # the PKI has its own way to name keys: follow it
        key = read_key(succession.store.keys, key_name, succession.passphrase)
        write_key(succession.store.keys, key_id, key, succession.passphrase)

    def change(transaction: Transaction, keys: Sequence[SigningKey]) -> None:
        active = rotation.active_root(keys)
        is_first = active is not None and active.key_id == root_id and rotation.active_intermediate(keys) is None
        state = AuthorityState.ACTIVE if is_first else AuthorityState.PREPARED
        replaced = rotation.prepared_intermediate(keys, root=next(each for each in keys if each.key_id == root_id))
        if replaced is not None:
            table.set_state(transaction, replaced.key_id, AuthorityState.RETIRED, at=at)
        for upstream, issuer in zip(chain[1:], issuers[1:], strict=True):
            _keep_upstream(transaction, upstream, profile.key_id(issuer), known, at=at)
        kind = AuthorityKind.INTERMEDIATE
        table.add(transaction, [founding.record_of(kind, state, certificate, profile.key_id(issuers[0]), at=at)])

    succession.change(change)
    if key_id != key_name:
        succession.store.keys.remove(key_name)
    succession.sweep()
    return next(each for each in succession.signing_keys() if each.key_id == key_id)


def _waited_for(
    succession: Succession, certificates: Sequence[x509.Certificate], known: Mapping[str, AuthorityRecord]
) -> tuple[x509.Certificate, str]:
    """The certificate of a key that was made for a request and has none yet, and the name of that key."""
    found = []
    for certificate in certificates:
        name = founding.key_name(certificate.public_key())
        taken = any(
            profile.public_bytes(record.certificate.public_key()) == profile.public_bytes(certificate.public_key())
            for record in known.values()
        )
        if not taken and succession.store.keys.has(name):
            found.append((certificate, name))
    if len(found) != 1:
        raise AuthorityError(
            f"{len(found)} of the certificates are for a key that waits for one here; it has to be one: make a request "
            "with `ringfence ca rotate intermediate --csr FILE` and have that signed"
        )
    return found[0]


def _judged(
    succession: Succession,
    certificates: Sequence[x509.Certificate],
    ours: x509.Certificate,
    key_name: str,
    roots: Sequence[x509.Certificate],
    *,
    at: datetime,
) -> tuple[list[x509.Certificate], x509.Certificate]:
    """The chain from ours up, without the root, and the root; after all that can be said against it."""
    config = succession.config
    try:
        chain, root = external.chain_to(certificates, roots, ours=ours)
        external.require_chain(chain, root=root, trust_domain=config.trust_domain)
        for certificate in (*chain, root):
            check_dates(certificate, at=at)
        key = read_key(succession.store.keys, key_name, succession.passphrase)
        issuer = profile.Issuer(certificate=ours, key=key)
    except (profile.ProfileError, SvidError) as exc:
        raise AuthorityError(f"the signed intermediate is refused: {exc}") from exc
    require_long_enough(ours, svid_ttl_s=config.svid_ttl_s)
    rehearse(issuer=issuer, upstream=chain[1:], root=root, trust_domain=config.trust_domain, at=at)
    return chain, root


def _keep_upstream(
    transaction: Transaction,
    certificate: x509.Certificate,
    issuer_key_id: str,
    known: Mapping[str, AuthorityRecord],
    *,
    at: datetime,
) -> None:
    """Add a certificate of the existing PKI, or take up its renewed form."""
    key_id, state = profile.key_id(certificate), AuthorityState.ACTIVE
    if key_id not in known:
        record = founding.record_of(AuthorityKind.UPSTREAM, state, certificate, issuer_key_id, at=at)
        table.add(transaction, [record])
        return
    table.replace_certificate(transaction, certificate, key_id=key_id)
    table.set_state(transaction, key_id, state, at=at)
