"""The sans-I/O gRPC server: any bytes are calls or one kind of error; what a peer can make it hold is bounded."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node_agent.workload_api.grpc import (
    MAX_CALLS,
    MAX_REQUEST_BYTES,
    Called,
    Cancelled,
    GrpcConnection,
    GrpcConnectionError,
)
from node_agent.workload_api.grpc_status import GrpcStatus

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/S/M",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}
Seen = tuple[dict[str, str], bytes, str]


class Pair:
    """Our server and h2's client, their bytes exchanged by hand."""

    def __init__(self) -> None:
        self.server = GrpcConnection()
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.client.initiate_connection()
        self.headers: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.events: list[Called | Cancelled] = []
        self.acknowledge = True

    def call(self, body: bytes = b"\0\0\0\0\0", *, end: bool = True, headers: dict[str, str] | None = None) -> int:
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, list((HEADERS | (headers or {})).items()))
        if body or end:
            self.client.send_data(number, body, end_stream=end)
        self.exchange()
        return number

    def exchange(self) -> None:
        for _ in range(20):
            if data := self.client.data_to_send():
                self.events += self.server.receive(data)[0]
            back = self.server.data_to_send()
            if not data and not back:
                return
            for event in self.client.receive_data(back):
                match event:
                    case ResponseReceived() | TrailersReceived():
                        self.headers.setdefault(event.stream_id, {}).update(
                            {str(name): str(value) for name, value in event.headers}
                        )
                    case DataReceived():
                        self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
                        if self.acknowledge:
                            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case StreamEnded() | StreamReset():
                        self.ended.add(event.stream_id)
                    case _:
                        pass

    def status(self, number: int) -> tuple[int, str]:
        assert number in self.ended
        return int(self.headers[number]["grpc-status"]), self.headers[number].get("grpc-message", "")


def test_a_call_and_its_messages_and_its_status() -> None:
    pair = Pair()
    number = pair.call(b"\0\0\0\0\x03abc", headers={"workload.spiffe.io": "true"})
    assert pair.events == [Called(call=number, path="/S/M", has_metadata=True, timeout_s=None, message=b"abc")]
    for message in (b"one", b"", b"three" * 10_000):
        pair.server.send(number, message)
        pair.exchange()
        assert pair.server.is_taken(number)
    pair.server.end(number, GrpcStatus.PERMISSION_DENIED, "100 % gone,\nsays Jürgen")
    pair.exchange()
    framed = b"".join(b"\0" + len(each).to_bytes(4, "big") + each for each in (b"one", b"", b"three" * 10_000))
    assert pair.data[number] == framed
    assert pair.headers[number][":status"] == "200"
    assert pair.status(number) == (7, "100 %25 gone,%0Asays J%C3%BCrgen")


@pytest.mark.parametrize(
    ("body", "headers", "http_status", "status"),
    [
        (b"", {}, "200", 3),
        (b"\0\0\0\0", {}, "200", 3),
        (b"\0\0\0\0\x02a", {}, "200", 3),
        (b"\0\0\0\0\0\0\0\0\0\0", {}, "200", 3),
        (b"\x01\0\0\0\x01a", {}, "200", 12),
        (b"\0\0\0\0\0", {"grpc-encoding": "gzip"}, "200", 12),
        (b"\0\0\0\0\0", {"grpc-timeout": "soon"}, "200", 3),
        (b"\0\0\0\0\0", {"grpc-timeout": "123456789S"}, "200", 3),
        (b"\0\0\0\0\0", {":method": "GET"}, "405", 12),
        (b"\0\0\0\0\0", {"content-type": "application/json"}, "415", 3),
        (b"\0\0\0\0\0", {"content-type": "application/grpcx"}, "415", 3),
    ],
)
def test_what_is_no_call_gets_a_status_and_reaches_nobody(
    body: bytes, headers: dict[str, str], http_status: str, status: int
) -> None:
    pair = Pair()
    number = pair.call(body, headers=headers)
    assert pair.events == []
    assert (pair.headers[number][":status"], pair.status(number)[0]) == (http_status, status)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5S", 5.0), ("100m", 0.1), ("1H", 3600.0), ("2M", 120.0), ("7u", 7e-6), ("9n", 9e-9)]
)
def test_the_callers_time_limit_is_read(text: str, seconds: float) -> None:
    pair = Pair()
    pair.call(headers={"grpc-timeout": text})
    (called,) = pair.events
    assert isinstance(called, Called)
    assert called.timeout_s == pytest.approx(seconds)


def test_a_slow_reader_makes_one_message_wait_and_no_more() -> None:
    pair = Pair()
    pair.acknowledge = False
    number = pair.call()
    pair.server.send(number, b"x" * 200_000)
    pair.exchange()
    assert not pair.server.is_taken(number)
    assert len(pair.data[number]) == 65_535  # RFC 9113 6.9.2: the default window
    pair.client.increment_flow_control_window(200_000)
    pair.client.increment_flow_control_window(200_000, number)
    pair.exchange()
    assert pair.server.is_taken(number)
    assert len(pair.data[number]) == 200_005


def test_a_cancelled_call_swallows_what_comes_after() -> None:
    pair = Pair()
    number = pair.call()
    pair.client.reset_stream(number)
    pair.exchange()
    assert pair.events[1:] == [Cancelled(call=number)]
    pair.server.send(number, b"late")
    pair.server.end(number, GrpcStatus.OK)
    assert pair.server.is_taken(number)
    assert pair.server.data_to_send() == b""


