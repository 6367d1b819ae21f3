"""Whether a document that arrived may take the place of the bundle in force.

Sans-I/O.  ``ca.bundle`` says whether it is a bundle at all; here is what only
somebody can say who knows the earlier one and the other trust domains.
"""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.anchors import distinct
from ca.authority.federation.relation import RelationError
from ca.bundle import (
    DEFAULT_REFRESH_HINT_S,
    MAX_BUNDLE_BYTES,
    BundleError,
    parse_bundle,
    parse_bundle_map,
    require_successor,
)
from ca.svid import SvidError, check_signing_certificate, load_certificate
from ca.trust import MAX_BUNDLES, MAX_ROOTS, TrustBundle
from ca.wire import MAX_FRAME_BYTES, WireError, pack, unpack

# All of them go to every agent in one frame of 1 MiB, and revocations may take 704 KiB of it.
MAX_TOTAL_BYTES: Final = 224 * 1024
_PEM: Final = b"-----BEGIN "


def accept(
    document: bytes,
    *,
    trust_domain: str,
    in_force: TrustBundle | None,
    others: Sequence[TrustBundle],
    issuers: Sequence[x509.Certificate],
) -> TrustBundle:
    """Read what ``trust_domain``'s endpoint answered.

    Args:
        document: the body.
        trust_domain: the one that the operator bound to the endpoint; the document itself does not say.
        in_force: its bundle so far.
        others: the bundles of every other trust domain, our own first.
        issuers: the signing certificates of our own hierarchy.

    Raises:
        BundleError: it may not; the bundle in force stays.
    """
    found = parse_bundle(document, trust_domain=trust_domain)
    if in_force is not None:
        require_successor(found, in_force)
    require_room(found, others=others)
    require_distinct(found, others=others, issuers=issuers)
    return found


def read_bootstrap(data: bytes, *, trust_domain: str) -> TrustBundle:
    """Read the first bundle of ``trust_domain`` from a file: JWK set, bundle map or PEM.

    Raises:
        BundleError: it is none of them, or not of that trust domain.
    """
    if _PEM in data[:MAX_BUNDLE_BYTES]:
        return _from_pem(data, trust_domain)
    if b'"trust_domains"' in data:
        bundles = parse_bundle_map(data)
        if trust_domain not in bundles:
            raise BundleError(f"the bundle map has no bundle of {trust_domain!r}", "TDB 5.1.1")
        return bundles[trust_domain]
    return parse_bundle(data, trust_domain=trust_domain)


def require_federable(trust_domain: str, *, own: str, federated: Sequence[str]) -> None:
    """Check that a relation with ``trust_domain`` may be added.

    Raises:
        RelationError: it is our own, or there are too many.
    """
    if trust_domain == own:
        raise RelationError(f"{trust_domain!r} is this authority's own trust domain: nothing to federate with")
    if trust_domain in federated:
        raise RelationError(f"{trust_domain!r} is federated already: remove it first, to change it")
    if len(federated) + 1 >= MAX_BUNDLES:
        raise RelationError(f"there are {len(federated)} federated trust domains already, which is as many as can be")


def require_room(found: TrustBundle, *, others: Sequence[TrustBundle]) -> None:
    """Check that all bundles together can still be sent to an agent.  Raises BundleError."""
    try:
        told = TrustBundle.from_wire(unpack(pack(found.to_wire()), MAX_FRAME_BYTES))
    except (WireError, ValueError) as error:
        raise BundleError(f"agents could not be told: {error}", "TDB 4") from error
    assert told == found, "what agents read is what was sent"
    total = sum(len(pack(bundle.to_wire())) for bundle in (found, *others))
    if total > MAX_TOTAL_BYTES:
        raise BundleError(
            f"all bundles together would have {total} bytes, more than the {MAX_TOTAL_BYTES} that agents can be sent",
            "TDB 4",
        )


def require_distinct(found: TrustBundle, *, others: Sequence[TrustBundle], issuers: Sequence[x509.Certificate]) -> None:
    """Check that no root of ``found`` could be taken for somebody else's.  Raises BundleError."""
    bundles = [[load_certificate(der) for der in bundle.x509_der] for bundle in (*others, found)]
    _, confusions = distinct(bundles, issuers=issuers)
    for confusion in confusions:
        if confusion.root in bundles[-1]:
            raise BundleError(
                f"the root {confusion.root.subject.rfc4514_string()!r} has the name and the key identifier of another "
                "trust domain's, with another key: chains could not be told apart",
                "RFC 5280 4.2.1.2",
            )


def _from_pem(data: bytes, trust_domain: str) -> TrustBundle:
    try:
        roots = x509.load_pem_x509_certificates(data)
        for root in roots:
            check_signing_certificate(root, trust_domain=trust_domain)
    except SvidError as error:
        raise BundleError(error.rule, error.section) from error
    except ValueError as error:
        raise BundleError("the PEM file holds something else than certificates", "RFC 7468 5") from error
    if len(roots) > MAX_ROOTS:
        raise BundleError(f"more than {MAX_ROOTS} roots", "TDB 4.1.3")
    ders = dict.fromkeys(root.public_bytes(Encoding.DER) for root in roots)
    return TrustBundle(
        trust_domain=trust_domain, sequence=0, refresh_hint_s=DEFAULT_REFRESH_HINT_S, x509_der=tuple(ders)
    )
