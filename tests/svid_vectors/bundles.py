"""Documents that are, or are not, the trust bundle of a trust domain."""

import base64
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ca.jwk import to_jwk
from tests.certificates import TRUST_DOMAIN, WEB, Signer, der, make_root, p256, rsa_key

DEFAULT_HINT_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleVector:
    """One document.  ``roots`` and ``key_ids`` are what an accepted one holds; ``says`` is a part of the refusal."""

    name: str
    rule: str
    document: bytes
    accepted: bool
    roots: tuple[bytes, ...] = ()
    key_ids: tuple[str, ...] = ()
    hint_s: float = DEFAULT_HINT_S
    sequence: int = 0
    is_map: bool = False
    says: str = ""


def x509_entry(signer: Signer, **changes: Any) -> dict[str, Any]:
    """The entry of a root; a change to None takes a member out."""
    key: Any = signer.certificate.public_key()
    entry = {"use": "x509-svid", **to_jwk(key), "x5c": [base64.b64encode(der(signer.certificate)).decode()], **changes}
    return {name: value for name, value in entry.items() if value is not None}


def jwt_entry(key: Any = None, **changes: Any) -> dict[str, Any]:
    """The entry of a JWT key; a change to None takes a member out."""
    entry = {"use": "jwt-svid", "kid": "one", **to_jwk((key or p256()).public_key()), **changes}
    return {name: value for name, value in entry.items() if value is not None}


def document(*entries: Any, **members: Any) -> bytes:
    """A bundle of these entries."""
    return json.dumps({"keys": list(entries), **members}).encode()


@functools.cache
def bundle_vectors() -> tuple[BundleVector, ...]:
    """Every vector about bundles."""
    return (*_documents(), *_members(), *_entries(), *_maps())


def _good(name: str, rule: str, data: bytes, **more: Any) -> BundleVector:
    return BundleVector(name=name, rule=rule, document=data, accepted=True, **more)


def _bad(name: str, rule: str, data: bytes, says: str, **more: Any) -> BundleVector:
    return BundleVector(name=name, rule=rule, document=data, accepted=False, says=says, **more)


def _documents() -> list[BundleVector]:
    root = make_root()
    entry = x509_entry(root)
    roots = (der(root.certificate),)
    text = json.dumps({"keys": [entry]})
    return [
        _good("one root", "bundle-json", document(entry), roots=roots),
        _good("members that nobody knows", "bundle-json", document(entry, spiffe_new={"a": [1]}), roots=roots),
        _bad("nothing", "bundle-json", b"", "not a JSON document"),
        _bad("half a document", "bundle-json", text.encode()[:-3], "not a JSON document"),
        _bad("not UTF-8", "bundle-json", text.encode("utf-16"), "not a JSON document"),
        _bad("UTF-8 with a byte that is not", "bundle-json", b'{"keys": [], "a": "\xff"}', "not a JSON document"),
        _bad("an array", "bundle-json", b"[]", "not a JSON object"),
        _bad("NaN", "bundle-json", b'{"keys": [], "a": NaN}', "NaN"),
        _bad("a member twice", "bundle-json", b'{"keys": [], "keys": []}', "twice"),
        _bad("a member of a key twice", "bundle-json", b'{"keys": [{"use": "a", "use": "b"}]}', "twice"),
        _bad("too long", "bundle-json", b'{"keys": []}' + b" " * 256 * 1024, "more than the"),
        _bad("too deep", "bundle-json", b"[" * 100_000, "not a JSON"),
        _bad("a number of a million digits", "bundle-json", b'{"a": ' + b"1" * 200_000 + b"}", "not a JSON"),
    ]