def test_a_client_that_says_goodbye_ends_the_connection() -> None:
    pair = Pair()
    number = pair.call()
    pair.client.close_connection()
    pair.exchange()
    assert pair.server.is_over
    pair.server.send(number, b"late")
    pair.server.end(number, GrpcStatus.OK)


def test_too_long_a_request_is_reset_and_the_connection_serves_on() -> None:
    pair = Pair()
    long = pair.call(b"\0" * (MAX_REQUEST_BYTES // 2), end=False)
    for _ in range(3):
        if long not in pair.ended:
            pair.client.send_data(long, b"\0" * 10_000)
            pair.exchange()
    assert long in pair.ended
    assert long not in pair.headers
    pair.call()
    assert len(pair.events) == 1


def test_requests_that_never_end_can_not_fill_the_memory() -> None:
    pair = Pair()
    for _ in range(3):
        pair.call(b"\0" * 16_000, end=False)
    with pytest.raises(GrpcConnectionError, match="have not arrived in full"):
        pair.call(b"\0" * 16_000, end=False)
    assert pair.server.data_to_send()  # GOAWAY


def test_more_calls_than_were_offered_break_the_connection() -> None:
    pair = Pair()
    for _ in range(MAX_CALLS):
        pair.call(end=False)
    pair.client.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
    pair.client.remote_settings.acknowledge()
    with pytest.raises(GrpcConnectionError):
        pair.call(end=False)


def test_headers_that_are_too_long_break_the_connection() -> None:
    pair = Pair()
    with pytest.raises(GrpcConnectionError):
        pair.call(headers={"x": "y" * 9000})


def test_a_header_bomb_breaks_the_connection() -> None:
    """CVE-2016-6581: a few bytes that stand for megabytes of headers."""
    pair = Pair()
    pair.call(headers={"x": "y" * 4000})
    server = pair.server
    bomb = HeadersFrame(3, data=b"\xbe" * 4000, flags=["END_HEADERS", "END_STREAM"])
    with pytest.raises(GrpcConnectionError):
        server.receive(bomb.serialize())


def test_endless_continuations_break_the_connection() -> None:
    """CVE-2024-27316 and its kin: header blocks without end."""
    server = GrpcConnection()
    server.receive(PREFACE + SettingsFrame(0).serialize() + HeadersFrame(1, data=b"").serialize())
    more = ContinuationFrame(1, data=b"").serialize() * 200
    with pytest.raises(GrpcConnectionError):
        server.receive(more)


def test_the_peer_does_not_decide_how_much_we_remember_for_it() -> None:
    server = GrpcConnection()
    server.receive(PREFACE + SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 2**31}).serialize())
    assert server._h2.encoder.header_table_size == 4096


STREAMS = st.sampled_from([0, 1, 3, 5])
SOME = st.binary(max_size=40)
HEADER_BLOCK = H2Connection(H2Configuration(client_side=True)).encoder.encode(list(HEADERS.items()))
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(
        lambda stream, data, flags: HeadersFrame(stream, data=data, flags=flags),
        st.sampled_from([1, 3, 5, 7]),
        st.just(HEADER_BLOCK) | SOME,
        st.sampled_from([["END_HEADERS"], ["END_HEADERS", "END_STREAM"], []]),
    ),
    st.builds(
        lambda stream, data, flags: DataFrame(stream, data=data, flags=flags),
        st.sampled_from([1, 3, 5]),
        st.just(b"\0\0\0\0\0") | SOME,
        st.sampled_from([[], ["END_STREAM"]]),
    ),
    st.builds(
        lambda stream, size: WindowUpdateFrame(stream, window_increment=size), STREAMS, st.integers(1, 2**31 - 1)
    ),
    st.builds(
        lambda stream, code: RstStreamFrame(stream, error_code=code), st.sampled_from([1, 3]), st.integers(0, 20)
    ),
    st.builds(
        lambda name, value: SettingsFrame(0, settings={name: value}), st.integers(0, 10), st.integers(0, 2**32 - 1)
    ),
    st.builds(lambda data: PingFrame(0, opaque_data=data), st.binary(min_size=8, max_size=8)),
    st.builds(lambda stream: PriorityFrame(stream, depends_on=0, stream_weight=1), st.sampled_from([1, 3])),
    st.builds(lambda: GoAwayFrame(0)),
    st.builds(lambda data: ContinuationFrame(1, data=data, flags=["END_HEADERS"]), SOME),
)


@settings(max_examples=400)
@given(
    frames=st.lists(FRAMES, max_size=12),
    noise=st.binary(max_size=30),
    begins=st.booleans(),
    size=st.integers(1, 200),
)
@example(frames=[], noise=b"GET / HTTP/1.1\r\n\r\n", begins=False, size=100)
@example(frames=[], noise=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", begins=False, size=100)
def test_any_bytes_are_calls_or_one_kind_of_error(frames: list[Frame], noise: bytes, begins: bool, size: int) -> None:
    data = (PREFACE + SettingsFrame(0).serialize() if begins else b"") + b"".join(frame.serialize() for frame in frames)
    server = GrpcConnection()
    try:
        for start in range(0, len(data + noise), size):
            for event in server.receive((data + noise)[start : start + size])[0]:
                if isinstance(event, Called):
                    server.send(event.call, b"answer")
                    server.end(event.call, GrpcStatus.OK)
    except GrpcConnectionError:
        pass
    server.data_to_send()
    server.close()
