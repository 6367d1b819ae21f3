"""Trust bundles as documents: every vector, what is written is read back, and which bundle follows which."""

import json

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.bundle import (
    BundleError,
    parse_bundle,
    parse_bundle_map,
    require_successor,
    write_bundle,
    write_bundle_map,
)
from ca.trust import JwtKey, TrustBundle
from tests.certificates import TRUST_DOMAIN, der, make_root, p256, rsa_key
from tests.svid_vectors.bundles import BundleVector, bundle_vectors


def _parsed(vector: BundleVector) -> TrustBundle:
    if vector.is_map:
        return parse_bundle_map(vector.document)[TRUST_DOMAIN]
    return parse_bundle(vector.document, trust_domain=TRUST_DOMAIN)


@pytest.mark.parametrize("vector", [v for v in bundle_vectors() if v.accepted], ids=lambda v: v.name)
def test_a_good_bundle_is_read(vector: BundleVector) -> None:
    bundle = _parsed(vector)
    assert bundle.trust_domain == TRUST_DOMAIN
    assert bundle.x509_der == vector.roots
    assert tuple(key.key_id for key in bundle.jwt_keys) == vector.key_ids
    assert (bundle.sequence, bundle.refresh_hint_s) == (vector.sequence, vector.hint_s)


@pytest.mark.parametrize("vector", [v for v in bundle_vectors() if not v.accepted], ids=lambda v: v.name)
def test_a_broken_rule_is_named_with_its_section(vector: BundleVector) -> None:
    with pytest.raises(BundleError) as caught:
        _parsed(vector)
    assert vector.says in str(caught.value)
    assert caught.value.section
    assert caught.value.section in str(caught.value)


@pytest.mark.parametrize("vector", [v for v in bundle_vectors() if v.accepted and not v.is_map], ids=lambda v: v.name)
def test_what_was_read_is_written_and_read_back(vector: BundleVector) -> None:
    bundle = _parsed(vector)
    assert parse_bundle(write_bundle(bundle), trust_domain=TRUST_DOMAIN) == bundle


def _bundle(sequence: int = 1, roots: int = 1, trust_domain: str = TRUST_DOMAIN) -> TrustBundle:
    keys = []
    for name, key in (("a", p256()), ("b", rsa_key(2048))):
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        keys.append(JwtKey(key_id=name, public_key_der=public))
    return TrustBundle(
        trust_domain=trust_domain,
        sequence=sequence,
        refresh_hint_s=120.0,
        x509_der=tuple(der(make_root(trust_domain).certificate) for _ in range(roots)),
        jwt_keys=tuple(keys),
    )


def test_our_own_bundle_says_what_other_programs_want_to_read() -> None:
    bundle = _bundle(sequence=9)
    document = json.loads(write_bundle(bundle))
    root, first, second = document["keys"]
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (9, 120)
    assert (root["use"], root["kty"], root["crv"], len(root["x5c"])) == ("x509-svid", "EC", "P-256", 1)
    assert "kid" not in root
    assert [(key["use"], key["kty"], key["kid"]) for key in (first, second)] == [
        ("jwt-svid", "EC", "a"),
        ("jwt-svid", "RSA", "b"),
    ]
    assert write_bundle(bundle) == write_bundle(bundle)


def test_a_map_is_read_back_bundle_by_bundle() -> None:
    ours, theirs = _bundle(), _bundle(trust_domain="other.example")
    read = parse_bundle_map(write_bundle_map([ours, theirs]))
    assert read == {TRUST_DOMAIN: ours, "other.example": theirs}


def test_no_root_of_one_bundle_can_come_in_as_another_trust_domains() -> None:
    with pytest.raises(BundleError, match="X509-SVID 5.1"):
        parse_bundle(write_bundle(_bundle()), trust_domain="other.example")


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 2**64 - 1), (0, 1), (0, 0), (7, 0)])
def test_a_higher_sequence_number_or_none_follows(old: int, new: int) -> None:
    require_successor(_bundle(new), _bundle(old))


def test_the_same_bundle_again_is_no_change() -> None:
    bundle = _bundle(3)
    require_successor(bundle, bundle)


def test_a_lower_sequence_number_is_refused() -> None:
    with pytest.raises(BundleError, match="gone back from 3 to 2"):
        require_successor(_bundle(2), _bundle(3))


def test_other_keys_under_the_same_number_are_refused() -> None:
    with pytest.raises(BundleError, match="same sequence number"):
        require_successor(_bundle(3), _bundle(3))