def _members() -> list[BundleVector]:
    root = make_root()
    entry = x509_entry(root)
    roots = (der(root.certificate),)
    sequence, hint, most = "bundle-sequence", "bundle-refresh-hint", 2**64 - 1
    bad_numbers = {
        "text": "7",
        "a fraction": 7.5,
        "negative": -1,
        "true": True,
        "null": None,
        "65 bits": 2**64,
    }
    return [
        _good("no keys", "bundle-keys", document()),
        _bad("'keys' missing", "bundle-keys", b"{}", "'keys'"),
        _bad("'keys' null", "bundle-keys", b'{"keys": null}', "'keys'"),
        _bad("'keys' an object", "bundle-keys", b'{"keys": {}}', "'keys'"),
        _bad("a key that is text", "bundle-keys", b'{"keys": ["a"]}', "keys[0]"),
        _bad("too many keys", "bundle-keys", document(*[{}] * 513), "513"),
        _bad("too many roots", "bundle-keys", document(*(x509_entry(make_root()) for _ in range(65))), "more than 64"),
        _good("sequence 7", sequence, document(entry, spiffe_sequence=7), roots=roots, sequence=7),
        _good("sequence of 64 bits", sequence, document(entry, spiffe_sequence=most), roots=roots, sequence=most),
        _good("no sequence", sequence, document(entry), roots=roots),
        *(
            _bad(f"sequence {name}", sequence, document(spiffe_sequence=value), "'spiffe_sequence'")
            for name, value in bad_numbers.items()
        ),
        _good("hint of 60 s", hint, document(entry, spiffe_refresh_hint=60), roots=roots, hint_s=60.0),
        _good("no hint", hint, document(entry), roots=roots, hint_s=DEFAULT_HINT_S),
        *(
            _bad(f"hint {name}", hint, document(spiffe_refresh_hint=value), "'spiffe_refresh_hint'")
            for name, value in bad_numbers.items()
        ),
    ]


def _entries() -> list[BundleVector]:
    root, other = make_root(), make_root()
    entry, mine = x509_entry(root), der(root.certificate)
    theirs = x509_entry(make_root("other.example"))
    long_chain = [*entry["x5c"], base64.b64encode(der(other.certificate)).decode()]
    leaf = root.leaf(WEB)
    leaf_entry = x509_entry(Signer(certificate=leaf.certificate, key=leaf.key, trust_domain="", signers=()))
    weak = make_root(key=ec.generate_private_key(ec.SECP224R1()))
    weak_entry = x509_entry(root, x5c=[base64.b64encode(der(weak.certificate)).decode()], x=None, y=None, crv=None)
    edwards = make_root(key=ed25519.Ed25519PrivateKey.generate())
    p384 = make_root(key=ec.generate_private_key(ec.SECP384R1()))
    off_curve = jwt_entry(x="A" * 43, y="A" * 43)
    own: Callable[..., BundleVector] = functools.partial(_good, roots=(mine,))
    return [
        own("unknown kty", "bundle-kty", document(entry, x509_entry(other, kty="XYZ"))),
        own("no kty", "bundle-kty", document(entry, x509_entry(other, kty=None))),
        own("kty that is no text", "bundle-kty", document(entry, x509_entry(other, kty=["EC"]))),
        own("unknown use", "bundle-use", document(entry, x509_entry(other, use="sig"))),
        own("no use", "bundle-use", document(entry, x509_entry(other, use=None))),
        own("use in another case", "bundle-use", document(entry, x509_entry(other, use="X509-SVID"))),
        own("use that is no text", "bundle-use", document(entry, x509_entry(other, use={}))),
        own("no x5c", "bundle-x5c", document(entry, x509_entry(other, x5c=None))),
        own("empty x5c", "bundle-x5c", document(entry, x509_entry(other, x5c=[]))),
        own("a chain in x5c: only its first counts", "bundle-x5c", document({**entry, "x5c": long_chain})),
        own("the same root twice", "bundle-x5c", document(entry, entry)),
        _good("Ed25519", "bundle-x5c", document(x509_entry(edwards)), roots=(der(edwards.certificate),)),
        _good("P-384", "bundle-x5c", document(x509_entry(p384)), roots=(der(p384.certificate),)),
        _bad("x5c is text", "bundle-x5c", document({**entry, "x5c": entry["x5c"][0]}), "'x5c'"),
        _bad("x5c of numbers", "bundle-x5c", document({**entry, "x5c": [1]}), "'x5c'"),
        _bad("x5c in base64url", "bundle-x5c", document({**entry, "x5c": ["-_-_"]}), "base64"),
        _bad("x5c is no certificate", "bundle-x5c", document({**entry, "x5c": ["AAAA"]}), "malformed"),
        _bad("kid on an X.509 root", "bundle-x509-no-kid", document(x509_entry(root, kid="a")), "'kid'"),
        _bad(
            "another key than the certificate's",
            "bundle-key-matches",
            document({**entry, **to_jwk(p256().public_key())}),
            "another than",
        ),
        _bad("another kind than the certificate's", "bundle-key-matches", document({**entry, "kty": "RSA"}), "another"),
        own("only kty beside the certificate", "bundle-key-matches", document(x509_entry(root, x=None, y=None))),
        _bad("root of another trust domain", "bundle-authorities", document(entry, theirs), "other.example"),
        _bad("a leaf as a root", "bundle-authorities", document(leaf_entry), "cA"),
        _bad("a weak root", "bundle-authorities", document(weak_entry), "secp224r1"),
        _bad("root whose ID has a path", "bundle-authorities", document(x509_entry(make_root(names=[WEB]))), "path"),
        _good("a JWT key", "bundle-jwt-kid", document(jwt_entry()), key_ids=("one",)),
        _good(
            "three JWT keys",
            "bundle-jwt-kid",
            document(
                jwt_entry(),
                jwt_entry(rsa_key(2048), kid="two"),
                jwt_entry(ec.generate_private_key(ec.SECP521R1()), kid="three"),
            ),
            key_ids=("one", "two", "three"),
        ),
        _good(
            "a JWT key of a kind that signs no JWT-SVID",
            "bundle-jwt-kid",
            document(jwt_entry(ed25519.Ed25519PrivateKey.generate())),
        ),
        _good("a JWT key on an unknown curve", "bundle-jwt-kid", document(jwt_entry(crv="secp256k1"))),
        _bad("a JWT key without kid", "bundle-jwt-kid", document(jwt_entry(kid=None)), "'kid'"),
        _bad("a JWT key with an empty kid", "bundle-jwt-kid", document(jwt_entry(kid="")), "'kid'"),
        _bad("a JWT key whose kid is half a character", "bundle-jwt-kid", document(jwt_entry(kid="\ud800")), "Unicode"),
        _bad(
            "an RSA key with a huge exponent",
            "bundle-jwt-kid",
            document({**jwt_entry(rsa_key(2048)), "e": jwt_entry(rsa_key(2048))["n"]}),
            "exponent",
        ),
        _bad("two JWT keys of one kid", "bundle-jwt-kid", document(jwt_entry(), jwt_entry()), "twice"),
        _bad("a JWT key that is not on its curve", "bundle-jwt-kid", document(off_curve), "no valid key"),
        _bad("a JWT key with padding", "bundle-jwt-kid", document(jwt_entry(x="AA==")), "base64url"),
        _bad("a JWT key that is too short", "bundle-jwt-kid", document(jwt_entry(x="AAAA")), "3 bytes"),
        _bad("a weak RSA key for JWTs", "bundle-jwt-kid", document(jwt_entry(rsa_key(1024))), "1024 bits"),
        _bad("a private key", "bundle-jwt-kid", document(jwt_entry(d="AAAA")), "private"),
    ]


