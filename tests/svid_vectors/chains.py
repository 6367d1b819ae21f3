"""Certificate chains, and what a verifier has to think of each.

Every text of ``ids`` that fits a certificate is here too, in the name of a
leaf.  The other vectors break one rule of X509-SVID or RFC 5280 at a time,
or keep it in an unusual way.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.certificates import (
    BOTH_PURPOSES,
    START,
    TRUST_DOMAIN,
    WEB,
    Leaf,
    Signer,
    der,
    key_usage,
    make_root,
    rsa_key,
    with_serial_byte,
    with_sha1,
)
from tests.svid_vectors.ids import ID_VECTORS

OTHER_DOMAIN: Final = "other.example"
OTHER_WEB: Final = f"spiffe://{OTHER_DOMAIN}/ns/default/sa/web"
_DNS: Final = (x509.DNSName("web.default.svc"),)

Bundles = Mapping[str, tuple[x509.Certificate, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One certificate chain and what a verifier has to think of it.

    ``bundles`` is what the verifier trusts.  ``openssl`` says that the rule is
    RFC 5280's and found during the handshake; the others are found by
    ``ca.svid``.  TLS 1.3 can not even present one that is not ``presentable``.
    """

    name: str
    rule: str
    leaf: Leaf
    bundles: Bundles
    accepted: bool
    openssl: bool = False
    expired: bool = False
    presentable: bool = True
    at: datetime = field(default=START)

    @property
    def bundles_der(self) -> Mapping[str, frozenset[bytes]]:
        """The same in DER."""
        return {domain: frozenset(der(root) for root in roots) for domain, roots in self.bundles.items()}

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """Every root that the verifier knows, whoever's it is."""
        return tuple(dict.fromkeys(root for bundle in self.bundles.values() for root in bundle))


@functools.cache
def vectors() -> tuple[Vector, ...]:
    """Every vector about certificates."""
    return (
        *_names(),
        *_leaves(),
        *_serials_and_keys(),
        *_dates(),
        *_paths(),
        *_signing_certificates(),
        *_trust_domains(),
    )


def _good(name: str, rule: str, leaf: Leaf, **more: Any) -> Vector:
    bundles = {TRUST_DOMAIN: (leaf.signers[-1],)}
    return Vector(name=name, rule=rule, leaf=leaf, **{"bundles": bundles, "accepted": True, **more})


def _bad(name: str, rule: str, leaf: Leaf, **more: Any) -> Vector:
    return _good(name, rule, leaf, **{"accepted": False, **more})


def _names() -> list[Vector]:
    signer = make_root().intermediate()
    found = []
    for text in ID_VECTORS:
        # IA5String: certificates can hold ASCII only; and a path-less ID is good, but not for a leaf.
        if not text.text.isascii() or (text.accepted and text.text.count("/") == 2):
            continue
        if text.accepted and not text.text.startswith(f"spiffe://{TRUST_DOMAIN}/"):
            continue
        make = _good if text.accepted else _bad
        found.append(make(f"ID: {text.name}", text.rule, signer.leaf(text.text)))
    email = (*_DNS, x509.RFC822Name("web@cluster.local"))
    return [
        *found,
        _good("one URI name", "leaf-one-uri", signer.leaf(WEB)),
        _bad("no URI name", "leaf-one-uri", signer.leaf(other_names=_DNS)),
        _bad("no names", "leaf-one-uri", signer.leaf(subject="web")),
        _bad("two URI names", "leaf-one-uri", signer.leaf(WEB, WEB + "2")),
        _bad("the same URI name twice", "leaf-one-uri", signer.leaf(WEB, WEB)),
        _bad("another URI beside the ID", "leaf-one-uri", signer.leaf(WEB, "https://cluster.local/")),
        _good("with a DNS name", "leaf-other-names", signer.leaf(WEB, other_names=_DNS)),
        _good("with DNS and e-mail names", "leaf-other-names", signer.leaf(WEB, other_names=email)),
        _bad("root path", "leaf-path", signer.leaf(f"spiffe://{TRUST_DOMAIN}")),
    ]


