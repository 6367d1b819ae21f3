"""A small WebSocket peer (RFC 6455) on a blocking socket: a real handshake, masked frames, close.

Enough to prove that frames cross an Upgrade in both directions, whoever proxies
it in between; not a library.
"""

import base64
import hashlib
import os
import socket
import struct
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3


class WebSocket:
    """One end; ``masks``: clients mask what they send, servers never do (section 5.1)."""

    def __init__(self, connection: socket.socket, *, masks: bool, buffered: bytes = b"") -> None:
        self._connection = connection
        self._masks = masks
        self._buffer = buffered

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one unfragmented frame (section 5.2)."""
        size = len(payload)
        mask_bit = 0x80 if self._masks else 0
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, mask_bit | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, mask_bit | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, mask_bit | 127, size)
        if self._masks:
            key = os.urandom(4)
            head, payload = head + key, _masked(payload, key)
        self._connection.sendall(head + payload)

    def receive(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame; raises EOFError."""
        first, second = self._exactly(2)
        assert first & 0x80, "fragments are not used here"
        assert bool(second & 0x80) is not self._masks, "exactly one side masks"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._exactly(8))
        key = b"" if self._masks else self._exactly(4)
        payload = self._exactly(size)
        return first & 0x0F, _masked(payload, key) if key else payload

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            more = self._connection.recv(65536)
            if not more:
                raise EOFError("the peer closed the connection")
            self._buffer += more
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


def connect(connection: socket.socket, *, host: str, path: str) -> WebSocket:
    """Do the client's handshake (section 4.1)."""
    key = base64.b64encode(os.urandom(16))
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head, rest = _read_head(connection)
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"sec-websocket-accept: " + _accept(key).lower() in head.lower(), head
    return WebSocket(connection, masks=True, buffered=rest)


def serve_echo(connection: socket.socket) -> None:
    """Do the server's handshake (section 4.2), then send back every message until CLOSE."""
    head, rest = _read_head(connection)
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    key = next(value for name, value in fields.items() if name.lower() == b"sec-websocket-key")
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + _accept(key) + b"\r\n\r\n"
    )
    peer = WebSocket(connection, masks=False, buffered=rest)
    while True:
        opcode, payload = peer.receive()
        peer.send(PONG if opcode == PING else opcode, payload)
        if opcode == CLOSE:
            return


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _accept(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _masked(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")
