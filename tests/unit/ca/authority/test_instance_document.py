"""A signed document about a machine: what is believed of it, and what is not."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from ca.authority.attestation.attested import Claim
from ca.authority.attestation.instance_document import DocumentRules, InstanceDocuments, judge, signing_key
from ca.authority.errors import Refusal
from ca.authority.records import Instance
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from ca.wire import pack
from tests.authority_builder import TRUST_DOMAIN
from tests.instance_documents import ACCOUNT, Key, Provider, document

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PROVIDER = Provider(at=AT)
RULES = DocumentRules(
    certificates=(PROVIDER.certificate,),
    accounts=frozenset({ACCOUNT}),
    regions=frozenset(),
    node_name="{instanceId}",
    max_age=None,
)


def refused(evidence: bytes, rules: DocumentRules = RULES, node: str = "i-0abc") -> str:
    with pytest.raises(Refusal) as refusal:
        judge(Claim(node=node, evidence=evidence), rules=rules, at=AT)
    assert refusal.value.code is RefusalCode.ATTESTATION_REFUSED
    assert refusal.value.text.isprintable()
    return refusal.value.text


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["rsa", "p-256", "p-384", "ed25519"],
)
def test_a_document_proves_its_machine_and_no_other(key: Key) -> None:
    provider = Provider(key=key, at=AT)
    rules = replace(RULES, certificates=(PROVIDER.certificate, provider.certificate))
    found = judge(Claim(node="i-0abc", evidence=provider.evidence(document(at=AT))), rules=rules, at=AT)
    assert found == Instance(method="instance_document", id=f"{ACCOUNT}/i-0abc")
    assert "of the machine whose node is called i-0abc" in refused(provider.evidence(document(at=AT)), rules, "i-0def")


async def test_a_machine_is_used_up_by_what_it_buys() -> None:
    plugin = InstanceDocuments(trust_domain=TRUST_DOMAIN, rules=RULES)
    proven = await plugin.attest(Claim(node="i-0abc", evidence=PROVIDER.evidence(document(at=AT))), at=AT)
    assert proven.identity == SpiffeId.node(TRUST_DOMAIN, "i-0abc")
    assert proven.instance == Instance(method="instance_document", id=f"{ACCOUNT}/i-0abc")


def test_a_node_may_be_named_by_other_fields() -> None:
    rules = replace(RULES, node_name="node-{privateIp}.{region}")
    evidence = PROVIDER.evidence(document(at=AT))
    judge(Claim(node="node-10.0.0.7.eu-central-1", evidence=evidence), rules=rules, at=AT)
    assert "privateIp of the document" in refused(PROVIDER.evidence(document(at=AT, privateIp=None)), rules)


def test_a_document_of_another_signer_is_refused() -> None:
    assert "vouches" in refused(Provider(at=AT).evidence(document(at=AT)))


def test_a_changed_document_is_refused() -> None:
    signed = document(at=AT)
    evidence = pack({"document": signed.replace(b"i-0abc", b"i-0def"), "signature": PROVIDER.sign(signed)})
    assert "vouches" in refused(evidence, node="i-0def")


@pytest.mark.parametrize("made_at", [AT - timedelta(seconds=1), AT + timedelta(days=2)], ids=["ended", "to-come"])
def test_a_certificate_out_of_its_time_vouches_for_nothing(made_at: datetime) -> None:
    provider = Provider(at=made_at, days=0)
    rules = replace(RULES, certificates=(provider.certificate,))
    assert "valid now" in refused(provider.evidence(document(at=AT)), rules)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accountId": "000000000000"}, "accounts"),
        ({"accountId": None}, "accountId"),
        ({"accountId": 123456789012}, "accountId"),
        ({"instanceId": "i/../x"}, "instanceId"),
        ({"instanceId": "i-0abc\n"}, "instanceId"),
        ({"instanceId": "x" * 129}, "instanceId"),
        ({"instanceId": ["i-0abc"]}, "instanceId"),
        ({"region": "us-east-1"}, "regions"),
        ({"pendingTime": "yesterday"}, "RFC 3339"),
        ({"pendingTime": None}, "RFC 3339"),
        ({"pendingTime": "2026-11-22T10:59:59Z"}, "max_age_s"),
        ({"pendingTime": "2026-11-22T12:01:01Z"}, "it is 2026-11-22T12:00:00Z here"),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused_with_it(changes: dict[str, Any], says: str) -> None:
    rules = replace(RULES, regions=frozenset({"eu-central-1"}), max_age=timedelta(hours=1))
    judge(Claim(node="i-0abc", evidence=PROVIDER.evidence(document(at=AT))), rules=rules, at=AT)
    assert says in refused(PROVIDER.evidence(document(at=AT, **changes)), rules)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 9000,
        b'{"accountId": "1", "accountId": "' + ACCOUNT.encode() + b'"}',
        b'{"accountId": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "array", "null", "not-text", "deep", "twice", "huge-number"],
)
def test_what_is_no_document_is_refused_although_it_is_signed(text: bytes) -> None:
    assert "RFC 8259 4" in refused(PROVIDER.evidence(text))


@pytest.mark.parametrize(
    "evidence",
    [
        b"x",
        pack({}),
        pack([document(), b"x"]),
        pack({"document": document(), "signature": b"", "more": 1}),
        pack({"document": "text", "signature": b"x"}),
        pack({"document": document(), "signature": None}),
        pack({"document": document(), "signature": b""}),
        pack({"document": document(), "signature": b"\0" * 64}),
    ],
)
def test_evidence_of_another_form_is_refused(evidence: bytes) -> None:
    assert refused(evidence)


@given(st.binary(max_size=300))
def test_any_signed_bytes_are_a_machine_or_a_refusal(text: bytes) -> None:
    try:
        judge(Claim(node="i-0abc", evidence=PROVIDER.evidence(text)), rules=RULES, at=AT)
    except Refusal:
        pass


@given(
    st.dictionaries(
        st.sampled_from(["accountId", "instanceId", "region", "pendingTime"]),
        st.none() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_any_signed_fields_are_a_machine_or_a_refusal(fields: dict[str, object]) -> None:
    rules = replace(RULES, regions=frozenset({"eu-central-1"}), max_age=timedelta(hours=1))
    text = json.dumps(json.loads(document(at=AT)) | fields).encode()
    try:
        judge(Claim(node="i-0abc", evidence=PROVIDER.evidence(text)), rules=rules, at=AT)
    except Refusal as refusal:
        assert refusal.text.isprintable()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=["rsa-1024", "p-521"],
)
def test_weak_and_uncommon_keys_do_not_vouch(key: Key) -> None:
    with pytest.raises(ValueError, match="RSA of 2048 bits or more"):
        signing_key(Provider(key=key, at=AT).certificate)
