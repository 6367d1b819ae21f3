"""From a shared tunnel to the application of one stream; what it does not take is held, up to the credit we gave.

opening (no socket yet) --begin--> reading --send blocked--> holding --flushed--> reading --EOF--> ended (socket shut)
"""

import socket
from typing import Final

from node_agent.errors import RemoteProtocolError
from node_agent.relay.news import News
from node_agent.relay.shared_up import SharedUp
from node_agent.stream_frames import WINDOW_BYTES, encode_credit

_CREDIT_AT_BYTES: Final = WINDOW_BYTES // 2


class StreamDown:
    """One half of a stream; does not own the socket that it is given by ``begin``.

    ``held`` are bytes that the application has not taken yet.  ``moved_bytes``
    counts what came for it.  ``is_deaf``: there is no more to come here, because
    of EOF (``has_ended``), or because the rest comes in another tunnel.
    ``is_mute``: we have said our last frame here, and give no credit any more.
    """

    __slots__ = (
        "_owed",
        "_plain",
        "_send",
        "_shared",
        "_stream_id",
        "has_ended",
        "held",
        "is_deaf",
        "is_mute",
        "moved_bytes",
    )

    def __init__(self, *, shared: SharedUp, stream_id: int) -> None:
        self._shared = shared
        self._stream_id = stream_id
        self._plain: socket.socket | None = None
        self._owed = 0  # delivered, and not yet allowed again
        self.held: bytearray | None = None
        self.has_ended = False
        self.is_deaf = False
        self.is_mute = False
        self.moved_bytes = 0

    @property
    def is_out(self) -> bool:
        """Whether the application has got all, with the end."""
        return self.has_ended and self.held is None

    def begin(self, plain: socket.socket) -> bool:
        """Deliver to ``plain``; returns whether there is something to deliver already, by ``flush``."""
        self._plain = plain
        self._send = plain.send
        return self.held is not None or self.has_ended

    def take(self, payload: memoryview) -> News | None:
        """DATA has come, or a part of it; raises RemoteProtocolError."""
        size = len(payload)
        held = self.held
        waiting = 0 if held is None else len(held)
        if self.is_deaf or waiting + self._owed + size > WINDOW_BYTES:
            raise RemoteProtocolError(f"stream {self._stream_id}: DATA that is not in order")
        self.moved_bytes += size
        if held is not None:
            held += payload
            return None
        if self._plain is None:
            self.held = bytearray(payload)
            return None
        try:
            sent = self._send(payload)
        except BlockingIOError:
            sent = 0
        except OSError:
            return News.PLAIN_BROKEN
        self._owed += sent
        if self._owed >= _CREDIT_AT_BYTES:
            self._give_credit()
        if sent < size:
            self.held = bytearray(payload[sent:])
            return News.CHANGED
        return None

    def end(self) -> News | None:
        """EOF has come; raises RemoteProtocolError."""
        if self.is_deaf:
            raise RemoteProtocolError(f"stream {self._stream_id}: a second end")
        self.has_ended = self.is_deaf = True
        return None if self._plain is None or self.held is not None else self._shut()

    def flush(self) -> News | None:
        """Send again what is held, or the end that came before there was a socket."""
        held = self.held
        if held is not None:
            try:
                sent = self._send(held)
            except BlockingIOError:
                return None
            except OSError:
                return News.PLAIN_BROKEN
            del held[:sent]
            self._owed += sent
            if not self.is_deaf and self._owed >= _CREDIT_AT_BYTES:
                self._give_credit()
            if held:
                return None
            self.held = None
        return self._shut() if self.has_ended else News.CHANGED

    def _give_credit(self) -> None:
        if self.is_mute:
            return
        self._shared.say(encode_credit(self._stream_id, self._owed))
        self._owed = 0

    def _shut(self) -> News:
        assert self._plain is not None
        try:
            self._plain.shutdown(socket.SHUT_WR)
        except OSError:
            return News.PLAIN_BROKEN
        return News.CHANGED