def _leaves() -> list[Vector]:
    signer = make_root().intermediate()
    leaf = signer.leaf
    cert_sign = key_usage(digital_signature=True, key_cert_sign=True)
    crl_sign = key_usage(digital_signature=True, crl_sign=True)
    more = key_usage(digital_signature=True, key_encipherment=True, key_agreement=True)
    agreement = key_usage(key_agreement=True)
    code = [ExtendedKeyUsageOID.CODE_SIGNING]
    return [
        _good("cA false", "leaf-not-ca", leaf(WEB)),
        _good("without basic constraints", "leaf-not-ca", leaf(WEB, ca=None)),
        _bad("cA set", "leaf-not-ca", leaf(WEB, ca=True, usage=cert_sign)),
        _good("key usage critical", "leaf-key-usage", leaf(WEB)),
        _bad("no key usage", "leaf-key-usage", leaf(WEB, usage_absent=True)),
        _bad("key usage not critical", "leaf-key-usage", leaf(WEB, usage_critical=False)),
        _bad("no digitalSignature", "leaf-digital-signature", leaf(WEB, usage=agreement), openssl=True),
        _bad("keyCertSign", "leaf-no-cert-sign", leaf(WEB, usage=cert_sign), openssl=True),
        _bad("cRLSign", "leaf-no-crl-sign", leaf(WEB, usage=crl_sign)),
        _good("with more key usages", "leaf-more-usages", leaf(WEB, usage=more)),
        _good("without extended key usage", "leaf-purposes", leaf(WEB, purposes=None)),
        _good("serverAuth, clientAuth and more", "leaf-purposes", leaf(WEB, purposes=[*BOTH_PURPOSES, *code])),
        _bad("only clientAuth", "leaf-purposes", leaf(WEB, purposes=BOTH_PURPOSES[1:]), openssl=True),
        _bad("only serverAuth", "leaf-purposes", leaf(WEB, purposes=BOTH_PURPOSES[:1]), openssl=True),
        _bad("another purpose", "leaf-purposes", leaf(WEB, purposes=code), openssl=True),
        _good(
            "names not critical under a subject", "leaf-critical-names", leaf(WEB, subject="web", names_critical=False)
        ),
        _bad(
            "names not critical under an empty subject",
            "leaf-critical-names",
            leaf(WEB, names_critical=False),
            openssl=True,
        ),
    ]


def _serials_and_keys() -> list[Vector]:
    root = make_root()
    signer = root.intermediate()
    leaf = signer.leaf
    p224 = ec.SECP224R1()
    weak_root = make_root(key=ec.generate_private_key(p224))
    weak_signer = root.intermediate(key=ec.generate_private_key(p224))
    strong, weak = "decided-strong-keys", "decided-weak-keys"
    return [
        _bad("negative serial", "decided-serial", with_serial_byte(leaf(WEB), signer, 0x83)),
        _good("P-384", strong, leaf(WEB, key=ec.generate_private_key(ec.SECP384R1()))),
        _good("P-384 all the way", strong, _all_of(ec.generate_private_key(ec.SECP384R1()))),
        _good("P-521", strong, leaf(WEB, key=ec.generate_private_key(ec.SECP521R1()))),
        _good("Ed25519", strong, leaf(WEB, key=ed25519.Ed25519PrivateKey.generate())),
        _good("Ed25519 all the way", strong, _all_of(ed25519.Ed25519PrivateKey.generate())),
        _good("RSA 2048", strong, leaf(WEB, key=rsa_key(2048))),
        _bad("RSA 1024", weak, leaf(WEB, key=rsa_key(1024)), openssl=True),
        _bad("RSA 1024 intermediate", weak, root.intermediate(key=rsa_key(1024)).leaf(WEB), openssl=True),
        _bad("P-224", weak, leaf(WEB, key=ec.generate_private_key(p224)), presentable=False),
        _bad("P-224 root", weak, weak_root.leaf(WEB)),
        _bad("P-224 intermediate", weak, weak_signer.leaf(WEB)),
        _bad("Ed448", weak, leaf(WEB, key=ed448.Ed448PrivateKey.generate())),
        _bad("SHA-1", "decided-sha1", with_sha1(leaf(WEB), signer), openssl=True),
    ]


