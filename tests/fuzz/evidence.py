"""Fuzz target: what nodes show to prove themselves, before anything of it is believed.

Any bytes are a token to ask the API server about, or a ``Refusal``; and any
document, even one that its signer has signed, is a machine or a ``Refusal``.
"""

import base64
import json
from datetime import UTC, datetime, timedelta

import atheris

with atheris.instrument_imports(include=["ca"]):
    from ca.authority.attestation import instance_document, token_review
    from ca.authority.attestation.attested import Claim
    from ca.authority.errors import Refusal
    from ca.messages import RefusalCode

from tests.fuzz import harness
from tests.instance_documents import ACCOUNT, Provider, document

_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_PROVIDER = Provider(at=_AT)
_TOKENS = token_review.TokenRules(audience="ringfence-ca", service_accounts=frozenset({"a/b"}))
_DOCUMENTS = instance_document.DocumentRules(
    certificates=(_PROVIDER.certificate,),
    accounts=frozenset({ACCOUNT}),
    regions=frozenset({"eu-central-1"}),
    node_name="{instanceId}.{privateIp}",
    max_age=timedelta(hours=1),
)


def target(data: bytes) -> None:
    try:
        assert token_review.presented_token(data, rules=_TOKENS, at=_AT).isprintable()
    except Refusal as refusal:
        _require_sound(refusal)
    for evidence in (data, _PROVIDER.evidence(data)):
        try:
            found = instance_document.judge(Claim(node="i-1.10.0.0.7", evidence=evidence), rules=_DOCUMENTS, at=_AT)
        except Refusal as refusal:
            _require_sound(refusal)
        else:
            assert found.id.isprintable()


def _require_sound(refusal: Refusal) -> None:
    assert refusal.code is RefusalCode.ATTESTATION_REFUSED
    assert refusal.text.isprintable()


def seeds() -> list[bytes]:
    claims = {"aud": ["ringfence-ca"], "exp": _AT.timestamp() + 600}
    token = b"e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=") + b".c2ln"
    documents = [document("i-1", at=_AT), document("i-1", at=_AT, region="x"), b"{}", b"[]"]
    return [token, *documents, *map(_PROVIDER.evidence, documents)]


if __name__ == "__main__":
    harness.main("tests.fuzz.evidence", target, seeds())
