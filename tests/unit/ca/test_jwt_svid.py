"""The rules of JWT-SVID, positive and negative, against PyJWT as the independent one that signs."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ca.jwt_svid import ALGORITHMS, MAX_TOKEN_BYTES, JwtSvid, JwtSvidError, check_audience

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NOW: Final = int(AT.timestamp())
SUBJECT: Final = "spiffe://cluster.local/ns/default/sa/web"
CLAIMS: Final[dict[str, Any]] = {"sub": SUBJECT, "aud": ["db"], "exp": NOW + 300, "iat": NOW, "jti": "1"}
P256: Final = ec.generate_private_key(ec.SECP256R1())
KEYS: Final[dict[str, Any]] = {
    "ES256": P256,
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


def key_for(algorithm: str) -> Any:
    return KEYS.get(algorithm, KEYS["RSA"])


def public_der(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


def token(claims: dict[str, Any] | None = None, *, algorithm: str = "ES256", key: Any = None, **header: Any) -> str:
    headers = {"kid": "k1"} | header
    return jwt.encode(claims or CLAIMS, key or key_for(algorithm), algorithm=algorithm, headers=headers)


def verify(text: str, *, key: Any = P256, audience: str = "db", at: datetime = AT) -> JwtSvid:
    def public_key_of(trust_domain: str, key_id: str) -> bytes | None:
        return public_der(key) if (trust_domain, key_id) == ("cluster.local", "k1") else None

    return JwtSvid.verify(text, audience=audience, public_key_of=public_key_of, at=at)


def refused(text: str, **arguments: Any) -> str:
    with pytest.raises(JwtSvidError) as error:
        verify(text, **arguments)
    assert len(text) < 20 or text not in str(error.value)
    return str(error.value)


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_token(header: bytes, claims: bytes, *, key: Any = P256) -> str:
    """Sign whatever bytes, as a broken or hostile issuer with a good key would."""
    signed = f"{base64url(header)}.{base64url(claims)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), key)
    return f"{signed}.{base64url(signature)}"


HEADER: Final = json.dumps({"alg": "ES256", "kid": "k1"}).encode()


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_of_the_standard_is_verified(algorithm: str) -> None:
    key = key_for(algorithm)
    found = verify(token(algorithm=algorithm), key=key)
    assert (str(found.identity), found.audience, found.key_id) == (SUBJECT, ("db",), "k1")
    assert found.expires_at == AT + timedelta(seconds=300)
    assert found.claims == CLAIMS
    text = token(algorithm=algorithm)
    signature = text.rpartition(".")[2]
    other = "A" if signature[5] != "A" else "B"
    assert "signature" in refused(text.replace(signature, signature[:5] + other + signature[6:]), key=key)


def test_one_audience_may_stand_alone_and_typ_may_be_jwt_or_jose() -> None:
    assert verify(token(CLAIMS | {"aud": "db"})).audience == ("db",)
    assert verify(token(typ="JOSE")).key_id == "k1"
    assert verify(token(CLAIMS | {"aud": ["x", "db", "y"], "own": {"a": [1, None, True]}})).claims["own"]


def test_a_token_of_another_key_is_refused() -> None:
    assert "signature" in refused(token(key=ec.generate_private_key(ec.SECP256R1())))


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"sub": None}, "'sub'"),
        ({"sub": "web"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://cluster.local"}, "names a trust domain"),
        ({"sub": "spiffe://cluster.local/"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://CLUSTER.local/a"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://other.example/ns/default/sa/web"}, "not in the trust bundle of its subject"),
        ({"aud": None}, "'aud'"),
        ({"aud": []}, "'aud'"),
        ({"aud": ["db", 5]}, "'aud'"),
        ({"aud": {"db": 1}}, "'aud'"),
        ({"aud": ["DB"]}, "another audience"),
        ({"aud": "dbx"}, "another audience"),
        ({"exp": None}, "'exp'"),
        ({"exp": str(NOW + 300)}, "'exp' is not a number"),
        ({"exp": True}, "'exp' is not a number"),
        ({"exp": 10**30}, "'exp' is not a date"),
        ({"exp": NOW - 61}, "expired at 2026-11-22T11:58:59Z; it is 2026-11-22T12:00:00Z here"),
        ({"nbf": NOW + 61}, "'nbf' is 2026-11-22T12:01:01Z, in the future"),
        ({"iat": NOW + 61}, "'iat' is 2026-11-22T12:01:01Z, in the future"),
        ({"iat": "now"}, "'iat' is not a number"),
    ],
)
def test_wrong_claims_are_refused_by_the_rule_that_they_break(claims: dict[str, Any], says: str) -> None:
    wrong = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    assert says in refused(raw_token(HEADER, json.dumps(wrong).encode()))


def test_a_clock_may_be_a_minute_off_either_way() -> None:
    late, early = CLAIMS | {"exp": NOW - 59, "iat": NOW - 300}, CLAIMS | {"iat": NOW + 60, "nbf": NOW + 60}
    assert [verify(token(claims)).claims for claims in (late, early)] == [late, early]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"alg": "none", "kid": "k1"}, "'alg'"),
        ({"alg": "HS256", "kid": "k1"}, "'alg'"),
        ({"alg": "EdDSA", "kid": "k1"}, "'alg'"),
        ({"alg": "es256", "kid": "k1"}, "'alg'"),
        ({"alg": ["ES256"], "kid": "k1"}, "'alg'"),
        ({"kid": "k1"}, "'alg'"),
        ({"alg": "ES256"}, "no 'kid'"),
        ({"alg": "ES256", "kid": ""}, "no 'kid'"),
        ({"alg": "ES256", "kid": 1}, "no 'kid'"),
        ({"alg": "ES256", "kid": "k2"}, "not in the trust bundle"),
        ({"alg": "ES384", "kid": "k1"}, "'alg' is not that of the key"),
        ({"alg": "RS256", "kid": "k1"}, "'alg' is not that of the key"),
        ({"alg": "ES256", "kid": "k1", "typ": "jwt"}, "'typ'"),
        ({"alg": "ES256", "kid": "k1", "typ": None}, "'typ'"),
        ({"alg": "ES256", "kid": "k1", "crit": ["exp"]}, "a header other than"),
        ({"alg": "ES256", "kid": "k1", "jku": "https://evil.example"}, "a header other than"),
        ({"alg": "ES256", "kid": "k1", "jwk": {"kty": "EC"}}, "a header other than"),
    ],
)
def test_wrong_headers_are_refused_by_the_rule_that_they_break(header: dict[str, Any], says: str) -> None:
    assert says in refused(raw_token(json.dumps(header).encode(), json.dumps(CLAIMS).encode()))


def test_a_public_key_is_never_a_shared_secret() -> None:
    """RFC 8725 2.1: a verifier that lets the token choose can be made to take the public key for an HMAC key."""
    signed = f"{base64url(json.dumps({'alg': 'HS256', 'kid': 'k1'}).encode())}.{base64url(json.dumps(CLAIMS).encode())}"
    forged = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), public_der(P256))
    assert "'alg'" in refused(f"{signed}.{base64url(forged)}")


def test_weak_and_foreign_keys_verify_nothing() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    signed = f"{base64url(json.dumps({'alg': 'RS256', 'kid': 'k1'}).encode())}.{base64url(json.dumps(CLAIMS).encode())}"
    signature = jwt.get_algorithm_by_name("RS256").sign(signed.encode(), weak)
    assert "not that of the key" in refused(f"{signed}.{base64url(signature)}", key=weak)
    assert "not that of the key" in refused(token(), key=ed25519.Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "..",
        lambda text: text + ".",
        lambda text: text.rpartition(".")[0],
        lambda text: text.rpartition(".")[0] + ".",
        lambda text: text + "=",
        lambda text: " " + text,
        lambda text: text + "\n",
        lambda text: text.replace(".", "\u2024", 1),
        lambda text: "x" * MAX_TOKEN_BYTES + text,
        lambda text: text[:-1] + {"A": "B", "Q": "R", "g": "h", "w": "x"}[text[-1]],  # bits that decoders ignore
    ],
)
def test_nothing_but_the_one_way_to_write_it_is_a_token(change: Any) -> None:
    refused(change(token()))


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        (b"[]", "not a JSON object"),
        (b"5", "not a JSON object"),
        (b"\xff", "not JSON in UTF-8"),
        (b"{", "not JSON in UTF-8"),
        (b"[" * 10_000, "not JSON in UTF-8"),
        (b'{"sub": "a", "sub": "b"}', "appears twice"),
        (b'{"sub": "a", "x": {"y": 1, "y": 1}}', "appears twice"),
        (b'{"x": NaN}', "NaN is not JSON"),
        (b'{"x": 1e999}', "a number is out of range"),
        (b'{"x": 1' + b"0" * 400 + b"}", "a number is out of range"),
        (b'{"x": "\\ud800"}', "a text is not Unicode"),
        (b'{"x": ' + b"[" * 17 + b"]" * 17 + b"}", "nested deeper"),
    ],
)
def test_claims_that_others_could_read_differently_are_refused(claims: bytes, says: str) -> None:
    assert says in refused(raw_token(HEADER, claims))


def test_nobody_in_particular_is_no_audience() -> None:
    assert "another audience" in refused(token(CLAIMS | {"aud": ["", "db"]}), audience="")


@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.binary(max_size=40), min_size=3, max_size=3).map(
            lambda parts: ".".join(base64url(part) for part in parts)
        ),
    )
)
def test_any_text_is_a_token_or_a_jwt_svid_error(text: str) -> None:
    refused(text)


@given(st.binary(min_size=64, max_size=64))
def test_any_signature_is_judged_without_a_crash(signature: bytes) -> None:
    assert "signature" in refused(token().rpartition(".")[0] + "." + base64url(signature))


@pytest.mark.parametrize("audience", [(), ("",), ("a", ""), ("a", "a"), ("x" * 513,), tuple("abcdefghijklmnopq")])
def test_an_audience_that_makes_no_sense_is_not_asked_for(audience: tuple[str, ...]) -> None:
    with pytest.raises(JwtSvidError):
        check_audience(audience)
