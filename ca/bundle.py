"""Trust bundles as SPIFFE writes them: a JSON Web Key Set, read and written by the letter.

    {"spiffe_sequence": 7, "spiffe_refresh_hint": 300,
     "keys": [{"use": "x509-svid", "kty": "EC", ..., "x5c": ["MIIB..."]},
              {"use": "jwt-svid", "kty": "EC", "kid": "...", ...}]}

A bundle does not say whose it is: the caller knows, from where it got it, and
every signing certificate in it is judged as that trust domain's.

Three kinds of surprise, three answers.  What a newer publisher may add (a
member, a key type, a use) is ignored, as the standard wants.  An entry that
proves nothing (no ``kty``, no ``use``, no ``x5c``) is skipped.  Whatever
contradicts itself or breaks a MUST of the publisher makes the whole document
an error, and the bundle that was in force stays.

Sans-I/O.  Section numbers are those of SPIFFE Trust Domain and Bundle (TDB)
unless another document is named.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from ca.jwk import JwkError, PublicKey, from_jwk, key_type, to_jwk
from ca.spiffe import SpiffeId, SpiffeIdError
from ca.svid import SvidError, check_signing_certificate, load_certificate
from ca.trust import MAX_BUNDLES, MAX_JWT_KEYS, MAX_ROOTS, JwtKey, TrustBundle

MAX_BUNDLE_BYTES: Final = 256 * 1024  # 64 roots of an RSA PKI are ~150 KiB in base64
MAX_BUNDLE_MAP_BYTES: Final = 4 * 1024 * 1024
DEFAULT_REFRESH_HINT_S: Final = 300  # SPIFFE Federation 4.1: "five minutes is recommended"
_MAX_SEQUENCE: Final = 2**64 - 1  # 4.1.1: "at least 64 bits of precision"
_MAX_REFRESH_HINT_S: Final = 366 * 86_400
_MAX_ENTRIES: Final = 512  # with those that are skipped
_MAX_KEY_ID: Final = 256
_MAX_CERTIFICATE_BYTES: Final = 64 * 1024  # one of 2 KiB is large
_X509: Final = "x509-svid"
_JWT: Final = "jwt-svid"
_KEY_TYPES: Final = ("EC", "RSA", "OKP")


class BundleError(ValueError):
    """A document is not a trust bundle; ``section`` is where the broken rule is written."""

    def __init__(self, rule: str, section: str) -> None:
        super().__init__(f"{rule} ({section})")
        self.rule = rule
        self.section = section


def parse_bundle(data: bytes, *, trust_domain: str) -> TrustBundle:
    """Read the bundle of ``trust_domain``.

    ``sequence`` is 0 where the publisher gives none.

    Raises:
        BundleError: the first rule that it breaks.
    """
    return _bundle(_document(data, MAX_BUNDLE_BYTES), trust_domain)


def parse_bundle_map(data: bytes) -> dict[str, TrustBundle]:
    """Read a SPIFFE Bundle Map: the bundles of several trust domains, by name.

    The refresh hint of the map is that of every bundle in it; those inside are ignored (TDB 5.1).

    Raises:
        BundleError: the first rule that it breaks, in whichever bundle.
    """
    document = _document(data, MAX_BUNDLE_MAP_BYTES)
    members = document.get("trust_domains")
    if not isinstance(members, dict) or len(members) > MAX_BUNDLES:
        raise BundleError(f"'trust_domains' has to be an object of at most {MAX_BUNDLES} bundles", "TDB 5.1.1")
    hint = _refresh_hint(document)
    found = {}
    for name, member in members.items():
        try:
            SpiffeId(name, "")
        except SpiffeIdError as error:
            raise BundleError(f"'trust_domains': {error}", "TDB 5.1.1") from error
        if not isinstance(member, dict):
            raise BundleError(f"the bundle of {name!r} is not an object", "TDB 5.1.1")
        without_hint = {key: value for key, value in member.items() if key != "spiffe_refresh_hint"}
        found[name] = _bundle({**without_hint, "spiffe_refresh_hint": hint}, name)
    return found


def write_bundle(bundle: TrustBundle) -> bytes:
    """Write ``bundle`` in UTF-8; equal bundles are equal bytes."""
    return _json(_members(bundle))


def write_bundle_map(bundles: Sequence[TrustBundle]) -> bytes:
    """Write several bundles, each under the name of its trust domain."""
    hint = min((bundle.refresh_hint_s for bundle in bundles), default=DEFAULT_REFRESH_HINT_S)
    members = {}
    for bundle in bundles:
        members[bundle.trust_domain] = _members(bundle)
        del members[bundle.trust_domain]["spiffe_refresh_hint"]
    return _json({"spiffe_refresh_hint": max(1, int(hint)), "trust_domains": members})


def require_successor(new: TrustBundle, old: TrustBundle) -> None:
    """Check that ``new``, which came just now from ``old``'s publisher, may take its place.

    Section 4.1.1: the sequence number "MUST be a monotonically increasing
    integer, and MUST be changed whenever the contents of the bundle are
    updated".  A publisher that gives none is believed as it is (SPIFFE
    Federation 4.2).

    Raises:
        BundleError: it is older, or another bundle under the same number.
    """
    if not new.sequence or not old.sequence or new.sequence > old.sequence:
        return
    if new.sequence < old.sequence:
        raise BundleError(
            f"the sequence number has gone back from {old.sequence} to {new.sequence}: an old copy, or a publisher "
            "that was set back; the newer one stays in force",
            "TDB 4.1.1",
        )
    if (new.x509_der, new.jwt_keys) != (old.x509_der, old.jwt_keys):
        raise BundleError(f"other keys under the same sequence number {new.sequence}", "TDB 4.1.1")


def _document(data: bytes, max_bytes: int) -> dict[str, Any]:
    if len(data) > max_bytes:
        raise BundleError(f"{len(data)} bytes, more than the {max_bytes} allowed", "TDB 4")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        # ValueError is also UnicodeDecodeError; the text of neither is quoted: it could hold the document.
        raise BundleError("not a JSON document in UTF-8", "TDB 4, RFC 8259") from error
    if not isinstance(document, dict):
        raise BundleError("not a JSON object", "RFC 7517 5")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BundleError("a member appears twice in one object", "TDB 5.1.1, RFC 7517 4")
    return found


def _no_constant(name: str) -> float:
    raise BundleError(f"{name} is not JSON", "RFC 8259 6")


def _bundle(document: Mapping[str, Any], trust_domain: str) -> TrustBundle:
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise BundleError("'keys' has to be an array of keys; an empty one trusts nothing", "TDB 4.1.3")
    if len(entries) > _MAX_ENTRIES:
        raise BundleError(f"{len(entries)} keys, more than the {_MAX_ENTRIES} allowed", "TDB 4.1.3")
    roots: dict[bytes, None] = {}
    jwt_keys: dict[str, JwtKey] = {}
    for number, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise BundleError("is not an object", "RFC 7517 4")
            # "The values are case sensitive.  Clients encountering unknown `use` values MUST ignore the entire
            # JWK element", and so for an unknown key type (4.2.1).
            if entry.get("kty") not in _KEY_TYPES:
                continue
            if entry.get("use") == _X509:
                if (der := _x509_authority(entry, trust_domain)) is not None:
                    roots[der] = None
            elif entry.get("use") == _JWT and (key := _jwt_authority(entry)) is not None:
                if key.key_id in jwt_keys:
                    raise BundleError(f"'kid' {key.key_id[:80]!r} appears twice", "RFC 7517 4.5")
                jwt_keys[key.key_id] = key
        except (BundleError, JwkError, SvidError) as error:
            rule = error.rule if isinstance(error, BundleError | SvidError) else str(error)
            section = "RFC 7517" if isinstance(error, JwkError) else error.section
            raise BundleError(f"keys[{number}]: {rule}", section) from error
    if any(len(der) > _MAX_CERTIFICATE_BYTES for der in roots):
        raise BundleError(f"a certificate of more than {_MAX_CERTIFICATE_BYTES} bytes", "TDB 4.2")
    if len(roots) > MAX_ROOTS or len(jwt_keys) > MAX_JWT_KEYS:
        raise BundleError(f"more than {MAX_ROOTS} roots or {MAX_JWT_KEYS} JWT keys", "TDB 4.1.3")
    return TrustBundle(
        trust_domain=trust_domain,
        sequence=_whole_number(document, "spiffe_sequence", 0, _MAX_SEQUENCE, "TDB 4.1.1"),
        refresh_hint_s=float(_refresh_hint(document)),
        x509_der=tuple(roots),
        jwt_keys=tuple(jwt_keys.values()),
    )


def _x509_authority(entry: Mapping[str, Any], trust_domain: str) -> bytes | None:
    """The certificate of an entry; None for one to ignore."""
    # X509-SVID 6.1: "the `kid` parameter of each JWK entry MUST NOT be set."
    if "kid" in entry:
        raise BundleError("an x509-svid key has a 'kid'", "X509-SVID 6.1")
    # X509-SVID 6.2: "If `x5c` is not set, or is empty, then the entry MUST be ignored."
    chain = entry.get("x5c")
    if chain is None or chain == []:
        return None
    # "If the `x5c` parameter contains multiple values, then all but the first MUST be ignored."
    if not isinstance(chain, list) or not isinstance(chain[0], str):
        raise BundleError("'x5c' has to be an array of text", "RFC 7517 4.7")
    try:
        der = base64.b64decode(chain[0].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BundleError("'x5c' is not base64", "RFC 7517 4.7") from error
    certificate = load_certificate(der)
    check_signing_certificate(certificate, trust_domain=trust_domain)
    # RFC 7517 4.7: "The key in the first certificate MUST match the public key represented by other members"
    key = certificate.public_key()
    members = to_jwk(key) if isinstance(key, PublicKey) else {}
    if any(name in entry and entry[name] != value for name, value in members.items()):
        raise BundleError("the key is another than that of its certificate", "RFC 7517 4.7")
    return der


def _jwt_authority(entry: Mapping[str, Any]) -> JwtKey | None:
    # JWT-SVID 6.1: "Each JWK entry MUST set the `kid` parameter."
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= _MAX_KEY_ID:
        raise BundleError(f"a jwt-svid key needs a 'kid' of 1 to {_MAX_KEY_ID} characters", "JWT-SVID 6.1")
    try:
        key_id.encode()
    except UnicodeEncodeError as error:  # JSON can write half a character
        raise BundleError("'kid' is not Unicode text", "RFC 7517 4.5") from error
    key = from_jwk(entry)
    # JWT-SVID 2.1 allows RS*, ES* and PS* only; other keys could verify nothing.
    if key is None or key_type(key) == "OKP":
        return None
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return JwtKey(key_id=key_id, public_key_der=der)


def _refresh_hint(document: Mapping[str, Any]) -> int:
    return _whole_number(document, "spiffe_refresh_hint", DEFAULT_REFRESH_HINT_S, _MAX_REFRESH_HINT_S, "TDB 4.1.2")


def _whole_number(document: Mapping[str, Any], name: str, default: int, most: int, section: str) -> int:
    value = document.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise BundleError(f"{name!r} has to be a whole number from 0 to {most}", section)
    return value


def _members(bundle: TrustBundle) -> dict[str, Any]:
    keys: list[dict[str, Any]] = []
    for der in bundle.x509_der:
        key = load_certificate(der).public_key()
        if not isinstance(key, PublicKey):
            raise BundleError("a root with a key of an unknown kind", "RFC 7517 4.1")
        keys.append({"use": _X509, **to_jwk(key), "x5c": [base64.b64encode(der).decode()]})
    for each in bundle.jwt_keys:
        jwt_key = load_der_public_key(each.public_key_der)
        if not isinstance(jwt_key, PublicKey):
            raise BundleError(f"the JWT key {each.key_id!r} is of an unknown kind", "RFC 7517 4.1")
        keys.append({"use": _JWT, "kid": each.key_id, **to_jwk(jwt_key)})
    members: dict[str, Any] = {"keys": keys, "spiffe_refresh_hint": max(1, int(bundle.refresh_hint_s))}
    if bundle.sequence:
        members["spiffe_sequence"] = bundle.sequence
    return members


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
