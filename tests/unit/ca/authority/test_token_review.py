"""What an API server has to say before a service-account token is believed; the rules alone."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.authority.attestation import token_review
from ca.authority.attestation.token_review import BoundPod, TokenRules, UnexpectedAnswer
from ca.authority.errors import Refusal
from ca.messages import RefusalCode

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RULES = TokenRules(audience="ringfence-ca", service_accounts=frozenset({"ringfence/ringfence-agent"}))
BOUND = BoundPod(namespace="ringfence", name="agent-x", uid="1-2", service_account="ringfence-agent", node=None)
EXTRA = "authentication.kubernetes.io/"


def token(**claims: object) -> bytes:
    payload = {"aud": ["ringfence-ca"], "exp": AT.timestamp() + 600} | claims
    return b"e30." + base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=") + b".c2ln"


def answer() -> dict[str, Any]:
    extra = {EXTRA + "pod-name": ["agent-x"], EXTRA + "pod-uid": ["1-2"], EXTRA + "node-name": ["node-1"]}
    user = {"username": "system:serviceaccount:ringfence:ringfence-agent", "extra": extra}
    return {"status": {"authenticated": True, "user": user, "audiences": ["ringfence-ca"]}}


def refused(document: object) -> str:
    with pytest.raises(Refusal) as refusal:
        token_review.bound_pod(document, rules=RULES)
    assert refusal.value.code is RefusalCode.ATTESTATION_REFUSED
    return refusal.value.text


def test_a_token_that_may_be_good_is_handed_on() -> None:
    assert token_review.presented_token(token() + b"\n", rules=RULES, at=AT) == token().decode()
    assert token_review.presented_token(token(aud="ringfence-ca"), rules=RULES, at=AT)
    assert token_review.presented_token(token(exp=10**400), rules=RULES, at=AT)


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        (b"", "RFC 7519 3.1"),
        (b"\xff\xfe", "RFC 7519 3.1"),
        (b"rfjoin-0000", "RFC 7519 3.1"),
        (b"a.b", "RFC 7519 3.1"),
        (b"a.b.c.d", "RFC 7519 3.1"),
        (b"e30.W10.e30", "RFC 7519 3.1"),
        (b"e30." + base64.urlsafe_b64encode(b"[" * 6000) + b".e30", "RFC 7519 3.1"),
        (b"e30.e30.e30\r\nAuthorization: x", "RFC 7519 3.1"),
        (token(aud=["https://kubernetes.default.svc"]), "RFC 7519 4.1.3"),
        (token(aud="ringfence-ca-2"), "RFC 7519 4.1.3"),
        (token(aud=None), "RFC 7519 4.1.3"),
        (token(exp=None), "RFC 7519 4.1.4"),
        (token(exp=True), "RFC 7519 4.1.4"),
        (token(exp=AT.timestamp() - 61), "RFC 7519 4.1.4"),
    ],
)
def test_what_can_not_be_good_is_refused_without_asking(evidence: bytes, says: str) -> None:
    with pytest.raises(Refusal) as refusal:
        token_review.presented_token(evidence, rules=RULES, at=AT)
    assert refusal.value.code is RefusalCode.ATTESTATION_REFUSED
    assert says in refusal.value.text


@given(st.binary(max_size=200))
def test_any_evidence_is_a_token_or_a_refusal(evidence: bytes) -> None:
    try:
        found = token_review.presented_token(evidence, rules=RULES, at=AT)
    except Refusal:
        return
    assert found.isascii()
    assert found.isprintable()


def test_a_reviewed_token_names_pod_and_node() -> None:
    found = token_review.bound_pod(answer(), rules=RULES)
    assert (found.namespace, found.name, found.uid, found.node) == ("ringfence", "agent-x", "1-2", "node-1")


def test_an_older_api_server_names_no_node() -> None:
    document = answer()
    del document["status"]["user"]["extra"][EXTRA + "node-name"]
    assert token_review.bound_pod(document, rules=RULES).node is None


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("authenticated", False, "does not accept"),
        ("authenticated", "true", "does not accept"),
        ("authenticated", 1, "does not accept"),
        ("audiences", None, "does not confirm the audience"),
        ("audiences", [], "does not confirm the audience"),
        ("audiences", ["https://kubernetes.default.svc"], "does not confirm the audience"),
        ("audiences", "ringfence-ca", "does not confirm the audience"),
        ("user.username", "system:serviceaccount:default:ringfence-agent", "not one of the agents'"),
        ("user.username", "system:serviceaccount:ringfence:default", "not one of the agents'"),
        ("user.username", "system:serviceaccount:ringfence:ringfence-agent:x", "not that of a service account"),
        ("user.username", "system:serviceaccount:ringfence/ringfence-agent", "not that of a service account"),
        ("user.username", "system:node:node-1", "not that of a service account"),
        ("user.username", None, "not that of a service account"),
        ("user.extra", None, "not bound to a pod"),
        ("user.extra", {EXTRA + "pod-name": ["agent-x"]}, "not bound to a pod"),
        ("user.extra", {EXTRA + "pod-uid": ["1-2"]}, "not bound to a pod"),
    ],
)
def test_an_answer_that_does_not_vouch_for_an_agents_pod_is_a_refusal(path: str, value: object, says: str) -> None:
    document = answer()
    place, _, last = path.rpartition(".")
    (document["status"][place] if place else document["status"])[last] = value
    assert says in refused(document)


def test_the_reason_of_the_api_server_is_told_short_and_escaped() -> None:
    text = refused({"status": {"user": {}, "error": "invalid bearer token\n\x1b[31m" + "x" * 5000}})
    assert "invalid bearer token" in text
    assert text.isprintable()
    assert len(text) < 400


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"status": []},
        {"status": {"authenticated": True, "audiences": ["ringfence-ca"]}},
        {"status": {"authenticated": True, "audiences": ["ringfence-ca"], "user": "root"}},
    ],
)
def test_what_is_no_review_is_not_believed(document: object) -> None:
    with pytest.raises(UnexpectedAnswer):
        token_review.bound_pod(document, rules=RULES)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node-name", ["node-1", "node-2"]),
        ("node-name", "node-1"),
        ("node-name", [3]),
        ("node-name", ["../node-1"]),
        ("node-name", [""]),
        ("pod-name", ["a/../../secrets/x"]),
        ("pod-name", ["a?x=y"]),
        ("pod-uid", ["a b"]),
    ],
)
def test_a_field_that_is_not_one_name_is_not_believed(key: str, value: object) -> None:
    document = answer()
    document["status"]["user"]["extra"][EXTRA + key] = value
    with pytest.raises(UnexpectedAnswer):
        token_review.bound_pod(document, rules=RULES)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON, st.sampled_from(["", "status", "user", "extra", "audiences", "username"]))
def test_any_answer_is_a_pod_a_refusal_or_unexpected(value: object, where: str) -> None:
    document: Any = answer()
    match where:
        case "":
            document = value
        case "status":
            document["status"] = value
        case "user" | "audiences":
            document["status"][where] = value
        case _:
            document["status"]["user"][where] = value
    try:
        token_review.bound_pod(document, rules=RULES)
    except (Refusal, UnexpectedAnswer):
        pass


def pod(**changes: object) -> dict[str, Any]:
    spec = {"nodeName": "node-1", "serviceAccountName": "ringfence-agent"}
    return {"metadata": {"uid": "1-2"}, "spec": spec | changes}


def test_the_node_of_a_pod_is_that_of_its_spec() -> None:
    assert token_review.node_of_pod(pod(), bound=BOUND) == "node-1"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (pod() | {"metadata": {"uid": "another"}}, "uid"),
        (pod() | {"metadata": {}}, "uid"),
        (pod(serviceAccountName="default"), "service account"),
        (pod(nodeName=""), "not scheduled"),
        (pod(nodeName=None), "not scheduled"),
        (pod(nodeName=["node-1"]), "not scheduled"),
    ],
)
def test_a_pod_that_is_another_or_runs_nowhere_is_refused(document: object, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        token_review.node_of_pod(document, bound=BOUND)


@pytest.mark.parametrize("document", [None, [], {}, {"metadata": {"uid": "1-2"}}, {"metadata": [], "spec": {}}])
def test_what_is_no_pod_is_not_believed(document: object) -> None:
    with pytest.raises(UnexpectedAnswer):
        token_review.node_of_pod(document, bound=BOUND)


def test_another_node_is_refused_without_naming_the_right_one() -> None:
    token_review.require_node("node-1", claimed="node-1", bound=BOUND)
    with pytest.raises(Refusal) as refusal:
        token_review.require_node("node-1", claimed="node-2", bound=BOUND)
    assert "node-1" not in refusal.value.text
