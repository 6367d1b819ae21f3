"""The server's side of one gRPC connection: HTTP/2 bytes in, calls out; replies in, HTTP/2 bytes out.

Sans-I/O: no socket, no task, no clock.  hyper-h2 speaks HTTP/2; this file adds
what gRPC is on top of it, for requests of one message and replies of any number:

    receive(bytes) -> Called | Cancelled ...        data_to_send() -> bytes
    send(call, message)  end(call, status, text)    is_taken(call)

What a peer can make us hold is bounded: header lists, dynamic tables (also
those that it asks us to use), calls at a time, the bytes of a request and of
all requests that have not arrived in full, and one message a call that it has
not made room for.  Data is acknowledged only when its request is complete, so
HTTP/2's own flow control stops whoever sends more.

A decoder raises ``GrpcConnectionError`` and nothing else, whatever the bytes.

Why h2 and not grpcio: importing grpcio costs 12 MB and it brings threads of its own.
Protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from dataclasses import dataclass, field
from typing import Final

from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from node_agent.workload_api.grpc_request import PREFIX_BYTES, RequestHead, percent_encoded, read_head, refuse_framing
from node_agent.workload_api.grpc_status import GrpcStatus

MAX_CALLS: Final = 16  # at a time on one connection
MAX_REQUEST_BYTES: Final = 24 * 1024  # a JWT-SVID of the longest ID and many audiences has ~16 KiB
_MAX_UNFINISHED_BYTES: Final = 48 * 1024  # of all requests of a connection together
_MAX_HEADER_LIST_BYTES: Final = 8 * 1024  # RFC 9113 6.5.2; grpcio sends ~400
_MAX_TABLE_BYTES: Final = 4096  # RFC 7541: the default
_CONTENT_TYPE: Final = ("content-type", "application/grpc")


class GrpcConnectionError(Exception):
    """The peer broke HTTP/2 or a bound: send what ``data_to_send`` still has, then close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """A request that arrived in full.  ``timeout_s`` is the caller's wish, or None.

    ``has_metadata`` says whether ``workload.spiffe.io: true`` was sent with it.
    """

    call: int
    path: str
    has_metadata: bool
    timeout_s: float | None
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The peer does not want the rest of a call any more; do nothing further with it."""

    call: int


Event = Called | Cancelled


@dataclass(slots=True)
class _Stream:
    head: RequestHead
    request: bytearray = field(default_factory=bytearray)
    unacknowledged_bytes: int = 0
    is_complete: bool = False
    has_headers: bool = False  # that is, ours were sent
    outgoing: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[str, str]] | None = None


class _Connection(H2Connection):
    """h2 keeps these two as constants of its class; both bound memory that the peer fills."""

    MAX_CLOSED_STREAMS = 256  # the default is 65,536, some megabytes for a connection that lives long
    DEFAULT_MAX_HEADER_LIST_SIZE = _MAX_HEADER_LIST_BYTES


class GrpcConnection:
    """One connection of one client."""

    def __init__(self) -> None:
        self._h2 = _Connection(H2Configuration(client_side=False, header_encoding=None))
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_CALLS,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_LIST_BYTES,
            },
        )
        self._h2.initiate_connection()
        self._streams: dict[int, _Stream] = {}
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the peer will not, or may not, use this connection any more."""
        return self._is_over

    def receive(self, data: bytes) -> tuple[list[Event], int]:
        """Take the next bytes; returns what they complete, and how many frames they were made of, about.

        Raises:
            GrpcConnectionError: the connection is of no further use.
        """
        try:
            received = self._h2.receive_data(data)
            happened: list[Event] = []
            for event in received:
                self._take(event, happened)
            for call in list(self._streams):
                self._flush(call)
        except (H2Error, GrpcConnectionError) as error:
            self._is_over = True
            if isinstance(error, GrpcConnectionError):
                raise
            raise GrpcConnectionError(f"{type(error).__name__}: HTTP/2 was broken") from error
        return happened, len(received)

    def data_to_send(self) -> bytes:
        """Bytes for the peer, in order; each byte is returned once."""
        return self._h2.data_to_send()

    def send(self, call: int, message: bytes) -> None:
        """Send one message, as the peer makes room for it; only while ``is_taken``.

        A call that the peer has cancelled swallows it.
        """
        stream = self._streams.get(call)
        if stream is None:
            return
        assert not stream.outgoing
        stream.outgoing += b"\0" + len(message).to_bytes(4, "big") + message
        self._try_flush(call)

    def is_taken(self, call: int) -> bool:
        """Whether all of the last message has gone into ``data_to_send``, or the call is over."""
        stream = self._streams.get(call)
        return stream is None or not stream.outgoing

    def end(self, call: int, status: GrpcStatus, text: str = "") -> None:
        """End a call, after the message that is under way, if any."""
        stream = self._streams.get(call)
        if stream is None:
            return
        stream.trailers = [("grpc-status", str(int(status)))]
        if text:
            stream.trailers.append(("grpc-message", percent_encoded(text)))
        self._try_flush(call)

    def close(self) -> None:
        """Say GOAWAY; nothing is sent after it."""
        try:
            self._h2.close_connection()
        except H2Error:
            pass  # it was broken already, which has said GOAWAY

    def _take(self, event: h2_events.Event, happened: list[Event]) -> None:
        match event:
            case h2_events.RequestReceived(stream_id=int(call), headers=headers):
                self._streams[call] = _Stream(head=read_head(dict(headers or ())))
            case h2_events.DataReceived(stream_id=int(call), data=data, flow_controlled_length=length):
                self._take_data(call, data or b"", length or 0)
            case h2_events.StreamEnded(stream_id=int(call)):
                self._take_end(call, happened)
            case h2_events.StreamReset(stream_id=int(call)):
                stream = self._streams.pop(call, None)
                if stream is not None:
                    self._acknowledge(call, stream)
                    happened.append(Cancelled(call=call))
            case h2_events.RemoteSettingsChanged():
                # RFC 7541 4.2: the encoder may choose less; otherwise the peer decides how much we remember for it.
                self._h2.encoder.header_table_size = min(self._h2.encoder.header_table_size, _MAX_TABLE_BYTES)
            case h2_events.ConnectionTerminated():
                self._is_over = True
            case _:
                pass  # acknowledgements, pings (h2 answers), windows (looked at after each receive), priorities

    def _take_data(self, call: int, data: bytes, length: int) -> None:
        stream = self._streams.get(call)
        if stream is None:  # it was refused while its request was still arriving
            self._h2.acknowledge_received_data(length, call)
            return
        stream.unacknowledged_bytes += length
        stream.request += data
        if sum(each.unacknowledged_bytes for each in self._streams.values()) > _MAX_UNFINISHED_BYTES:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            raise GrpcConnectionError("too many bytes of requests that have not arrived in full")
        if len(stream.request) > PREFIX_BYTES + MAX_REQUEST_BYTES:
            del self._streams[call]
            self._acknowledge(call, stream)
            self._h2.reset_stream(call, ErrorCodes.ENHANCE_YOUR_CALM)

    def _take_end(self, call: int, happened: list[Event]) -> None:
        stream = self._streams.get(call)
        if stream is None:
            return
        self._acknowledge(call, stream)
        stream.is_complete = True
        request, stream.request = bytes(stream.request), bytearray()
        refused = stream.head.refused or refuse_framing(request)
        if refused is not None:
            self.end(call, *refused)
            return
        happened.append(
            Called(
                call=call,
                path=stream.head.path,
                has_metadata=stream.head.has_metadata,
                timeout_s=stream.head.timeout_s,
                message=request[PREFIX_BYTES:],
            )
        )

    def _acknowledge(self, call: int, stream: _Stream) -> None:
        if stream.unacknowledged_bytes:
            self._h2.acknowledge_received_data(stream.unacknowledged_bytes, call)
            stream.unacknowledged_bytes = 0

    def _try_flush(self, call: int) -> None:
        """As ``_flush``; a connection that the peer has ended swallows everything."""
        try:
            self._flush(call)
        except H2Error:
            self._is_over = True
            self._streams.clear()

    def _flush(self, call: int) -> None:
        """Hand over as much of a call's reply as the peer has room for."""
        stream = self._streams[call]
        if stream.outgoing and not stream.has_headers:
            stream.has_headers = True
            self._h2.send_headers(call, [(":status", "200"), _CONTENT_TYPE])
        while stream.outgoing:
            size = min(len(stream.outgoing), self._h2.local_flow_control_window(call), self._h2.max_outbound_frame_size)
            if size <= 0:
                return
            self._h2.send_data(call, bytes(stream.outgoing[:size]))
            del stream.outgoing[:size]
        if stream.trailers is None or not stream.is_complete:
            return
        del self._streams[call]
        if stream.has_headers:
            self._h2.send_headers(call, stream.trailers, end_stream=True)
        else:  # "Trailers-Only": one header block says it all
            head = [(":status", str(stream.head.http_status)), _CONTENT_TYPE]
            self._h2.send_headers(call, [*head, *stream.trailers], end_stream=True)
