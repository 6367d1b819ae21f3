"""The certificates of the authority: executable specification, judged also by OpenSSL."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.authority import profile
from ca.csr import new_key
from ca.spiffe import SpiffeId
from ca.svid import check_signing_certificate, verify_chain
from tests.authority_builder import pem

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TD = "cluster.local"
WEB = SpiffeId.workload(TD, "default", "web")


def make_root(trust_domain: str = TD) -> profile.Issuer:
    key = new_key()
    lifetime = profile.ROOT_LIFETIME
    return profile.Issuer(
        certificate=profile.build_root(trust_domain=trust_domain, key=key, at=AT, lifetime=lifetime, serial=1), key=key
    )


def make_intermediate(root: profile.Issuer, trust_domain: str = TD) -> profile.Issuer:
    key = new_key()
    certificate = profile.build_intermediate(
        trust_domain=trust_domain,
        public_key=key.public_key(),
        issuer=root,
        at=AT,
        lifetime=profile.INTERMEDIATE_LIFETIME,
        serial=2,
    )
    return profile.Issuer(certificate=certificate, key=key)


def make_svid(
    issuer: profile.Issuer, identity: SpiffeId = WEB, public_key: profile.PublicKey | None = None
) -> x509.Certificate:
    return profile.build_svid(
        identity=identity,
        public_key=public_key or new_key().public_key(),
        issuer=issuer,
        at=AT,
        not_after=AT + timedelta(hours=1),
        serial=3,
    )


def openssl_verify(
    directory: Path, root: x509.Certificate, intermediate: x509.Certificate, leaf: x509.Certificate, *arguments: str
) -> subprocess.CompletedProcess[str]:
    for name, certificate in (("root", root), ("intermediate", intermediate), ("leaf", leaf)):
        (directory / f"{name}.pem").write_bytes(pem(certificate))
    chain = ["-CAfile", "root.pem", "-untrusted", "intermediate.pem", "leaf.pem"]
    return subprocess.run(
        ["openssl", "verify", "-x509_strict", "-attime", str(int(AT.timestamp())), *arguments, *chain],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize(
    "identity",
    [WEB, SpiffeId.node(TD, "node-1"), SpiffeId.authority(TD), SpiffeId(TD, "/" + "x" * 2000)],
    ids=["workload", "node", "authority", "long"],
)
def test_openssl_accepts_the_chain_by_the_letter_of_rfc_5280(tmp_path: Path, identity: SpiffeId, purpose: str) -> None:
    root = make_root()
    intermediate = make_intermediate(root)
    leaf = make_svid(intermediate, identity)

    verdict = openssl_verify(tmp_path, root.certificate, intermediate.certificate, leaf, "-purpose", purpose)

    assert verdict.returncode == 0, verdict.stderr


def test_openssl_refuses_an_identity_outside_the_name_constraint(tmp_path: Path) -> None:
    root = make_root()
    intermediate = make_intermediate(root)
    leaf = make_svid(intermediate, SpiffeId.workload("other.example", "default", "web"))

    verdict = openssl_verify(tmp_path, root.certificate, intermediate.certificate, leaf)

    assert verdict.returncode != 0
    assert "permitted subtree violation" in verdict.stderr


def test_openssl_refuses_a_subdomain_of_the_trust_domain(tmp_path: Path) -> None:
    root = make_root()
    intermediate = make_intermediate(root)
    leaf = make_svid(intermediate, SpiffeId.workload(f"sub.{TD}", "default", "web"))

    assert openssl_verify(tmp_path, root.certificate, intermediate.certificate, leaf).returncode != 0


def test_every_verifier_of_the_mesh_accepts_the_chain() -> None:
    root = make_root()
    intermediate = make_intermediate(root)
    leaf = make_svid(intermediate)

    assert verify_chain([leaf, intermediate.certificate, root.certificate], trust_domain=TD) == WEB


def test_root_and_intermediate_satisfy_their_profiles() -> None:
    root = make_root()
    intermediate = make_intermediate(root)

    profile.require_root(root.certificate, trust_domain=TD)
    profile.require_intermediate(intermediate.certificate, issuer=root.certificate, trust_domain=TD)
    for certificate in (root.certificate, intermediate.certificate):
        check_signing_certificate(certificate, trust_domain=TD)


def test_a_root_of_another_trust_domain_is_refused() -> None:
    with pytest.raises(profile.ProfileError, match=r"X509-SVID 4\.1"):
        profile.require_root(make_root("other.example").certificate, trust_domain=TD)


def test_an_intermediate_is_not_a_root_and_a_root_is_not_an_intermediate() -> None:
    root = make_root()
    intermediate = make_intermediate(root)

    with pytest.raises(profile.ProfileError):
        profile.require_root(intermediate.certificate, trust_domain=TD)
    with pytest.raises(profile.ProfileError):
        profile.require_intermediate(root.certificate, issuer=root.certificate, trust_domain=TD)


def test_an_intermediate_of_another_root_is_refused() -> None:
    intermediate = make_intermediate(make_root())

    with pytest.raises(profile.ProfileError, match="authority key identifier"):
        profile.require_intermediate(intermediate.certificate, issuer=make_root().certificate, trust_domain=TD)


def test_a_signing_key_must_belong_to_its_certificate() -> None:
    with pytest.raises(profile.ProfileError, match="does not belong"):
        profile.Issuer(certificate=make_root().certificate, key=new_key())


def test_the_svid_has_one_critical_uri_and_nothing_else_to_be_known_by() -> None:
    leaf = make_svid(make_intermediate(make_root()))

    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier(str(WEB))]
    assert leaf.subject == x509.Name([])
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert leaf.not_valid_before_utc == AT - timedelta(seconds=60)


def test_an_svid_for_another_identity_or_another_key_is_refused() -> None:
    issuer = make_intermediate(make_root())
    key = new_key().public_key()
    leaf = make_svid(issuer, WEB, key)
    other = SpiffeId.workload(TD, "default", "db")
    own_der = profile.public_bytes(key)

    profile.require_svid(leaf, identity=WEB, public_key_der=own_der, issuer=issuer.certificate)
    with pytest.raises(profile.ProfileError, match="another identity"):
        profile.require_svid(leaf, identity=other, public_key_der=own_der, issuer=issuer.certificate)
    with pytest.raises(profile.ProfileError, match="another key"):
        profile.require_svid(
            leaf,
            identity=WEB,
            public_key_der=profile.public_bytes(new_key().public_key()),
            issuer=issuer.certificate,
        )


def test_an_svid_that_was_signed_by_a_broken_key_is_refused() -> None:
    issuer = make_intermediate(make_root())
    key = new_key().public_key()
    # What a fault in memory or in the key store would produce: the right names, another signature.
    forged = make_svid(_with_another_key(issuer), WEB, key)

    with pytest.raises(profile.ProfileError, match="signature"):
        profile.require_svid(forged, identity=WEB, public_key_der=profile.public_bytes(key), issuer=issuer.certificate)


def _with_another_key(issuer: profile.Issuer) -> profile.Issuer:
    broken = object.__new__(profile.Issuer)
    object.__setattr__(broken, "certificate", issuer.certificate)
    object.__setattr__(broken, "key", new_key())
    object.__setattr__(broken, "leaf", issuer.leaf)
    return broken


def test_a_certificate_that_is_no_svid_at_all_is_refused() -> None:
    issuer = make_intermediate(make_root())
    key = ec.generate_private_key(ec.SECP256R1())
    bare = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(AT)
        .not_valid_after(AT + timedelta(hours=1))
        .sign(issuer.key, hashes.SHA256())
    )

    with pytest.raises(profile.ProfileError, match="not an SVID"):
        profile.require_svid(
            bare,
            identity=WEB,
            public_key_der=profile.public_bytes(key.public_key()),
            issuer=issuer.certificate,
        )


@pytest.mark.parametrize(
    ("issuer_lives", "expected"),
    [(timedelta(days=1), timedelta(hours=1)), (timedelta(minutes=20), timedelta(minutes=20))],
)
def test_an_svid_never_outlives_its_issuer(issuer_lives: timedelta, expected: timedelta) -> None:
    assert profile.svid_not_after(at=AT, ttl=timedelta(hours=1), issuer_not_after=AT + issuer_lives) == AT + expected


def test_an_issuer_at_its_end_signs_nothing() -> None:
    with pytest.raises(profile.ProfileError, match="renew it"):
        profile.svid_not_after(at=AT, ttl=timedelta(hours=1), issuer_not_after=AT + timedelta(seconds=5))
