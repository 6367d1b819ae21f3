"""What the server signs with: loaded from the store, judged, and published as ``bundle.pem``.

    root key          encrypted; needed only to sign an intermediate, and may be elsewhere
    intermediate key  encrypted; in memory while the server runs
    certificates      in the store, with a state: see ``rotation.py``
    bundle.pem        the roots, public: what agents are configured with

``succession.py`` changes the hierarchy; the server loads it again when it has changed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.authority import external, profile
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.keys import read_key, write_durably
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.rotation import longest_uncut_lifetime
from ca.authority.store import Store
from ca.svid import SvidError, check_signing_certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """The active intermediate, the certificates between it and its root, and the roots that are published.

    ``bundle_sequence`` counts the changes of the published roots: one for each
    that came and one for each that went.
    """

    issuer: profile.Issuer
    upstream: tuple[x509.Certificate, ...] = ()
    roots: tuple[x509.Certificate, ...]
    bundle_sequence: int
    # Worked out once: each costs a tenth of what signing a certificate does.
    issuer_key_id: str = field(init=False)
    issuer_not_after: datetime = field(init=False)
    chain_der: tuple[bytes, ...] = field(init=False)
    roots_der: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        sent = (self.issuer.certificate, *self.upstream)
        object.__setattr__(self, "issuer_key_id", profile.key_id(self.issuer.certificate))
        object.__setattr__(self, "issuer_not_after", self.issuer.certificate.not_valid_after_utc)
        object.__setattr__(self, "chain_der", tuple(_der(certificate) for certificate in sent))
        object.__setattr__(self, "roots_der", tuple(_der(root) for root in self.roots))


def load(config: AuthorityConfig, store: Store, *, passphrase: bytes, at: datetime) -> Hierarchy:
    """Load what the server signs with, and judge it as if somebody else had made it.

    Raises:
        AuthorityError: nothing there, damaged, of another trust domain, or expired.
    """
    records = store.authorities()
    issuer = _signing(config, records)
    chain = chain_of(issuer, records)
    intermediate, upstream, root = chain[0], chain[1:-1], chain[-1]
    try:
        external.require_root(root, trust_domain=config.trust_domain)
        external.require_chain(chain[:-1], root=root, trust_domain=config.trust_domain)
        key = read_key(store.keys, issuer.key_id, passphrase)
        signing = profile.Issuer(certificate=intermediate, key=key)
    except (profile.ProfileError, SvidError) as exc:
        raise _does_not_fit(config, exc) from exc
    _require_time_left(config, intermediate, at=at)
    require_long_enough(intermediate, svid_ttl_s=config.svid_ttl_s)
    return Hierarchy(
        issuer=signing,
        upstream=tuple(upstream),
        roots=published_roots(records),
        bundle_sequence=_bundle_sequence(records),
    )


def require_ours(config: AuthorityConfig, records: Sequence[AuthorityRecord]) -> None:
    """Refuse to work on an authority of another trust domain than ca.toml names.

    Raises:
        AuthorityError: there is no authority, or it is of another trust domain.
    """
    if not records:
        raise _nothing_there(config)
    try:
        for record in (each for each in records if each.state is not AuthorityState.RETIRED):
            check_signing_certificate(record.certificate, trust_domain=config.trust_domain)
    except SvidError as exc:
        raise _does_not_fit(config, exc) from exc


def chain_of(record: AuthorityRecord, records: Sequence[AuthorityRecord]) -> list[x509.Certificate]:
    """The certificates from ``record`` up to its root.

    Raises:
        AuthorityError: one of them is missing.
    """
    by_id = {each.key_id: each for each in records}
    chain = [record.certificate]
    while record.kind is not AuthorityKind.ROOT:
        if record.issuer_key_id not in by_id or len(chain) > len(records):
            raise AuthorityError(
                f"the issuer {record.issuer_key_id} of {record.key_id} is not in the database; restore it from a backup"
            )
        record = by_id[record.issuer_key_id]
        chain.append(record.certificate)
    return chain


def published_roots(records: Iterable[AuthorityRecord]) -> tuple[x509.Certificate, ...]:
    """The trust bundle: every root but those that are retired."""
    return tuple(
        record.certificate
        for record in records
        if record.kind is AuthorityKind.ROOT and record.state is not AuthorityState.RETIRED
    )


def require_long_enough(intermediate: x509.Certificate, *, svid_ttl_s: int) -> None:
    """Refuse an intermediate whose rotation would cut SVIDs short.

    Raises:
        AuthorityError: naming both lifetimes, and the longest TTL that it allows.
    """
    lifetime = intermediate.not_valid_after_utc - intermediate.not_valid_before_utc
    longest_s = int(longest_uncut_lifetime(lifetime).total_seconds())
    if svid_ttl_s > longest_s:
        raise AuthorityError(
            f"svid_ttl_s = {svid_ttl_s} under [ca] is too long for the intermediate, which lives for "
            f"{lifetime.total_seconds():.0f} s: its rotation would cut SVIDs short; set {longest_s} at most, a sixth "
            "of its life, or use an intermediate that lives longer"
        )


def write_bundle(config: AuthorityConfig, roots: Iterable[x509.Certificate]) -> None:
    """Write the roots as PEM, if they are not there; public, but for its directory: copy it to the agents."""
    pem = b"".join(root.public_bytes(serialization.Encoding.PEM) for root in roots)
    if _content(config.bundle_file) != pem:
        # A replica whose hierarchy is in PostgreSQL begins without a directory of its own.
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(config.bundle_file, pem, mode=0o644)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _signing(config: AuthorityConfig, records: Sequence[AuthorityRecord]) -> AuthorityRecord:
    active = [
        record
        for record in records
        if record.kind is AuthorityKind.INTERMEDIATE and record.state is AuthorityState.ACTIVE
    ]
    if len(active) == 1:
        return active[0]
    if records:
        raise AuthorityError(
            f"{config.database}: there is a root, but no intermediate to sign with: have the request of "
            "`ringfence ca init --intermediate-csr` signed, then run: ringfence ca install-intermediate FILE"
        )
    raise _nothing_there(config)


def _nothing_there(config: AuthorityConfig) -> AuthorityError:
    return AuthorityError(f"{config.database}: there is no authority here yet; make one with: ringfence ca init")


def _does_not_fit(config: AuthorityConfig, problem: Exception) -> AuthorityError:
    return AuthorityError(
        f"{config.database}: the stored authority does not fit [ca] trust_domain = {config.trust_domain!r}: {problem}; "
        "set the trust domain that it was made for, or restore a backup"
    )


def _require_time_left(config: AuthorityConfig, intermediate: x509.Certificate, *, at: datetime) -> None:
    not_before, not_after = intermediate.not_valid_before_utc, intermediate.not_valid_after_utc
    if not_after - at < min(profile.MIN_LIFETIME, timedelta(seconds=config.svid_ttl_s)):
        raise AuthorityError(
            f"{config.database}: the intermediate ends at {not_after:%Y-%m-%d %H:%M:%S} UTC, too soon to sign with; "
            "run: ringfence ca rotate intermediate; also check that this machine's clock is right"
        )
    if not_before > at:
        raise AuthorityError(
            f"{config.database}: the intermediate is valid from {not_before:%Y-%m-%d %H:%M:%S} "
            f"UTC, but this machine's clock says {at:%Y-%m-%d %H:%M:%S}: set the clock; or, if it was wrong when the "
            "intermediate was made, run: ringfence ca rotate intermediate --force"
        )


def _bundle_sequence(records: Sequence[AuthorityRecord]) -> int:
    roots = [record for record in records if record.kind is AuthorityKind.ROOT]
    return len(roots) + sum(record.state is AuthorityState.RETIRED for record in roots)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
