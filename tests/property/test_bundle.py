"""Bundles as documents, whatever the bytes: a bundle or a BundleError, and what is written is read back."""

import functools
import json
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ca.authority.federation.intake import accept
from ca.bundle import (
    BundleError,
    parse_bundle,
    parse_bundle_map,
    require_successor,
    write_bundle,
    write_bundle_map,
)
from ca.trust import JwtKey, TrustBundle
from ca.wire import pack, unpack
from tests.certificates import TRUST_DOMAIN, der, make_root, p256, rsa_key
from tests.svid_vectors.bundles import jwt_entry, x509_entry

_DOMAINS: Final = (TRUST_DOMAIN, "other.example", "third.example")


@functools.cache
def _roots(trust_domain: str) -> tuple[bytes, ...]:
    return tuple(der(make_root(trust_domain).certificate) for _ in range(4))


@functools.cache
def _public_keys() -> tuple[bytes, ...]:
    keys = (p256(), p256(), rsa_key(2048))
    return tuple(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys)


@st.composite
def bundles(draw: st.DrawFn, trust_domain: str | None = None) -> TrustBundle:
    domain = trust_domain or draw(st.sampled_from(_DOMAINS))
    names = draw(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=3))
    return TrustBundle(
        trust_domain=domain,
        sequence=draw(st.integers(0, 2**64 - 1)),
        refresh_hint_s=float(draw(st.integers(1, 366 * 86_400))),
        x509_der=tuple(draw(st.lists(st.sampled_from(_roots(domain)), unique=True))),
        jwt_keys=tuple(JwtKey(key_id=name, public_key_der=draw(st.sampled_from(_public_keys()))) for name in names),
    )


@given(bundles())
def test_a_bundle_that_was_written_is_read_back(bundle: TrustBundle) -> None:
    assert parse_bundle(write_bundle(bundle), trust_domain=bundle.trust_domain) == bundle


@given(bundles())
def test_whatever_is_accepted_can_be_told_to_agents(bundle: TrustBundle) -> None:
    read = accept(write_bundle(bundle), trust_domain=bundle.trust_domain, in_force=None, others=(), issuers=())
    assert TrustBundle.from_wire(unpack(pack(read.to_wire()), 2**20)) == read


@given(bundles())
def test_a_bundle_is_never_taken_for_another_trust_domains(bundle: TrustBundle) -> None:
    for other in _DOMAINS:
        if other != bundle.trust_domain and bundle.x509_der:
            try:
                parse_bundle(write_bundle(bundle), trust_domain=other)
            except BundleError:
                continue
            raise AssertionError("roots of one trust domain were read as another's")


@given(st.lists(bundles(), unique_by=lambda bundle: bundle.trust_domain))
def test_a_map_that_was_written_is_read_back_but_for_the_hints(members: list[TrustBundle]) -> None:
    read = parse_bundle_map(write_bundle_map(members))
    assert {name: (each.sequence, each.x509_der, each.jwt_keys) for name, each in read.items()} == {
        each.trust_domain: (each.sequence, each.x509_der, each.jwt_keys) for each in members
    }


@given(st.binary(max_size=300))
def test_any_bytes_are_a_bundle_or_a_bundle_error(data: bytes) -> None:
    for read in (lambda: parse_bundle(data, trust_domain=TRUST_DOMAIN), lambda: parse_bundle_map(data)):
        try:
            read()
        except BundleError as error:
            assert error.section


_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@functools.cache
def _entries() -> tuple[dict[str, Any], ...]:
    return (x509_entry(make_root()), jwt_entry(), jwt_entry(rsa_key(2048), kid="two"))


@given(st.data())
def test_a_bundle_with_anything_anywhere_is_a_bundle_or_a_bundle_error(data: st.DataObject) -> None:
    entry = dict(data.draw(st.sampled_from(_entries())))
    entry[data.draw(st.sampled_from([*entry, "d", "kid", "new"]))] = data.draw(_values)
    document: dict[str, Any] = {"keys": [entry], "spiffe_sequence": 1, "spiffe_refresh_hint": 1}
    if data.draw(st.booleans()):
        document[data.draw(st.sampled_from([*document, "new"]))] = data.draw(_values)
    try:
        found = parse_bundle(json.dumps(document).encode(), trust_domain=TRUST_DOMAIN)
    except BundleError:
        return
    assert parse_bundle(write_bundle(found), trust_domain=TRUST_DOMAIN).x509_der == found.x509_der
    assert TrustBundle.from_wire(unpack(pack(found.to_wire()), 2**20)) == found


@given(bundles(TRUST_DOMAIN), bundles(TRUST_DOMAIN))
def test_no_chain_of_successors_ever_goes_back(old: TrustBundle, new: TrustBundle) -> None:
    try:
        require_successor(new, old)
    except BundleError:
        assert new.sequence <= old.sequence
        return
    assert not new.sequence or not old.sequence or new.sequence >= old.sequence
    if new.sequence == old.sequence != 0:
        assert (new.x509_der, new.jwt_keys) == (old.x509_der, old.jwt_keys)
