"""Two sockets that may be joined inside the kernel: plain TCP, and nothing of ours on top of it.

What the kernel hands from one socket to another goes around whatever this
process does with its bytes.  Of a tunnel that would be ciphertext where
plaintext belongs, or plaintext where ciphertext belongs.  So the one function
that puts sockets into the maps (sockmap.py) takes a ``PlainSockets``, and there
is one way to make that: to be looked at.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_TCP_ULP: Final = 31  # linux/tcp.h
_ULP_NAME_BYTES: Final = 16  # TCP_ULP_NAME_MAX


class NotPlaintextError(ValueError):
    """A socket that must not be joined; a bug of whoever asked."""


def protocol_on_top(sock: socket.socket) -> str:
    """What the kernel has put on top of TCP: "tls", for instance; "" if nothing (tcp(7), TCP_ULP).  Raises OSError."""
    name = sock.getsockopt(socket.IPPROTO_TCP, _TCP_ULP, _ULP_NAME_BYTES)
    return name.rstrip(b"\0").decode(errors="replace")


@dataclass(frozen=True, slots=True, init=False)
class PlainSockets:
    """Two connected TCP sockets whose bytes are the applications' own; they stay the caller's."""

    first: socket.socket
    second: socket.socket

    def __init__(
        self,
        first: socket.socket,
        second: socket.socket,
        *,
        on_top: Callable[[socket.socket], str] = protocol_on_top,
    ) -> None:
        """Look at both.

        Raises:
            NotPlaintextError: one is TLS (ours or the kernel's), or no TCP at all.
            OSError: one is closed.
        """
        for each in (first, second):
            _require_plain(each, on_top)
        if first is second:
            raise NotPlaintextError("a socket cannot be joined with itself")
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "second", second)


def _require_plain(sock: socket.socket, on_top: Callable[[socket.socket], str]) -> None:
    # Not isinstance: ssl.SSLSocket is a socket, and so is whatever else wraps one.
    if type(sock) is not socket.socket:
        raise NotPlaintextError(f"a {type(sock).__name__} is not a plain socket")
    protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or protocol != socket.IPPROTO_TCP:
        raise NotPlaintextError("not a TCP socket")
    if name := on_top(sock):
        raise NotPlaintextError(f"a socket with the protocol {name!r} on top of TCP")
