"""Whom this agent believes: the trust in force, replaced whole.

Sans-I/O.  ``trust_feed`` brings what the CA says, ``trust_file`` what the last
run of the agent knew; both end in ``take``.  One trust domain's roots vouch for
that trust domain only: nothing here merges bundles.

Everybody who lets a connection through asks ``require_trusted`` when it is in
the table of live connections already; whoever is called from ``on_changed``
asks again for those that live.  So there is no moment at which a revocation
finds a connection in neither place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.anchors import distinct
from ca.errors import CaProtocolError
from ca.spiffe import SpiffeId
from ca.svid import SvidError, check_signing_certificate, load_certificate
from ca.trust import Revocation, RevocationKind, Trust, TrustBundle, serial_of
from node_agent.errors import CloseReason, ConnectionFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What names one certificate that a connection stands on."""

    identity: SpiffeId
    serial: int


class TrustStore:
    """The ``Trust`` in force, indexed for the questions of every connection.

    ``on_changed`` holds callables that are called after every change, with the
    new trust in place.  They must not raise or block.
    """

    def __init__(self, *, trust_domain: str, roots: Sequence[x509.Certificate]) -> None:
        """``roots`` are what the operator configured: in force until the CA, or the last run, says more."""
        self.trust_domain = trust_domain
        self.on_changed: list[Callable[[], None]] = []
        configured = TrustBundle(
            trust_domain=trust_domain,
            sequence=0,
            refresh_hint_s=0.0,
            x509_der=tuple(root.public_bytes(Encoding.DER) for root in roots),
        )
        self._install(Trust(version=0, bundles=(configured,)), {trust_domain: tuple(roots)})

    @property
    def trust(self) -> Trust:
        """All of it, as the CA sent it."""
        return self._trust

    @property
    def version(self) -> int:
        """The CA's count of changes; 0 before it has told any."""
        return self._trust.version

    @property
    def bundles(self) -> Mapping[str, TrustBundle]:
        """The bundles by trust domain, the own one first."""
        return self._bundles

    def roots(self, trust_domain: str | None = None) -> tuple[x509.Certificate, ...]:
        """The roots of one trust domain (of the own one by default); none if it is not trusted."""
        return self._roots.get(trust_domain or self.trust_domain, ())

    @property
    def anchors(self) -> Mapping[str, frozenset[bytes]]:
        """The roots of each trust domain in DER: what tells whose root a verified chain ends at."""
        return self._anchors

    @property
    def every_root(self) -> tuple[x509.Certificate, ...]:
        """The roots of all trust domains, for OpenSSL's look at a chain; which domain it may vouch for comes after."""
        return self._every_root

    def why_not(self, certificate: Certificate) -> ConnectionFailure | None:
        """Why a certificate whose chain was verified is not to be trusted all the same; None if it is."""
        identity = certificate.identity
        if identity.trust_domain not in self._roots:
            return ConnectionFailure(
                CloseReason.TRUST_REMOVED, f"{identity}: trust domain {identity.trust_domain} is not federated"
            )
        found = self._by_serial.get(certificate.serial) or self._by_identity.get(identity)
        if found is None:
            return None
        return ConnectionFailure(CloseReason.IDENTITY_REVOKED, f"{identity}: {_described(found)}")

    def require_trusted(self, identity: SpiffeId, serial: int) -> None:
        """Raise ConnectionFailure (IDENTITY_REVOKED, TRUST_REMOVED) unless this certificate may be believed."""
        if (
            identity.trust_domain in self._roots
            and serial not in self._by_serial
            and not (self._by_identity and identity in self._by_identity)  # mostly none, and then none is hashed
        ):
            return  # asked for each connection, two to five times
        failure = self.why_not(Certificate(identity=identity, serial=serial))
        assert failure is not None, "the same questions"
        raise failure

    def revocation_of(self, identity: SpiffeId) -> Revocation | None:
        """The revocation of an identity as a whole, if there is one."""
        return self._by_identity.get(identity)

    def take(self, trust: Trust) -> bool:
        """Put ``trust`` in force; returns whether any roots have changed.

        Raises:
            CaProtocolError: it is for another trust domain, or a root in it can not be used; nothing has changed.
        """
        if trust.own.trust_domain != self.trust_domain:
            raise CaProtocolError(
                f"the CA serves trust domain {trust.own.trust_domain!r}, and [agent] trust_domain is "
                f"{self.trust_domain!r}"
            )
        roots = {bundle.trust_domain: _load_roots(bundle) for bundle in trust.bundles}
        # "An empty keys array means trust nothing": of another trust domain that is its business; of our own it
        # would end every connection, and our CA always has a root that it signs with.
        if not roots[self.trust_domain]:
            raise CaProtocolError("the CA sent an empty trust bundle for its own trust domain")
        changed = roots != self._roots
        self._install(trust, roots)
        for call in self.on_changed:
            call()
        return changed

    def restore(self, trust: Trust) -> None:
        """Put in force what was known before; never something older than what is in force.

        Raises:
            CaProtocolError: it is older, or ``take`` refuses it.
        """
        if trust.version < self.version:
            raise CaProtocolError(f"version {trust.version} is older than {self.version}, which is in force")
        self.take(trust)

    def learn_roots(self, roots: Sequence[x509.Certificate]) -> bool:
        """Take the roots that came with a certificate, as long as the CA has not told its trust; True if they are new.

        Raises:
            CaProtocolError: one of them can not be used.
        """
        if self.version or not roots or set(roots) == set(self.roots()):
            return False
        own = replace(self._trust.own, x509_der=tuple(root.public_bytes(Encoding.DER) for root in roots))
        return self.take(replace(self._trust, bundles=(own, *self._trust.bundles[1:])))

    def _install(self, trust: Trust, roots: dict[str, tuple[x509.Certificate, ...]]) -> None:
        self._trust = trust
        self._roots = roots
        self._bundles = {bundle.trust_domain: bundle for bundle in trust.bundles}
        self._anchors = {bundle.trust_domain: frozenset(bundle.x509_der) for bundle in trust.bundles}
        # The CA refuses roots that could be taken for another's; whoever does not trust it in this need not.
        self._every_root, _ = distinct(roots.values())
        self._by_serial: dict[int, Revocation] = {}
        self._by_identity: dict[SpiffeId, Revocation] = {}
        for revocation in trust.revocations:
            match revocation.kind:
                case RevocationKind.SERIAL:
                    self._by_serial[serial_of(revocation.value)] = revocation
                case RevocationKind.IDENTITY:
                    self._by_identity[SpiffeId.parse(revocation.value)] = revocation
                case RevocationKind.NODE:
                    self._by_serial.update(dict.fromkeys(revocation.serials, revocation))


def _load_roots(bundle: TrustBundle) -> tuple[x509.Certificate, ...]:
    try:
        roots = tuple(load_certificate(der) for der in bundle.x509_der)
        for root in roots:
            check_signing_certificate(root, trust_domain=bundle.trust_domain)
    except SvidError as error:
        raise CaProtocolError(f"the CA sent a bad root of {bundle.trust_domain!r}: {error}") from error
    return roots


def _described(revocation: Revocation) -> str:
    subject = {
        RevocationKind.SERIAL: f"certificate {revocation.value} is revoked",
        RevocationKind.IDENTITY: "this identity is revoked",
        RevocationKind.NODE: f"issued to node {revocation.value}, which is revoked",
    }[revocation.kind]
    since = f"{subject} since {revocation.at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{since}: {revocation.why}" if revocation.why else since
