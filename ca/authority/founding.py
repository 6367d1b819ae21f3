"""``ringfence ca init``: the first root and the first intermediate, or a request to somebody else's root.

The keys are written first and the certificates last, in one transaction: an
``init`` that was cut off leaves no authority, and can be run again.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from ca.authority import external, profile
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.hierarchy import Hierarchy, write_bundle
from ca.authority.keys import KeyStore, write_key
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.rehearsal import rehearse
from ca.authority.store import Store
from ca.csr import PrivateKey, new_key

_IPV4: Final = re.compile(r"[0-9]+(\.[0-9]+){3}", re.ASCII)


def create(
    config: AuthorityConfig,
    *,
    passphrase: bytes,
    at: datetime,
    root_keys: KeyStore | None = None,
    root_passphrase: bytes | None = None,
) -> Hierarchy:
    """Make root and intermediate in ``config.state_dir``, which must not hold an authority yet.

    The root key goes to ``root_keys`` under ``root_passphrase``, or where the
    intermediate's key goes.

    Raises:
        AuthorityError: there is one already, or the directory can not be used.
    """
    store = _open_empty(config)
    try:
        root = make_root(config, at=at)
        intermediate = make_intermediate(config, root=root, at=at)
        root_id, intermediate_id = profile.key_id(root.certificate), profile.key_id(intermediate.certificate)
        write_key(root_keys or store.keys, root_id, root.key, root_passphrase or passphrase)
        write_key(store.keys, intermediate_id, intermediate.key, passphrase)
        store.add_authorities(
            [
                record_of(AuthorityKind.ROOT, AuthorityState.ACTIVE, root.certificate, root_id, at=at),
                record_of(AuthorityKind.INTERMEDIATE, AuthorityState.ACTIVE, intermediate.certificate, root_id, at=at),
            ]
        )
        write_bundle(config, [root.certificate])
    finally:
        store.close()
    return Hierarchy(issuer=intermediate, roots=(root.certificate,), bundle_sequence=1)


def create_under(config: AuthorityConfig, root: x509.Certificate, *, passphrase: bytes, at: datetime) -> bytes:
    """Begin an authority under somebody else's ``root``; returns the request for its intermediate, in PEM.

    Raises:
        AuthorityError: there is one already, or the directory can not be used.
    """
    store = _open_empty(config)
    try:
        csr = new_request(config, store, passphrase=passphrase)
        root_id = profile.key_id(root)
        store.add_authorities([record_of(AuthorityKind.ROOT, AuthorityState.ACTIVE, root, root_id, at=at)])
        write_bundle(config, [root])
    finally:
        store.close()
    return csr


def new_request(config: AuthorityConfig, store: Store, *, passphrase: bytes) -> bytes:
    """Make a key for an intermediate, keep it, and return the request for its certificate, in PEM."""
    key = new_key()
    write_key(store.keys, key_name(key.public_key()), key, passphrase)
    return external.build_csr(key, trust_domain=config.trust_domain)


def key_name(public_key: CertificatePublicKeyTypes) -> str:
    """What the key of a request is kept under until its certificate comes: what we would call it (RFC 5280 4.2.1.2)."""
    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()


def make_root(config: AuthorityConfig, *, at: datetime) -> profile.Issuer:
    """Make a root of our own, and judge it."""
    key = new_key()
    certificate = profile.build_root(
        trust_domain=config.trust_domain,
        key=key,
        at=at,
        lifetime=timedelta(seconds=config.root_lifetime_s),
        serial=x509.random_serial_number(),
    )
    profile.require_root(certificate, trust_domain=config.trust_domain)
    return profile.Issuer(certificate=certificate, key=key)


def make_intermediate(config: AuthorityConfig, *, root: profile.Issuer, at: datetime) -> profile.Issuer:
    """Make an intermediate under a root of our own, judge it, and rehearse what agents will do with it.

    Raises:
        AuthorityError: no agent would accept what it signs.
    """
    key: PrivateKey = new_key()
    certificate = profile.build_intermediate(
        trust_domain=config.trust_domain,
        public_key=key.public_key(),
        issuer=root,
        at=at,
        lifetime=timedelta(seconds=config.intermediate_lifetime_s),
        serial=x509.random_serial_number(),
    )
    profile.require_intermediate(certificate, issuer=root.certificate, trust_domain=config.trust_domain)
    issuer = profile.Issuer(certificate=certificate, key=key)
    rehearse(issuer=issuer, upstream=(), root=root.certificate, trust_domain=config.trust_domain, at=at)
    return issuer


def record_of(
    kind: AuthorityKind, state: AuthorityState, certificate: x509.Certificate, issuer_key_id: str, *, at: datetime
) -> AuthorityRecord:
    """What the store keeps of a new signing certificate."""
    return AuthorityRecord(
        key_id=profile.key_id(certificate),
        kind=kind,
        state=state,
        certificate=certificate,
        issuer_key_id=issuer_key_id,
        created_at=at,
        since=at,
    )


def require_constrainable(trust_domain: str) -> None:
    """Refuse a trust domain that a name constraint can not name for every verifier.

    SPIFFE-ID 2.1 allows it.  But RFC 5280 4.2.1.10: the host of a constrained URI "MUST be specified as a fully
    qualified domain name"; a leading dot means the hosts below, and Go refuses the others when it reads the chain.

    Raises:
        AuthorityError: an IP address, or a name with an empty label.
    """
    if "" in trust_domain.split(".") or _IPV4.fullmatch(trust_domain):
        raise AuthorityError(
            f"[ca] trust_domain = {trust_domain!r} can not be written into the name constraint of an intermediate "
            "(RFC 5280 4.2.1.10): it must be a name, not an IP address, and not begin or end with a dot or have two in "
            "a row; write a name such as cluster.local"
        )


def _open_empty(config: AuthorityConfig) -> Store:
    require_constrainable(config.trust_domain)
    make_private(config.state_dir)
    if isinstance(config.database, Path):
        make_private(config.keys_dir)
    store = Store.open(config.database, create=True)
    try:
        if store.authorities():
            raise AuthorityError(
                f"{config.state_dir}: there is an authority here already and it is never overwritten; to start anew, "
                "move this directory away (every certificate that it issued then stops being trusted)"
            )
    except BaseException:
        store.close()
        raise
    return store


def make_private(directory: Path) -> None:
    """Make a directory for our eyes only; one that others can enter and that holds something is not ours to close."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            if any(directory.iterdir()):
                raise AuthorityError(
                    f"{directory}: is open to other users and not empty; set state_dir under [ca] to a directory "
                    f"of its own, or run: chmod 0700 {directory}"
                )
            directory.chmod(0o700)
    except OSError as exc:
        raise AuthorityError(f"{directory}: can not be made: {exc.strerror}; set state_dir under [ca]") from exc