def _maps() -> list[BundleVector]:
    root, other = make_root(), make_root("other.example")
    ours, theirs = json.loads(document(x509_entry(root))), json.loads(document(x509_entry(other)))
    roots = (der(root.certificate),)

    def of(members: Any, **outer: Any) -> bytes:
        return json.dumps({"trust_domains": members, **outer}).encode()

    def good(name: str, rule: str, data: bytes, **more: Any) -> BundleVector:
        return _good(name, rule, data, is_map=True, **{"roots": roots, **more})

    def bad(name: str, data: bytes, says: str) -> BundleVector:
        return _bad(name, "bundle-map", data, says, is_map=True)

    both = {TRUST_DOMAIN: ours, "other.example": theirs}
    hinted = {TRUST_DOMAIN: {**ours, "spiffe_refresh_hint": 7, "spiffe_sequence": 3}}
    twice = f'{{"trust_domains": {{"{TRUST_DOMAIN}": {{"keys": []}}, "{TRUST_DOMAIN}": {{"keys": []}}}}}}'.encode()
    return [
        good("a map of two", "bundle-map", of(both)),
        good("hint inside a map", "bundle-map-hint", of(hinted, spiffe_refresh_hint=60), hint_s=60.0, sequence=3),
        good("hint inside a map only", "bundle-map-hint", of(hinted), sequence=3),
        good(
            "hint inside a map that is none",
            "bundle-map-hint",
            of({TRUST_DOMAIN: {**ours, "spiffe_refresh_hint": "soon"}}),
        ),
        bad("a trust domain twice", twice, "twice"),
        bad("no map", document(), "'trust_domains'"),
        bad("a map that is an array", of([]), "'trust_domains'"),
        bad("a trust domain in upper case", of({"Cluster.local": ours}), "a-z"),
        bad("a name that is an ID", of({"spiffe://cluster.local": ours}), "a-z"),
        bad("a bundle that is none", of({TRUST_DOMAIN: []}), "not an object"),
        bad("one bad bundle", of({**both, "other.example": {}}), "'keys'"),
        bad("a root under another name", of({TRUST_DOMAIN: theirs}), "other.example"),
    ]
