"""What looks like a secret is taken out, whatever it stands in; what only names one stays."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from node_agent.cli.bundle.redact import REMOVED, redacted

_KIND = "ENCRYPTED PRIVATE KEY"
_KEY = f"-----BEGIN {_KIND}-----\nMIIBvTBXBgkqhkiG9w0BBQ0wSjApBgkq\nq1w2e3r4\n-----END {_KIND}-----"
_JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
_SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"before {_KEY} after", "MIIBvTBX"),
        (json.dumps({"pem": _KEY}), "MIIBvTBX"),
        (_KEY[:80], "MIIBvTBX"),  # a log that was cut off
        (f"postgresql://ringfence:{_SECRET}@db:5432/ca", _SECRET),
        (f"https://{_SECRET}@collector/v1", _SECRET),
        (f"Authorization: Bearer {_SECRET}", _SECRET),
        (f"authorization=Basic {_SECRET}", _SECRET),
        (f'{{"authorization": "{_SECRET}"}}', _SECRET),
        (f"x-api-key: {_SECRET}", _SECRET),
        (f'"join_token": "{_SECRET}"', _SECRET),
        (f"PASSWORD={_SECRET}", _SECRET),
        (f"ca passphrase: {_SECRET}", _SECRET),
        (f"token {_JWT} was refused", _JWT),
    ],
)
def test_a_secret_is_taken_out(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redacted(text)
    assert REMOVED in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        '"join_token_file": "/etc/ringfence/join-token"',
        '"node_key_passphrase_file": null',
        "spiffe://cluster.local/ns/shop/sa/web",
        "http://127.0.0.1:4318/v1/traces",
        "the join token was used already",
        '"token": null',
        "tcp dport 15008 accept",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@given(st.text(), st.text(), st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789+/\n", min_size=40))
def test_a_private_key_is_taken_out_of_any_text(before: str, after: str, key: str) -> None:
    assume(key not in before + after)
    pem = f"-----BEGIN EC PRIVATE KEY-----\n{key}\n-----END EC PRIVATE KEY-----"
    assert key not in redacted(f"{before}{pem}{after}")