def _all_of(key: Any) -> Leaf:
    return make_root(key=key).intermediate(key=key).leaf(WEB, key=key)


def _dates() -> list[Vector]:
    root = make_root()
    leaf = root.intermediate().leaf
    long_ago, second = START - timedelta(days=30), timedelta(seconds=1)
    skew = timedelta(seconds=60)

    def until(moment: datetime) -> dict[str, Any]:
        return {"not_before": long_ago, "not_after": moment}

    def since(moment: datetime) -> dict[str, Any]:
        return {"not_before": moment}

    too_late, too_early = until(START - skew - second), since(START + skew + second)
    day = timedelta(days=1)
    expired: dict[str, Any] = {"expired": True}
    return [
        _good("valid now", "dates", leaf(WEB)),
        _bad("expired", "dates", leaf(WEB, **until(START - day)), **expired),
        _bad("not yet valid", "dates", leaf(WEB, not_before=START + day, not_after=START + 2 * day), **expired),
        _bad("intermediate expired", "dates", root.intermediate(**until(START - day)).leaf(WEB), **expired),
        _bad("intermediate not yet valid", "dates", root.intermediate(**since(START + day)).leaf(WEB), **expired),
        _bad("root expired", "dates", make_root(**until(START - day)).leaf(WEB), **expired),
        _bad("root not yet valid", "dates", make_root(**since(START + day)).leaf(WEB), **expired),
        _good("expired 60 s ago", "decided-skew", leaf(WEB, **until(START - skew))),
        _good("valid in 60 s", "decided-skew", leaf(WEB, **since(START + skew))),
        _good("intermediate expired 60 s ago", "decided-skew", root.intermediate(**until(START - skew)).leaf(WEB)),
        _bad("expired 61 s ago", "decided-skew", leaf(WEB, **too_late), **expired),
        _bad("valid in 61 s", "decided-skew", leaf(WEB, **too_early), **expired),
        _bad("intermediate expired 61 s ago", "decided-skew", root.intermediate(**too_late).leaf(WEB), **expired),
    ]


def _paths() -> list[Vector]:
    root, twin = make_root(), make_root()
    signer = root.intermediate()
    trusting = {"bundles": {TRUST_DOMAIN: (root.certificate,)}, "openssl": True}
    self_signed = make_root(names=(WEB,))
    lone = Leaf(certificate=self_signed.certificate, key=self_signed.key, signers=(self_signed.certificate,))
    whole = signer.leaf(WEB)
    without_intermediate = Leaf(certificate=whole.certificate, key=whole.key, signers=root.signers)
    under_leaf = signer.leaf(WEB, subject="web")
    pretender = Signer(
        certificate=under_leaf.certificate, key=under_leaf.key, trust_domain=TRUST_DOMAIN, signers=under_leaf.chain
    )
    rule = "path-validation"
    return [
        _good("signed by an intermediate", rule, whole),
        _good("signed by the root", rule, root.leaf(WEB)),
        _good("two intermediates", rule, root.intermediate().intermediate().leaf(WEB)),
        _bad("self-signed", rule, lone, **trusting),
        _bad("without its intermediate", rule, without_intermediate, **trusting),
        _bad("right trust domain, wrong root", rule, twin.intermediate().leaf(WEB), **trusting),
        _bad("signed by a leaf", rule, pretender.leaf(WEB), openssl=True),
        _bad(
            "authority key identifier of another key",
            "decided-authority-key",
            signer.leaf(WEB, authority_key=twin.key),
            openssl=True,
        ),
    ]


