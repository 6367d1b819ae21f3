"""One HTTP/1.1 exchange over a stream: TLS, or a unix socket.

What comes back is bounded in head and body; the caller sets the deadline and
closes the stream.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import h11
import trio

_READ_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024


class Answer(NamedTuple):
    """A response, complete; names of headers are in lower case, the last of several wins."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TooLong(Exception):
    """The body has more bytes than the caller allows."""


async def exchange(stream: trio.abc.Stream, request: h11.Request, body: bytes = b"", *, max_body_bytes: int) -> Answer:
    """Send ``request`` and return what is answered.

    Raises:
        TooLong: the body is.
        h11.RemoteProtocolError: who answered does not speak HTTP/1.1.
        trio.BrokenResourceError, OSError: the connection broke.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
    sent = connection.send(request) or b""
    if body:
        sent += connection.send(h11.Data(data=body)) or b""
    sent += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(sent)
    status, received = 0, bytearray()
    headers: dict[str, str] = {}
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            received += event.data
            if len(received) > max_body_bytes:
                raise TooLong
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, headers, bytes(received))
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection ended early")
