"""Our protobuf codec against the real one, in both directions, on arbitrary messages and arbitrary bytes."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from spiffe._proto import workload_pb2 as real

from node_agent.workload_api import messages, protobuf

TEXT = st.text(max_size=40)
BYTES = st.binary(max_size=300)
BUNDLES = st.dictionaries(TEXT, BYTES, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(
    svids=st.lists(st.tuples(TEXT, BYTES, BYTES, BYTES, TEXT), max_size=3),
    federated=BUNDLES,
)
def test_an_x509_reply_is_read_by_the_real_package(
    svids: list[tuple[str, bytes, bytes, bytes, str]], federated: dict[str, bytes]
) -> None:
    ours = messages.x509_svid_response(
        [
            messages.X509Svid(spiffe_id=name, chain_der=chain, key_der=key, bundle_der=bundle, hint=hint)
            for name, chain, key, bundle, hint in svids
        ],
        federated,
    )
    found = real.X509SVIDResponse.FromString(ours)
    assert [(s.spiffe_id, s.x509_svid, s.x509_svid_key, s.bundle, s.hint) for s in found.svids] == svids
    assert dict(found.federated_bundles) == federated
    assert not found.crl


@given(bundles=BUNDLES)
def test_bundles_are_read_by_the_real_package(bundles: dict[str, bytes]) -> None:
    assert dict(real.X509BundlesResponse.FromString(messages.x509_bundles_response(bundles)).bundles) == bundles
    assert dict(real.JWTBundlesResponse.FromString(messages.jwt_bundles_response(bundles)).bundles) == bundles


@given(svids=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=3))
def test_a_jwt_reply_is_read_by_the_real_package(svids: list[tuple[str, str, str]]) -> None:
    ours = messages.jwt_svid_response(
        [messages.JwtSvid(spiffe_id=name, token=token, hint=hint) for name, token, hint in svids]
    )
    found = real.JWTSVIDResponse.FromString(ours)
    assert [(s.spiffe_id, s.svid, s.hint) for s in found.svids] == svids


@given(spiffe_id=TEXT, claims=st.dictionaries(TEXT, JSON, max_size=5))
def test_claims_are_read_by_the_real_package(spiffe_id: str, claims: dict[str, Any]) -> None:
    found = real.ValidateJWTSVIDResponse.FromString(messages.validate_jwt_svid_response(spiffe_id, claims))
    assert found.spiffe_id == spiffe_id
    # Struct has no integers: both sides as the doubles that JSON makes of them.
    doubles = json.loads(json.dumps(claims), parse_int=float)
    assert json_format.MessageToDict(found.claims) == doubles


@given(audience=st.lists(TEXT, max_size=5), spiffe_id=TEXT)
def test_a_jwt_request_of_the_real_package_is_read(audience: list[str], spiffe_id: str) -> None:
    sent = real.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id).SerializeToString()
    assert messages.JwtSvidRequest.decode(sent) == messages.JwtSvidRequest(
        audience=tuple(audience), spiffe_id=spiffe_id
    )


@given(audience=TEXT, token=TEXT)
def test_a_validation_request_of_the_real_package_is_read(audience: str, token: str) -> None:
    sent = real.ValidateJWTSVIDRequest(audience=audience, svid=token).SerializeToString()
    assert messages.ValidateJwtSvidRequest.decode(sent) == messages.ValidateJwtSvidRequest(
        audience=audience, token=token
    )


NUMBERS = st.integers(1, 40)
FIELDS = st.lists(
    st.one_of(
        st.builds(protobuf.blob_field, NUMBERS, st.binary(max_size=20)),
        st.builds(protobuf.varint_field, NUMBERS, st.integers(0, 2**64 - 1)),
        st.builds(protobuf.double_field, NUMBERS, st.floats()),
        st.builds(lambda number, fixed32: protobuf.varint(number << 3 | 5) + fixed32, NUMBERS, st.just(b"abcd")),
    ),
    max_size=6,
).map(b"".join)


@given(data=st.one_of(st.binary(max_size=60), FIELDS, st.tuples(FIELDS, st.binary(max_size=8)).map(b"".join)))
@example(data=b"\x0a\x03abc\x12\x02xy")
@example(data=b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(data=b"\x0a\x02\xc3\x28")
@example(data=b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
def test_any_bytes_are_a_message_or_an_error_and_what_we_accept_the_real_package_reads_the_same(data: bytes) -> None:
    try:
        ours = messages.JwtSvidRequest.decode(data)
    except protobuf.ProtobufError:
        return
    theirs = real.JWTSVIDRequest.FromString(data)
    assert (tuple(theirs.audience), theirs.spiffe_id) == (ours.audience, ours.spiffe_id)


@given(data=FIELDS)
def test_unknown_fields_are_skipped_as_the_real_package_does(data: bytes) -> None:
    try:
        theirs = real.ValidateJWTSVIDRequest.FromString(data)
    except DecodeError:
        with pytest.raises(protobuf.ProtobufError):
            messages.ValidateJwtSvidRequest.decode(data)
        return
    ours = messages.ValidateJwtSvidRequest.decode(data)
    assert (theirs.audience, theirs.svid) == (ours.audience, ours.token)


def test_a_claim_that_is_a_fraction_keeps_its_value() -> None:
    found = real.ValidateJWTSVIDResponse.FromString(messages.validate_jwt_svid_response("a", {"x": math.pi}))
    assert found.claims["x"] == math.pi