def _signing_certificates() -> list[Vector]:
    root = make_root()
    signer = root.intermediate()
    as_leaf = Leaf(certificate=signer.certificate, key=signer.key, signers=root.signers)
    ca_with_path = root.intermediate(names=[WEB], usage=key_usage(digital_signature=True, key_cert_sign=True))
    path_as_leaf = Leaf(certificate=ca_with_path.certificate, key=ca_with_path.key, signers=root.signers)
    no_cert_sign = key_usage(digital_signature=True)
    inside = x509.NameConstraints([x509.UniformResourceIdentifier(TRUST_DOMAIN)], None)
    outside = x509.NameConstraints([x509.UniformResourceIdentifier(OTHER_DOMAIN)], None)
    excluded = x509.NameConstraints(None, [x509.UniformResourceIdentifier(TRUST_DOMAIN)])
    below = x509.NameConstraints([x509.UniformResourceIdentifier(f".{TRUST_DOMAIN}")], None)
    own, theirs = f"spiffe://{TRUST_DOMAIN}", f"spiffe://{OTHER_DOMAIN}"
    return [
        _bad("intermediate without cA", "signing-ca", root.intermediate(ca=False).leaf(WEB), openssl=True),
        _bad(
            "intermediate without keyCertSign",
            "signing-cert-sign",
            root.intermediate(usage=no_cert_sign).leaf(WEB),
            openssl=True,
        ),
        _good("intermediate without an ID", "signing-id-optional", root.intermediate(names=()).leaf(WEB)),
        _good("nobody but the leaf has an ID", "signing-id-optional", make_root(names=()).leaf(WEB)),
        _bad("intermediate with two IDs", "signing-one-id", root.intermediate(names=[own, own]).leaf(WEB)),
        _bad("a signing certificate as a leaf", "signing-not-a-leaf", as_leaf),
        _bad("a signing certificate with a path as a leaf", "signing-not-a-leaf", path_as_leaf),
        _bad("intermediate whose ID has a path", "decided-signing-path", root.intermediate(names=[WEB]).leaf(WEB)),
        _bad("root whose ID has a path", "decided-signing-path", make_root(names=[WEB]).leaf(WEB)),
        _bad(
            "intermediate of another trust domain",
            "decided-signing-domain",
            root.intermediate(names=[theirs]).leaf(WEB),
        ),
        _bad("root of another trust domain", "decided-signing-domain", make_root(names=[theirs]).leaf(WEB)),
        _good("name constraints honoured", "name-constraints", root.intermediate(constraints=inside).leaf(WEB)),
        _bad(
            "name constraints violated",
            "name-constraints",
            root.intermediate(constraints=outside).leaf(WEB),
            openssl=True,
        ),
        _bad(
            "name excluded by constraints",
            "name-constraints",
            root.intermediate(constraints=excluded).leaf(WEB),
            openssl=True,
        ),
        _bad(
            "name constraints for subdomains only",
            "name-constraints",
            root.intermediate(constraints=below).leaf(WEB),
            openssl=True,
        ),
    ]


