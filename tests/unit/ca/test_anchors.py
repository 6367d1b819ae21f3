"""Trust domains side by side: who may vouch for whom, and whose root may not pass for another's."""

from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from ca.anchors import UntrustedDomainError, distinct, verify_by_bundles
from ca.svid import SvidError
from tests.certificates import TRUST_DOMAIN, WEB, Signer, der, make_root
from tests.svid_vectors.chains import OTHER_DOMAIN


def test_a_trust_domain_that_is_not_federated_is_called_that() -> None:
    leaf = make_root(OTHER_DOMAIN).leaf(f"spiffe://{OTHER_DOMAIN}/web")
    with pytest.raises(UntrustedDomainError, match="not federated"):
        verify_by_bundles(leaf.chain, bundles={TRUST_DOMAIN: (der(make_root().certificate),)})


def test_an_empty_bundle_trusts_nothing() -> None:
    leaf = make_root().leaf(WEB)
    with pytest.raises(SvidError, match="not in the bundle"):
        verify_by_bundles(leaf.chain, bundles={TRUST_DOMAIN: ()})


def _twin(of: Signer, **changes: Any) -> Signer:
    """A root of another trust domain that is looked up as ``of`` is, with another key."""
    identifier = of.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    wanted = {"subject": of.certificate.subject, "key_identifier": identifier, **changes}
    return make_root(OTHER_DOMAIN, names=(), **wanted)


def test_a_root_with_the_name_and_key_identifier_of_ours_is_left_out() -> None:
    ours = make_root()
    twin = _twin(ours)
    kept, (confusion,) = distinct([(ours.certificate,), (twin.certificate,)])
    assert kept == (ours.certificate,)
    assert (confusion.root, confusion.real) == (twin.certificate, ours.certificate)


def test_names_are_compared_as_openssl_does() -> None:
    ours = make_root(subject=_name("The  Root"))
    for text in ("the root", " THE\tROOT "):
        kept, confusions = distinct([(ours.certificate,), (_twin(ours, subject=_name(text)).certificate,)])
        assert kept == (ours.certificate,), text
        assert len(confusions) == 1


def test_the_same_name_with_another_key_identifier_can_be_told_apart() -> None:
    ours, theirs = make_root(subject=_name("Root")), make_root(OTHER_DOMAIN, subject=_name("Root"))
    kept, confusions = distinct([(ours.certificate,), (theirs.certificate,)])
    assert kept == (ours.certificate, theirs.certificate)
    assert confusions == ()


def test_the_very_same_root_in_two_bundles_is_no_confusion() -> None:
    shared, more = make_root(names=()), make_root(OTHER_DOMAIN)
    kept, confusions = distinct([(shared.certificate,), (more.certificate, shared.certificate)])
    assert kept == (shared.certificate, more.certificate)
    assert confusions == ()


def test_roots_of_one_bundle_may_share_a_name() -> None:
    first = make_root(subject=_name("Root"), names=())
    again = make_root(subject=_name("Root"), key=first.key, names=())
    kept, confusions = distinct([(first.certificate, again.certificate)])
    assert kept == (first.certificate, again.certificate)
    assert confusions == ()


def test_a_root_that_passes_for_our_intermediate_is_left_out() -> None:
    ours = make_root()
    intermediate = ours.intermediate()
    twin = _twin(intermediate)
    assert distinct([(ours.certificate,), (twin.certificate,)])[1] == ()
    kept, (confusion,) = distinct([(ours.certificate,), (twin.certificate,)], issuers=[intermediate.certificate])
    assert kept == (ours.certificate,)
    assert confusion.real == intermediate.certificate


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
