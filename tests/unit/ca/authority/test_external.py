"""A root of somebody else's: what is asked for, what is accepted, and what is refused by which rule."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ca.authority import external, profile
from ca.authority.errors import AuthorityError
from ca.authority.rehearsal import rehearse
from ca.csr import new_key
from ca.svid import SvidError
from tests.certificates import AnyKey, key_usage, rsa_key
from tests.foreign_pki import ForeignPki, instead, pem_of, without

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TD: Final = "cluster.local"
KEY: Final = new_key()
CSR: Final = external.build_csr(KEY, trust_domain=TD)


def pki(key: AnyKey | None = None, **changes: Any) -> ForeignPki:
    return ForeignPki(key, at=AT, **changes)


def judge(authority: ForeignPki, ours: x509.Certificate) -> None:
    """All that is said about a chain before it is kept."""
    chain = [ours, *authority.between]
    external.require_root(authority.root, trust_domain=TD)
    external.require_chain(chain, root=authority.root, trust_domain=TD)
    issuer = profile.Issuer(certificate=ours, key=KEY)
    rehearse(issuer=issuer, upstream=chain[1:], root=authority.root, trust_domain=TD, at=AT)


# -- what is accepted -------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa_key(2048),
        rsa_key(3072),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "Ed25519"],
)
def test_a_root_may_have_any_key_that_verifiers_accept(key: AnyKey) -> None:
    authority = pki(key)
    judge(authority, authority.sign(CSR))


def test_certificates_of_the_pki_may_lie_in_between() -> None:
    authority = pki(path_length=3).below("Policy", path_length=2).below("Issuing", path_length=1)
    judge(authority, authority.sign(CSR))


def test_a_root_may_have_the_spiffe_id_of_its_trust_domain_or_none() -> None:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{TD}")])
    authority = pki(extra=[(names, False)])
    judge(authority, authority.sign(CSR))


def test_an_intermediate_may_come_without_a_spiffe_id_and_without_permission_to_sign_crls() -> None:
    authority = pki()
    judge(authority, authority.sign(CSR, change=without(x509.SubjectAlternativeName)))
    judge(authority, authority.sign(CSR, change=instead(key_usage(key_cert_sign=True), critical=True)))


def test_the_request_asks_for_everything_that_an_intermediate_needs() -> None:
    csr = x509.load_pem_x509_csr(CSR)
    assert csr.is_signature_valid
    asked = {type(extension.value): (extension.critical, extension.value) for extension in csr.extensions}
    assert asked[x509.BasicConstraints] == (True, x509.BasicConstraints(ca=True, path_length=0))
    assert asked[x509.KeyUsage] == (True, key_usage(key_cert_sign=True, crl_sign=True))
    uri = x509.UniformResourceIdentifier
    assert asked[x509.NameConstraints] == (
        True,
        x509.NameConstraints(permitted_subtrees=[uri(TD)], excluded_subtrees=None),
    )
    assert asked[x509.SubjectAlternativeName][1] == x509.SubjectAlternativeName([uri(f"spiffe://{TD}")])


# -- what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(x509.NameConstraints), "has no NameConstraints"),
        (
            instead(
                x509.NameConstraints(
                    permitted_subtrees=[x509.UniformResourceIdentifier("other.example")], excluded_subtrees=None
                ),
                critical=True,
            ),
            r"constrained to URI names in cluster\.local",
        ),
        (instead(x509.BasicConstraints(ca=True, path_length=None), critical=True), "pathlen 0"),
        (instead(x509.BasicConstraints(ca=True, path_length=1), critical=True), "pathlen 0"),
        (instead(x509.BasicConstraints(ca=False, path_length=None), critical=True), "cA set"),
        (without(x509.KeyUsage), "keyCertSign"),
        (instead(key_usage(key_cert_sign=True), critical=False), "critical key usage"),
        (instead(key_usage(digital_signature=True), critical=True), "keyCertSign"),
        (
            instead(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://other.example")]), critical=False
            ),
            r"X509-SVID 5\.1",
        ),
        (
            instead(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{TD}/ns/a/sa/b")]),
                critical=False,
            ),
            r"X509-SVID 3\.2",
        ),
        (without(x509.SubjectKeyIdentifier), "SubjectKeyIdentifier"),
    ],
)
def test_an_intermediate_that_is_not_what_was_asked_for_is_refused_by_its_rule(change: Any, says: str) -> None:
    authority = pki()
    with pytest.raises((profile.ProfileError, SvidError, AuthorityError), match=says):
        judge(authority, authority.sign(CSR, change=change))


def test_an_intermediate_without_the_key_identifier_of_its_issuer_is_refused() -> None:
    authority = pki()
    with pytest.raises(profile.ProfileError, match=r"RFC 5280 4\.2\.1\.1"):
        judge(authority, authority.sign(CSR, authority_key_id=False))


def test_an_intermediate_that_outlives_its_root_is_refused() -> None:
    authority = pki(lifetime=timedelta(days=30))
    with pytest.raises(profile.ProfileError, match="ends after its issuer"):
        judge(authority, authority.sign(CSR))


def test_a_root_with_too_short_a_path_is_refused() -> None:
    authority = pki(path_length=0)
    with pytest.raises(profile.ProfileError, match="pathlen 0, too short for 1"):
        judge(authority, authority.sign(CSR))
    policy = pki(path_length=1).below("Policy")
    with pytest.raises(profile.ProfileError, match="pathlen 1, too short for 2"):
        judge(policy, policy.sign(CSR))


def test_a_root_whose_own_constraint_forbids_the_trust_domain_is_found_out_by_the_rehearsal() -> None:
    forbids = x509.NameConstraints(
        permitted_subtrees=[x509.UniformResourceIdentifier("other.example")], excluded_subtrees=None
    )
    authority = pki().below("Policy", extra=[(forbids, True)])
    with pytest.raises(AuthorityError, match="permitted subtree violation"):
        judge(authority, authority.sign(CSR))


def test_a_long_chain_is_a_mistake() -> None:
    authority = pki()
    for number in range(5):
        authority = authority.below(f"Level {number}")
    with pytest.raises(profile.ProfileError, match="5 are the most"):
        judge(authority, authority.sign(CSR))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pki(rsa_key(1024)), "1024"),
        (lambda: pki(ec.generate_private_key(ec.SECP224R1())), "secp224r1"),
        (lambda: pki(usage=key_usage(crl_sign=True)), "keyCertSign"),
        (
            lambda: pki(
                extra=[(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://other.example")]), False)]
            ),
            "X509-SVID 5.1",
        ),
        (lambda: pki(lifetime=timedelta(minutes=-4)), "expired"),
        (lambda: pki().below("Not a root"), "not self-signed"),
    ],
    ids=["RSA-1024", "P-224", "no keyCertSign", "another trust domain", "expired", "not a root"],
)
def test_a_root_that_agents_would_not_trust_is_refused_before_anything_is_made(
    tmp_path: Path, make: Any, says: str
) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(pem_of(make().certificate))
    with pytest.raises(AuthorityError, match=says) as caught:
        external.read_root(path, trust_domain=TD, at=AT)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate"),
        (pki().certificate.public_bytes(serialization.Encoding.DER), "inform DER"),
        (pem_of(pki().certificate, pki().certificate), "holds 2 certificates"),
    ],
)
def test_a_file_that_is_no_root_says_what_is_wanted(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "root.pem").write_bytes(content)
    with pytest.raises(AuthorityError, match=says):
        external.read_root(tmp_path / "root.pem", trust_domain=TD, at=AT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="No such file"):
        external.read_certificates(tmp_path / "missing.pem")


# -- putting in order -------------------------------------------------------------


def test_a_chain_is_put_in_order_whatever_order_it_came_in() -> None:
    authority = pki(path_length=3).below("Policy").below("Issuing")
    ours = authority.sign(CSR)
    mixed = [authority.root, *reversed(authority.between), ours]
    assert external.chain_to(mixed, [pki().certificate, authority.root], ours=ours) == (
        [ours, *authority.between],
        authority.root,
    )


def test_a_missing_link_is_named() -> None:
    authority = pki().below("Policy")
    ours = authority.sign(CSR)
    with pytest.raises(profile.ProfileError, match="nothing in it leads from"):
        external.chain_to([ours], [authority.root], ours=ours)


# -- rehearsal --------------------------------------------------------------------


def test_the_rehearsal_refuses_what_has_expired() -> None:
    authority = pki()
    ours = authority.sign(CSR, lifetime=timedelta(days=10))
    issuer = profile.Issuer(certificate=ours, key=KEY)
    with pytest.raises(AuthorityError, match="expired"):
        rehearse(issuer=issuer, upstream=(), root=authority.root, trust_domain=TD, at=AT + timedelta(days=11))


def test_the_rehearsal_refuses_a_root_that_signed_something_else() -> None:
    authority = pki()
    issuer = profile.Issuer(certificate=authority.sign(CSR), key=KEY)
    with pytest.raises(AuthorityError, match="no agent would accept"):
        rehearse(issuer=issuer, upstream=(), root=pki().certificate, trust_domain=TD, at=AT)
