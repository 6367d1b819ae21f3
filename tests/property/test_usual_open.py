"""OPENs are remembered by their bytes: whatever arrives is read, or refused, as one that is read for the first time."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ca.wire import pack
from node_agent import usual_open
from node_agent.errors import RemoteProtocolError
from node_agent.frames import HEADER_BYTES, Open, decode_any_open, decode_open, encode_open
from node_agent.model import ObjectName, OriginalDestination, PeerAddress

_ips = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
_ports = st.one_of(st.integers(1, 65535), st.sampled_from([127, 128, 255, 256, 0xA373, 0xCDCD, 0xA5A5]))
_traces = st.one_of(
    st.just(""),
    st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
)
_names = st.one_of(
    st.sampled_from(["", "admin", "trace", "x" * 31, "x" * 32, "x" * 253]),
    st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,40}[a-z0-9])?", fullmatch=True),
)
_opens = st.builds(
    Open,
    destination=st.builds(OriginalDestination, _ips, _ports),
    source=st.builds(PeerAddress, _ips, _ports),
    workload=st.builds(ObjectName, _names, _names),
    trace_parent=_traces,
    check=st.none(),
    outside=st.none(),
    connect_timeout_s=st.none(),
)
_SAMPLE = Open(
    destination=OriginalDestination("10.0.0.1", 8080),
    source=PeerAddress("10.0.0.2", 40000),
    workload=ObjectName("default", "web"),
)
_PAYLOAD = encode_open(_SAMPLE)[HEADER_BYTES:]
_pieces = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"\xa3dst", b"\xa3src\x92", b"\xcd", b"\xcd\x01\x00", b"\xa2ns", b"\xa4name", b"\xa5trace", b"\xa0"]
    ),
)


def _outcome(decode: object, payload: bytes) -> object:
    assert callable(decode)
    try:
        return decode(payload)
    except RemoteProtocolError as error:
        return error.detail


def _assert_read_alike(payload: bytes) -> None:
    expected = _outcome(decode_any_open, payload)
    for _ in range(2):  # unknown, perhaps, and then remembered, perhaps
        found = _outcome(decode_open, payload)
        assert found == expected
        assert _types(found) == _types(expected)


def _types(found: object) -> list[type]:
    return [type(each) for each in found] if isinstance(found, Open) else [type(found)]


@given(_opens)
@example(_SAMPLE)
def test_open_is_written_as_its_five_fields_in_order(message: Open) -> None:
    fields = {
        "dst": list(message.destination),
        "src": list(message.source),
        "ns": message.workload.namespace,
        "name": message.workload.name,
        "trace": message.trace_parent,
    }
    assert encode_open(message)[HEADER_BYTES:] == pack(fields)


@given(_opens, _ports, _traces)
def test_open_is_read_alike_before_and_after_one_that_differs_in_port_and_trace(
    message: Open, port: int, trace_parent: str
) -> None:
    for each in (message, message._replace(source=PeerAddress(message.source.ip, port), trace_parent=trace_parent)):
        payload = encode_open(each)[HEADER_BYTES:]
        _assert_read_alike(payload)
        assert decode_open(payload) == each


@given(_opens, st.data())
def test_damaged_open_is_read_or_refused_alike(message: Open, data: st.DataObject) -> None:
    payload = encode_open(message)[HEADER_BYTES:]
    decode_open(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(payload)))
        end = data.draw(st.integers(begin, min(begin + 6, len(payload))))
        payload = payload[:begin] + data.draw(_pieces) + payload[end:]
    _assert_read_alike(payload)


@pytest.mark.parametrize("at", range(len(_PAYLOAD)))
def test_every_byte_of_a_remembered_open_counts(at: int) -> None:
    decode_open(_PAYLOAD)
    for byte in range(256):
        _assert_read_alike(_PAYLOAD[:at] + bytes((byte,)) + _PAYLOAD[at + 1 :])


@pytest.mark.parametrize(
    "payload",
    [
        _PAYLOAD.replace(b"\xcd\x9c\x40", b"\xcd\x00\x00"),  # no port
        _PAYLOAD.replace(b"\xcd\x9c\x40", b"\xcd\x00\x50"),  # longer than it has to be
        _PAYLOAD.replace(b"\xa3web", b"\xd9\x03web"),
        _PAYLOAD.replace(b"\xa2ns", b"\xa2ns\xa0\xa2ns"),
        _PAYLOAD + b"\xa0",
        pack({"dst": ["10.0.0.1", 80], "src": ["::1", 40000], "ns": "\xa3src", "name": "a", "trace": ""}),
        pack({"dst": ["x" * 45, 80], "src": ["y" * 45, 40000], "ns": "", "name": "z" * 254, "trace": ""}),
    ],
)
def test_what_only_looks_usual_is_read_alike(payload: bytes) -> None:
    _assert_read_alike(payload)


def test_what_is_remembered_is_bounded_in_number_and_size() -> None:
    assert usual_open.wording.cache_parameters()["maxsize"] == usual_open.MOST_REMEMBERED
    for number in range(usual_open.MOST_REMEMBERED + 10):
        decode_open(encode_open(_SAMPLE._replace(workload=ObjectName(f"n{number}", "web")))[HEADER_BYTES:])
    assert usual_open.wording.cache_info().currsize == usual_open.MOST_REMEMBERED
    assert usual_open.split(encode_open(_SAMPLE._replace(workload=ObjectName("n", "x" * 254)))[HEADER_BYTES:]) is None
    assert decode_open(_PAYLOAD) == _SAMPLE
