"""Which roots may vouch for whom, when several trust domains are trusted.

OpenSSL is given the roots of every trust domain that is trusted, because it can
not know beforehand whose certificate will come.  Bundles are kept apart here,
in two places:

* afterwards, ``require_own_bundle``: a leaf is judged by the bundle of its own
  trust domain and no other, whoever else knows the root that its chain ends
  at.  SPIFFE Federation 4.2: bundles "MUST NOT be merged", which "would enable
  one trust domain to forge identities belonging to another".
* before, ``distinct``: OpenSSL looks issuers up by name and key identifier,
  takes the first that fits and does not go back.  A federated trust domain
  that publishes a root with the name and the key identifier of one of ours (or
  of somebody else's) could not forge anything, but could make every chain
  under the real one fail.  Such a root is left out.

Sans-I/O.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.spiffe import SpiffeId
from ca.svid import SvidError, identity_of, verify_chain


class UntrustedDomainError(SvidError):
    """A certificate of a trust domain that we have no bundle of."""


class Confusion(NamedTuple):
    """A root that was left out, because ``real`` is looked up by the same name and key identifier."""

    root: x509.Certificate
    real: x509.Certificate


def require_own_bundle(identity: SpiffeId, root_der: bytes, *, bundles: Mapping[str, Collection[bytes]]) -> None:
    """Check that the root that a chain ends at is one of the leaf's own trust domain.

    ``bundles`` are the roots of each trust domain that is trusted, in DER.

    Raises:
        SvidError: it is not.
        UntrustedDomainError: there is no bundle of that trust domain.
    """
    bundle = bundles.get(identity.trust_domain)
    if bundle is None and not any(root_der in other for other in bundles.values()):
        raise UntrustedDomainError(
            f"{identity} is of trust domain {identity.trust_domain!r}, which is not federated", "SPIFFE Federation 6.1"
        )
    if bundle is None or root_der not in bundle:
        raise SvidError(
            f"{identity} is vouched for by a root that is not in the bundle of {identity.trust_domain!r}",
            "SPIFFE Federation 4.2",
        )


def verify_by_bundles(chain: Sequence[x509.Certificate], *, bundles: Mapping[str, Collection[bytes]]) -> SpiffeId:
    """Check a chain that OpenSSL built to a root of *any* bundle, but for its dates; return who the leaf is.

    Raises:
        SvidError: the first rule that the leaf or a signing certificate breaks.
        UntrustedDomainError: there is no bundle of the leaf's trust domain.
    """
    identity = identity_of(chain[0])
    require_own_bundle(identity, chain[-1].public_bytes(Encoding.DER), bundles=bundles)
    return verify_chain(chain, trust_domain=identity.trust_domain)


def distinct(
    bundles: Iterable[Sequence[x509.Certificate]], *, issuers: Sequence[x509.Certificate] = ()
) -> tuple[tuple[x509.Certificate, ...], tuple[Confusion, ...]]:
    """Return the roots of all ``bundles`` that OpenSSL can tell apart, and those that were left out.

    Earlier bundles win: put the own one first.  ``issuers`` are certificates
    of our own hierarchy that roots must not be taken for either.
    """
    known: dict[_LookedUpBy, list[x509.Certificate]] = {}
    for issuer in issuers:
        known.setdefault(_looked_up_by(issuer), []).append(issuer)
    kept: dict[x509.Certificate, None] = {}
    confusions = []
    for bundle in bundles:
        # Roots of one bundle may well share a name: that is its owner's business, and nobody else's harm.
        for root in bundle:
            real = next((each for each in known.get(_looked_up_by(root), ()) if _taken_for(root, each)), None)
            if real is None:
                kept[root] = None
            else:
                confusions.append(Confusion(root, real))
        for root in bundle:
            known.setdefault(_looked_up_by(root), []).append(root)
    return tuple(kept), tuple(confusions)


_LookedUpBy = tuple[frozenset[tuple[str, str]], ...]


def _looked_up_by(certificate: x509.Certificate) -> _LookedUpBy:
    """The subject as OpenSSL compares it: without regard to case and to the amount of white space.

    Where its rules are narrower than Python's (ASCII only), more names are equal here than there: the safe side.
    """
    return tuple(
        frozenset((part.oid.dotted_string, " ".join(str(part.value).split()).casefold()) for part in rdn)
        for rdn in certificate.subject.rdns
    )


def _taken_for(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether a chain under ``other`` could be given ``one`` as its issuer; the subjects are equal."""
    identifiers = [_key_identifier(one), _key_identifier(other)]
    return one != other and (None in identifiers or identifiers[0] == identifiers[1])


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None