def _trust_domains() -> list[Vector]:
    """Two trust domains that trust each other: who may speak for whom."""
    ours, theirs = make_root(), make_root(OTHER_DOMAIN)
    both: dict[str, Any] = {
        "bundles": {TRUST_DOMAIN: (ours.certificate,), OTHER_DOMAIN: (theirs.certificate,)},
    }
    only_ours: dict[str, Any] = {"bundles": {TRUST_DOMAIN: (ours.certificate,)}}
    rule = "path-own-bundle"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root")])
    # An intermediate of ours that calls itself exactly what theirs is called.
    their_signer = theirs.intermediate()
    disguised = ours.intermediate(
        names=(f"spiffe://{OTHER_DOMAIN}",), subject=their_signer.certificate.subject, constraints=None
    )
    # Roots without an ID, so that only the bundles tell whose they are.
    plain_ours, plain_theirs = make_root(names=(), subject=name), make_root(OTHER_DOMAIN, names=(), subject=name)
    plain: dict[str, Any] = {
        "bundles": {TRUST_DOMAIN: (plain_ours.certificate,), OTHER_DOMAIN: (plain_theirs.certificate,)}
    }
    shared = make_root(names=())
    in_both: dict[str, Any] = {
        "bundles": {TRUST_DOMAIN: (shared.certificate,), OTHER_DOMAIN: (theirs.certificate, shared.certificate)}
    }
    crossed = cross_signed(ours, by=theirs)
    p384 = make_root(OTHER_DOMAIN, key=ec.generate_private_key(ec.SECP384R1()))
    ed = make_root(OTHER_DOMAIN, key=ed25519.Ed25519PrivateKey.generate())
    strong: dict[str, Any] = {
        "bundles": {TRUST_DOMAIN: (ours.certificate,), OTHER_DOMAIN: (p384.certificate, ed.certificate)}
    }
    p384_key, ed_key = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
    return [
        _good("our own among two", rule, ours.intermediate().leaf(WEB), **both),
        _good("of a federated trust domain", rule, their_signer.leaf(OTHER_WEB), **both),
        _bad("of a trust domain that is not federated", rule, their_signer.leaf(OTHER_WEB), openssl=True, **only_ours),
        _bad("our CA names another trust domain", rule, ours.intermediate().leaf(OTHER_WEB), **only_ours),
        _bad("our CA names a federated trust domain", rule, ours.intermediate().leaf(OTHER_WEB), **both),
        _bad("a federated CA names us", rule, their_signer.leaf(WEB), **both),
        _bad("a federated root names us", rule, theirs.leaf(WEB), **both),
        _bad(
            "a federated intermediate with our ID names us",
            rule,
            theirs.intermediate(names=(f"spiffe://{TRUST_DOMAIN}",)).leaf(WEB),
            **both,
        ),
        _bad("our intermediate under their name", rule, disguised.leaf(OTHER_WEB), **both),
        _good("two roots of one name, ours", rule, plain_ours.intermediate(names=()).leaf(WEB), **plain),
        _good("two roots of one name, theirs", rule, plain_theirs.intermediate(names=()).leaf(OTHER_WEB), **plain),
        _bad("two roots of one name, theirs for us", rule, plain_theirs.intermediate(names=()).leaf(WEB), **plain),
        _bad("two roots of one name, ours for them", rule, plain_ours.intermediate(names=()).leaf(OTHER_WEB), **plain),
        _good("a root in both bundles, for us", rule, shared.intermediate(names=()).leaf(WEB), **in_both),
        _good("a root in both bundles, for them", rule, shared.intermediate(names=()).leaf(OTHER_WEB), **in_both),
        _bad(
            "a root in both bundles, for a third",
            rule,
            shared.intermediate(names=()).leaf("spiffe://third.example/web"),
            **in_both,
        ),
        _bad(
            "our root signed by theirs, theirs alone trusted",
            rule,
            crossed.leaf(WEB),
            bundles={OTHER_DOMAIN: (theirs.certificate,)},
        ),
        _good("federated, P-384", "decided-strong-keys", p384.intermediate().leaf(OTHER_WEB, key=p384_key), **strong),
        _good("federated, Ed25519", "decided-strong-keys", ed.intermediate().leaf(OTHER_WEB, key=ed_key), **strong),
    ]


def cross_signed(root: Signer, *, by: Signer) -> Signer:
    """The key and name of ``root`` under a certificate that ``by`` signed: a path to either root can be built."""
    crossed = by.intermediate(key=root.key, subject=root.certificate.subject, names=())
    return Signer(
        certificate=crossed.certificate, key=root.key, trust_domain=root.trust_domain, signers=crossed.signers
    )
