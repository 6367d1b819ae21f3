"""The wire: whatever the bytes, a message or a WireError; however they are cut, the same messages."""

from datetime import UTC, datetime
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import WireError
from ca.messages import (
    Attest,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    IssuedCertificate,
    RefusalCode,
    Refused,
    RenewNode,
    Reply,
    Request,
    SignRequest,
    SignWorkloads,
    parse_reply,
    parse_request,
)
from ca.spiffe import SpiffeId, SpiffeIdError
from ca.trust import (
    MAX_BUNDLES,
    MAX_JWT_KEYS,
    MAX_REVOCATIONS,
    MAX_ROOTS,
    JwtKey,
    Revocation,
    RevocationKind,
    Trust,
    TrustBundle,
)
from ca.wire import MAX_FRAME_BYTES, FrameDecoder, encode_frame, pack, unpack
from tests.message_examples import places, replaced, replies, requests

_TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
    | st.binary(max_size=60)
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT, inner, max_size=5), max_leaves=20
)
_MAPS = st.dictionaries(_TEXT, _VALUES, max_size=6)
_SEGMENT = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True)
_IDENTITIES = st.builds(SpiffeId.workload, st.from_regex(r"[a-z0-9._-]{1,30}", fullmatch=True), _SEGMENT, _SEGMENT)
_DER = st.binary(min_size=1, max_size=50)
_REFUSED = st.builds(
    Refused, code=st.sampled_from(RefusalCode), text=_TEXT, retry_after_s=st.floats(0, 1e9, allow_nan=False)
)
_CERTIFICATES = st.builds(
    IssuedCertificate, identity=_IDENTITIES, chain_der=st.lists(_DER, min_size=1, max_size=4).map(tuple)
) | st.builds(IssuedCertificate, identity=_IDENTITIES, error=_REFUSED)
_REQUESTS = (
    st.builds(AttestWithToken, node=_TEXT, token=_TEXT, csr_der=_DER)
    | st.builds(Attest, plugin=_TEXT, node=_TEXT, evidence=_DER, csr_der=_DER)
    | st.builds(RenewNode, csr_der=_DER)
    | st.builds(GetBundle)
    | st.builds(
        SignWorkloads,
        requests=st.lists(st.builds(SignRequest, identity=_IDENTITIES, csr_der=_DER), max_size=4).map(tuple),
    )
)
_REPLIES = (
    _REFUSED
    | st.builds(
        Issued,
        certificates=st.lists(_CERTIFICATES, max_size=4).map(tuple),
        bundle_der=st.lists(_DER, max_size=3).map(tuple),
        trust_domain=_TEXT,
    )
    | st.builds(
        Bundle,
        trust_domain=_TEXT,
        roots_der=st.lists(_DER, max_size=3).map(tuple),
        sequence=st.integers(0, 2**63 - 1),
        refresh_hint_s=st.floats(0, 1e9, allow_nan=False),
    )
)


@given(_VALUES)
def test_what_was_packed_is_unpacked(value: object) -> None:
    assert unpack(pack(value), MAX_FRAME_BYTES) == value


@given(st.binary(max_size=200))
def test_garbage_is_a_value_or_a_wire_error(data: bytes) -> None:
    try:
        value = unpack(data, 200)
    except WireError:
        return
    assert unpack(pack(value), MAX_FRAME_BYTES) == value


@given(_MAPS, st.data())
def test_a_damaged_message_is_a_value_or_a_wire_error(value: dict[str, object], data: st.DataObject) -> None:
    packed = bytearray(pack(value))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(packed[: data.draw(st.integers(0, len(packed)))]), MAX_FRAME_BYTES)
    except WireError:
        pass


@given(st.lists(_MAPS, max_size=4), st.data())
def test_frames_are_the_same_however_they_are_cut(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(map(encode_frame, messages))
    assert FrameDecoder().feed(stream) == messages
    bytewise, random_cuts = FrameDecoder(), FrameDecoder()
    assert [message for byte in stream for message in bytewise.feed(bytes([byte]))] == messages
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [message for piece in pieces for message in random_cuts.feed(piece)] == messages
    assert not bytewise.mid_frame
    assert not random_cuts.mid_frame


@given(st.binary(max_size=100))
def test_a_garbage_stream_fails_the_same_way_however_it_is_cut(data: bytes) -> None:
    def outcome(pieces: list[bytes]) -> str | None:
        decoder = FrameDecoder(max_frame_bytes=64)
        try:
            for piece in pieces:
                decoder.feed(piece)
        except WireError as error:
            with pytest.raises(WireError):
                decoder.feed(b"")
            return str(error)
        return None

    assert outcome([data]) == outcome([bytes([byte]) for byte in data])


_KINDS = [message.TYPE for message in (*get_args(Request), *get_args(Reply))]


@given(_MAPS)
def test_any_map_is_a_message_or_a_wire_error(fields: dict[str, Any]) -> None:
    for parse in (parse_request, parse_reply):
        for kind in _KINDS:
            try:
                parse({**fields, "type": kind})
            except WireError:
                pass


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in requests()} == set(get_args(Request))
    assert {type(message) for message in replies()} == set(get_args(Reply))


@given(st.sampled_from([*requests(), *replies()]), st.data())
def test_a_message_with_anything_in_any_place_is_a_message_or_a_wire_error(message: Any, data: st.DataObject) -> None:
    wire = message.to_wire()
    changed = replaced(wire, data.draw(st.sampled_from(list(places(wire)))), data.draw(_VALUES))
    parse = parse_request if isinstance(message, get_args(Request)) else parse_reply
    try:
        found = parse(FrameDecoder().feed(encode_frame(changed))[0])
    except WireError:
        return
    # What was understood is what goes on: nothing is lost or made up on the way.
    assert parse(FrameDecoder().feed(encode_frame(found.to_wire()))[0]) == found


