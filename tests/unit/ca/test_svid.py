"""X509-SVID: every vector of tests/svid_vectors that ca.svid has to judge."""

from datetime import timedelta

import pytest
from cryptography import x509

from ca.anchors import verify_by_bundles
from ca.spiffe import SpiffeId
from ca.svid import (
    SvidDateError,
    SvidError,
    check_dates,
    identity_of,
    load_certificate,
    verify_chain,
)
from tests.certificates import TRUST_DOMAIN, WEB, der, make_root
from tests.svid_vectors.chains import Vector, vectors


def _judge(vector: Vector) -> SpiffeId:
    identity = verify_by_bundles(vector.leaf.chain, bundles=vector.bundles_der)
    for certificate in vector.leaf.chain:
        check_dates(certificate, at=vector.at)
    return identity


@pytest.mark.parametrize("vector", [v for v in vectors() if v.accepted], ids=lambda v: v.name)
def test_a_good_chain_is_accepted(vector: Vector) -> None:
    assert str(_judge(vector)) == _name_of(vector)


@pytest.mark.parametrize("vector", [v for v in vectors() if not v.accepted and not v.openssl], ids=lambda v: v.name)
def test_a_bad_chain_is_rejected(vector: Vector) -> None:
    with pytest.raises(SvidError) as caught:
        _judge(vector)
    assert isinstance(caught.value, SvidDateError) is vector.expired
    assert caught.value.section


def _name_of(vector: Vector) -> str:
    names = vector.leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


def test_a_date_error_has_all_three_times() -> None:
    leaf = make_root().leaf(WEB)
    at = leaf.certificate.not_valid_after_utc + timedelta(seconds=61)
    with pytest.raises(SvidDateError) as caught:
        check_dates(leaf.certificate, at=at)
    for moment in (leaf.certificate.not_valid_before_utc, leaf.certificate.not_valid_after_utc, at):
        assert moment.strftime("%Y-%m-%dT%H:%M:%SZ") in str(caught.value)


def test_the_clock_skew_ends_where_it_says() -> None:
    certificate = make_root().leaf(WEB).certificate
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    minute, instant = timedelta(seconds=60), timedelta(microseconds=1)
    for at in (before - minute, before, after, after + minute):
        check_dates(certificate, at=at)
    for at in (before - minute - instant, after + minute + instant):
        with pytest.raises(SvidDateError):
            check_dates(certificate, at=at)


def test_a_leaf_alone_is_not_a_chain() -> None:
    with pytest.raises(SvidError, match="no signing certificate"):
        verify_chain([make_root().leaf(WEB).certificate], trust_domain=TRUST_DOMAIN)


def test_every_cut_of_a_certificate_is_only_ever_a_svid_error() -> None:
    whole = der(make_root().leaf(WEB).certificate)
    for end in range(len(whole)):
        with pytest.raises(SvidError):
            load_certificate(whole[:end])


def test_every_flipped_byte_is_read_as_something_or_a_svid_error() -> None:
    whole = der(make_root().leaf(WEB).certificate)
    for position in range(len(whole)):
        damaged = whole[:position] + bytes([whole[position] ^ 0x21]) + whole[position + 1 :]
        try:
            identity_of(load_certificate(damaged))
        except SvidError:
            pass
