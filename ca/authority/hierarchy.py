"""Root and intermediate: made once by ``ringfence ca init``, loaded by ``serve``.

    root key          encrypted file, needed only to sign an intermediate
    intermediate key  encrypted file, in memory while the server runs
    certificates      in the store, with a state: prepared, active, retired
    bundle.pem        the roots, public: what agents are configured with

The keys are written first and the certificates last, in one transaction: an
``init`` that was cut off leaves no authority, and can be run again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.authority import profile
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.keys import read_key, write_durably, write_key
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.store import Store
from ca.csr import new_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """What the server signs with: the active intermediate, and the roots that are published.

    ``bundle_sequence`` counts the changes of the published roots: one for each
    that came and one for each that went.
    """

    issuer: profile.Issuer
    roots: tuple[x509.Certificate, ...]
    bundle_sequence: int

    @property
    def issuer_key_id(self) -> str:
        """The subject key identifier of the active intermediate."""
        return profile.key_id(self.issuer.certificate)

    @property
    def roots_der(self) -> tuple[bytes, ...]:
        """The trust bundle as it goes over the wire."""
        return tuple(root.public_bytes(serialization.Encoding.DER) for root in self.roots)


def create(config: AuthorityConfig, *, passphrase: bytes, at: datetime) -> Hierarchy:
    """Make root and intermediate in ``config.state_dir``, which must not hold an authority yet.

    Raises:
        AuthorityError: there is one already, or the directory can not be used.
    """
    _make_private(config.state_dir)
    _make_private(config.keys_dir)
    store = Store.open(config.database, create=True)
    try:
        if store.authorities():
            raise AuthorityError(
                f"{config.state_dir}: there is an authority here already and it is never overwritten; to start anew, "
                "move this directory away (every certificate that it issued then stops being trusted)"
            )
        root_key, intermediate_key = new_key(), new_key()
        root = profile.build_root(
            trust_domain=config.trust_domain,
            key=root_key,
            at=at,
            lifetime=profile.ROOT_LIFETIME,
            serial=x509.random_serial_number(),
        )
        profile.require_root(root, trust_domain=config.trust_domain)
        intermediate = profile.build_intermediate(
            trust_domain=config.trust_domain,
            public_key=intermediate_key.public_key(),
            issuer=profile.Issuer(certificate=root, key=root_key),
            at=at,
            lifetime=profile.INTERMEDIATE_LIFETIME,
            serial=x509.random_serial_number(),
        )
        profile.require_intermediate(intermediate, issuer=root, trust_domain=config.trust_domain)
        root_id, intermediate_id = profile.key_id(root), profile.key_id(intermediate)
        write_key(store.keys, root_id, root_key, passphrase)
        write_key(store.keys, intermediate_id, intermediate_key, passphrase)
        store.add_authorities(
            [
                _active(AuthorityKind.ROOT, root, issuer_key_id=root_id, at=at),
                _active(AuthorityKind.INTERMEDIATE, intermediate, issuer_key_id=root_id, at=at),
            ]
        )
        write_bundle(config, [root])
    finally:
        store.close()
    return Hierarchy(
        issuer=profile.Issuer(certificate=intermediate, key=intermediate_key), roots=(root,), bundle_sequence=1
    )


def load(config: AuthorityConfig, store: Store, *, passphrase: bytes, at: datetime) -> Hierarchy:
    """Load what the server signs with, and judge it as if somebody else had made it.

    Raises:
        AuthorityError: nothing there, damaged, of another trust domain, or expired.
    """
    every = store.authorities()
    every_root = [record for record in every if record.kind is AuthorityKind.ROOT]
    retired_roots = [record for record in every_root if record.state is AuthorityState.RETIRED]
    records = [record for record in every if record.state is not AuthorityState.RETIRED]
    roots = {record.key_id: record.certificate for record in records if record.kind is AuthorityKind.ROOT}
    signing = [
        record
        for record in records
        if record.kind is AuthorityKind.INTERMEDIATE and record.state is AuthorityState.ACTIVE
    ]
    if not roots or len(signing) != 1:
        raise AuthorityError(f"{config.database}: there is no authority here yet; make one with: ringfence ca init")
    intermediate = signing[0].certificate
    try:
        for root in roots.values():
            profile.require_root(root, trust_domain=config.trust_domain)
        profile.require_intermediate(
            intermediate, issuer=roots[signing[0].issuer_key_id], trust_domain=config.trust_domain
        )
        key = read_key(store.keys, signing[0].key_id, passphrase)
        issuer = profile.Issuer(certificate=intermediate, key=key)
    except (profile.ProfileError, KeyError) as exc:
        raise AuthorityError(
            f"{config.database}: the stored authority does not fit [ca] trust_domain = {config.trust_domain!r}: {exc}; "
            "set the trust domain that it was made for, or restore a backup"
        ) from exc
    if intermediate.not_valid_after_utc - at < timedelta(seconds=config.svid_ttl_s):
        raise AuthorityError(
            f"{config.database}: the intermediate ends at {intermediate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC, "
            "too soon to sign with; also check that this machine's clock is right"
        )
    if intermediate.not_valid_before_utc > at:
        raise AuthorityError(
            f"{config.database}: the intermediate is valid from {intermediate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} "
            f"UTC, but this machine's clock says {at:%Y-%m-%d %H:%M:%S}: set the clock"
        )
    return Hierarchy(issuer=issuer, roots=tuple(roots.values()), bundle_sequence=len(every_root) + len(retired_roots))


def write_bundle(config: AuthorityConfig, roots: Iterable[x509.Certificate]) -> None:
    """Write the roots as PEM; the file is public, its directory is not: copy it to the agents."""
    pem = b"".join(root.public_bytes(serialization.Encoding.PEM) for root in roots)
    write_durably(config.bundle_file, pem, mode=0o644)


def _active(kind: AuthorityKind, certificate: x509.Certificate, *, issuer_key_id: str, at: datetime) -> AuthorityRecord:
    return AuthorityRecord(
        key_id=profile.key_id(certificate),
        kind=kind,
        state=AuthorityState.ACTIVE,
        certificate=certificate,
        issuer_key_id=issuer_key_id,
        created_at=at,
        since=at,
    )


def _make_private(directory: Path) -> None:
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