@given(st.lists(st.sampled_from([*requests(), *replies()]), min_size=1, max_size=3), st.data())
def test_any_damaged_stream_is_messages_or_a_wire_error(messages: list[Any], data: st.DataObject) -> None:
    stream = bytearray(b"".join(encode_frame(message.to_wire()) for message in messages))
    for position in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=4)):
        stream[position] = data.draw(st.integers(0, 255))
    decoder = FrameDecoder()
    for parse in (parse_request, parse_reply):
        try:
            for fields in decoder.feed(bytes(stream)):
                parse(fields)
        except WireError:
            decoder = FrameDecoder()


@given(_REQUESTS)
def test_a_request_arrives_as_it_was_sent(request: Any) -> None:
    assert parse_request(FrameDecoder().feed(encode_frame(request.to_wire()))[0]) == request


@given(_REPLIES)
def test_a_reply_arrives_as_it_was_sent(reply: Any) -> None:
    assert parse_reply(FrameDecoder().feed(encode_frame(reply.to_wire()))[0]) == reply


@given(_REQUESTS, _REPLIES, st.data())
def test_a_message_with_one_field_changed_is_a_message_or_a_wire_error(
    request: Any, reply: Any, data: st.DataObject
) -> None:
    for message, parse in ((request, parse_request), (reply, parse_reply)):
        fields = message.to_wire()
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_VALUES)
        try:
            parse(fields)
        except WireError:
            pass


@given(st.text(max_size=60))
def test_any_text_is_an_id_that_is_written_back_or_an_error(text: str) -> None:
    for candidate in (text, "spiffe://" + text):
        try:
            identity = SpiffeId.parse(candidate)
        except SpiffeIdError:
            continue
        assert str(identity) == candidate


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 4000,  # nested until the C stack of the decoder is full
        b"\x91" * 17 + b"\x01",
        b"\xdd\xff\xff\xff\xff",  # an array that says it has 4 billion items
        b"\xdf\xff\xff\xff\xff",
        b"\xdc\x10\x01" + b"\xc0" * 4097,
        b"\xde\x01\x01" + b"\xa1a\xc0" * 257,
        b"\x82\xa1a\x01\xa1a\x02",  # the same key twice
        b"\x81\xc4\x01a\x01",  # a key that is bytes
        b"\x81\x01\x01",
        b"\x81\x90\x01",
        b"\xa2\xff\xfe",  # text that is not UTF-8
        b"\xa3\xed\xa0\x80",  # half a surrogate pair
        b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # not a number
        b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",  # infinity
        b"\xd4\x05a",  # an extension
        b"\xc7\x00\x05",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xc1",  # never used
        b"\x01\x01",
        b"",
    ],
)
def test_what_is_outside_the_subset_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack(data, MAX_FRAME_BYTES)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdc\x01\x00" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 256,
        b"\xdc\x10\x00" + (b"\xdc\x00\xff" + b"\xc0" * 255) * 4096,
        b"\xdc\x10\x00" + (b"\xde\x00\x14" + b"".join(b"\xa1%c\xc0" % (97 + each) for each in range(20))) * 4096,
    ],
    ids=["empty-arrays", "nils", "maps"],
)
def test_more_values_than_any_message_has_are_not_built(data: bytes) -> None:
    with pytest.raises(WireError, match="more than 65536 values"):
        unpack(data, 4 * MAX_FRAME_BYTES)


def test_the_largest_trust_that_is_allowed_fits_the_count_of_values() -> None:
    keys = tuple(JwtKey(key_id="k", public_key_der=b"k") for _ in range(MAX_JWT_KEYS))
    bundles = tuple(
        TrustBundle(
            trust_domain=f"d{each}", sequence=1, refresh_hint_s=1.0, x509_der=(b"r",) * MAX_ROOTS, jwt_keys=keys
        )
        for each in range(MAX_BUNDLES)
    )
    at = datetime(2026, 11, 22, tzinfo=UTC)
    one = Revocation(kind=RevocationKind.NODE, value="n", at=at, until=at, why="w", serials=(1,))
    trust = Trust(version=1, bundles=bundles, revocations=(one,) * MAX_REVOCATIONS)
    assert parse_reply(unpack(pack(trust.to_wire()), MAX_FRAME_BYTES)) == trust


def test_too_long_a_value_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(WireError, match="more than the 10 allowed"):
        unpack(b"\x01" * 11, 10)


def test_too_long_a_frame_is_refused_by_its_length() -> None:
    with pytest.raises(WireError, match="more than the"):
        FrameDecoder().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="does not fit"):
        encode_frame({"a": b"x" * MAX_FRAME_BYTES})


def test_a_frame_that_is_no_map_is_refused() -> None:
    with pytest.raises(WireError, match="not a map"):
        FrameDecoder().feed(b"\x00\x00\x00\x01\x01")


def test_a_value_that_msgpack_can_not_carry_is_our_bug() -> None:
    with pytest.raises(TypeError):
        pack(object())


def test_the_join_token_is_never_shown() -> None:
    request = AttestWithToken(node="node-1", token="secret", csr_der=b"x")
    assert "secret" not in repr(request)
    assert msgpack.unpackb(encode_frame(request.to_wire())[4:])["token"] == "secret"
