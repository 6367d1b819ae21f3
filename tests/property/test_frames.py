"""Control frames: whatever arrives is a message or a RemoteProtocolError, and what is sent comes out again."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ca.wire import pack, unpack
from node_agent.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from node_agent.frames import (
    CUTS,
    HEADER_BYTES,
    LENGTH_MASK,
    MAX_CONTROL_BYTES,
    MAX_DATA_BYTES,
    TYPE_SHIFT,
    Check,
    Denied,
    FrameType,
    Open,
    Outside,
    Verdict,
    decode_open,
    decode_reset,
    decode_verdict,
    encode_open,
    encode_reset,
    encode_verdict,
    parse_control_header,
)
from node_agent.model import ObjectName, OriginalDestination, PeerAddress

_ips = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
_ports = st.integers(1, 65535)
_names = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True)
_opens = st.builds(
    Open,
    destination=st.builds(OriginalDestination, _ips, _ports),
    source=st.builds(PeerAddress, _ips, _ports),
    workload=st.builds(ObjectName, _names, _names),
    trace_parent=st.one_of(st.just(""), st.text(max_size=128)),
    check=st.none()
    | st.builds(Check, tls=st.booleans(), timeout_s=st.integers(1, 3_600_000).map(lambda ms: ms / 1000)),
    outside=st.none() | st.builds(Outside, _names, st.builds(ObjectName, _names, _names), _ports),
    connect_timeout_s=st.none() | st.integers(1, 3_600_000).map(lambda ms: ms / 1000),
)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=1500)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), _texts, st.binary(max_size=100)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)
_addresses = st.one_of(
    _values,
    st.tuples(_values, _values).map(list),
    st.tuples(_ips, st.one_of(st.integers(-(2**63), 2**64 - 1), st.booleans())).map(list),
)
_checks = st.one_of(
    _values,
    st.tuples(
        st.one_of(_values, st.sampled_from(["tcp", "tls"])), st.one_of(_values, st.integers(-(2**63), 2**64 - 1))
    ).map(list),
)
_open_maps = st.fixed_dictionaries(
    {},
    optional={
        "dst": _addresses,
        "src": _addresses,
        "ns": _values,
        "name": _values,
        "trace": _values,
        "check": _checks,
        "connect": _values,
        "outside": _values | st.lists(_names | _values | _ports, min_size=4, max_size=4),
        "x": _values,
    },
)
_verdict_maps = st.fixed_dictionaries({}, optional={"reason": _values, "detail": _values, "check": _values})


def _payload(frame: bytes, kind: FrameType) -> bytes:
    assert parse_control_header(frame[:HEADER_BYTES], kind) == (kind, len(frame) - HEADER_BYTES)
    return frame[HEADER_BYTES:]


@given(_opens)
def test_open_comes_out_as_it_went_in(message: Open) -> None:
    assert decode_open(_payload(encode_open(message), FrameType.OPEN)) == message


@given(st.sampled_from(CloseReason), _texts, st.booleans())
def test_verdict_comes_out_as_it_went_in(reason: CloseReason, detail: str, is_check: bool) -> None:
    message = Verdict(reason=reason, detail=detail, is_check=is_check)
    decoded = decode_verdict(_payload(encode_verdict(message), FrameType.VERDICT))
    assert decoded == Verdict(reason=reason, detail=detail[:1024], is_check=is_check)


@given(_opens, st.sampled_from(CloseReason))
def test_what_is_no_check_travels_as_it_did_before_there_were_checks(message: Open, reason: CloseReason) -> None:
    fields = unpack(_payload(encode_open(message), FrameType.OPEN), MAX_CONTROL_BYTES)
    assert isinstance(fields, dict)
    assert ("check" in fields) is (message.check is not None)
    verdict = unpack(_payload(encode_verdict(Verdict(reason=reason)), FrameType.VERDICT), MAX_CONTROL_BYTES)
    assert isinstance(verdict, dict)
    assert verdict.keys() == {"reason", "detail"}


@given(st.text(min_size=1, max_size=64, alphabet=st.characters(exclude_categories=["Cs"])), _texts)
def test_reason_from_the_future_is_a_refusal(reason: str, detail: str) -> None:
    verdict = decode_verdict(pack({"reason": reason, "detail": detail[:1024]}))
    if reason not in list(CloseReason):
        assert verdict.reason is CloseReason.CONNECT_FAILED
        assert reason in verdict.detail


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\x81\xa3dst\x92\xa7::1%lo\0\x01")
def test_garbage_is_refused_or_understood_and_nothing_else(payload: bytes) -> None:
    for decode in (decode_open, decode_verdict):
        try:
            decode(payload)
        except RemoteProtocolError as error:
            assert error.detail


@given(_open_maps)
@example({"dst": ["10.0.0.1", True], "src": ["10.0.0.2", 1]})
def test_open_of_anything_is_valid_or_refused(fields: dict[str, object]) -> None:
    try:
        message = decode_open(pack(fields))
    except RemoteProtocolError:
        return
    for address in (message.destination, message.source):
        assert type(address.ip) is str
        assert type(address.port) is int
        assert 0 < address.port < 65536
    assert all(type(text) is str for text in (*message.workload, message.trace_parent))


@given(_verdict_maps)
def test_verdict_of_anything_accepts_only_if_it_says_so(fields: dict[str, object]) -> None:
    try:
        verdict = decode_verdict(pack(fields))
    except RemoteProtocolError:
        return
    assert (verdict.reason is CloseReason.OK) == (fields.get("reason") == "ok")


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.sampled_from(FrameType))
def test_control_header_is_of_the_expected_type_and_within_its_limit(header: bytes, expected: FrameType) -> None:
    word = int.from_bytes(header, "big")
    kind, length = word >> TYPE_SHIFT, word & LENGTH_MASK
    if kind == expected and length <= MAX_CONTROL_BYTES:
        assert parse_control_header(header, expected) == (expected, length)
    else:
        with pytest.raises(RemoteProtocolError):
            parse_control_header(header, expected)


@given(st.one_of(st.none(), st.sampled_from(CloseReason)))
def test_reset_tells_only_what_an_agent_does(reason: CloseReason | None) -> None:
    frame = encode_reset(reason)
    assert frame[0] == FrameType.RESET
    assert int.from_bytes(frame[1:HEADER_BYTES], "big") == len(frame) - HEADER_BYTES
    told = decode_reset(frame[HEADER_BYTES:])
    assert told is reason if reason in CUTS else told is None


@pytest.mark.parametrize("policy", [None, "shop/deny-all", "a/" + "b" * 253])
def test_reset_and_verdict_name_the_policy_that_denies(policy: str | None) -> None:
    assert decode_reset(encode_reset(Denied(policy=policy))[HEADER_BYTES:]) == Denied(policy=policy)
    verdict = Verdict(reason=CloseReason.POLICY_DENIED, detail="why", policy=policy)
    assert decode_verdict(encode_verdict(verdict)[HEADER_BYTES:]) == verdict


@given(st.text(max_size=300))
def test_what_is_no_name_of_a_policy_is_not_believed_to_be_one(name: str) -> None:
    reset = decode_reset(b"policy_denied " + name.encode())
    assert isinstance(reset, Denied)
    if reset.policy is not None:
        assert reset.policy == name
        assert name.isascii()
        assert name.isprintable()
        assert name.count("/") == 1


@given(st.binary(max_size=100))
def test_reset_payload_of_anything_is_a_reason_or_none(payload: bytes) -> None:
    reason = decode_reset(payload)
    assert isinstance(reason, Denied) or reason in (None, *CUTS)


def test_control_frame_over_its_limit_is_our_own_bug() -> None:
    huge = ObjectName("x" * MAX_CONTROL_BYTES, "y")
    destination, source = OriginalDestination("10.0.0.1", 80), PeerAddress("10.0.0.2", 1)
    with pytest.raises(LocalProtocolError):
        encode_open(Open(destination=destination, source=source, workload=huge))


def test_limits_are_what_the_protocol_says() -> None:
    assert HEADER_BYTES == 4
    assert MAX_DATA_BYTES == 256 * 1024 - 4
    assert MAX_CONTROL_BYTES == 16 * 1024
    assert {kind.name: int(kind) for kind in FrameType} == {
        "OPEN": 1,
        "VERDICT": 2,
        "DATA": 3,
        "EOF": 4,
        "RESET": 5,
        "SHARE": 9,
        "ATTACH": 10,
    }
