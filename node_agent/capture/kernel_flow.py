"""One direction of a connection that the kernel relays, as the agent and the program both have it in their memory.

``sockmap_flow`` in bpf/maps.h says who writes what.
"""

import fcntl
import socket
import struct
import termios
from typing import Final

from bpf.abi import abi

_LAYOUT: Final = abi().structs["sockmap_flow"]
_WORD_BYTES: Final = 8
FLOW_WORDS: Final = _LAYOUT.size_bytes // _WORD_BYTES


def _word(member: str) -> int:
    return _LAYOUT.members[member].offset // _WORD_BYTES


_COOKIE: Final = _word("cookie")
_WRITTEN_BEFORE: Final = _word("written_before")
_CONSUMED: Final = _word("consumed")
_WANTED: Final = _word("wanted")
_REDIRECTED: Final = _word("redirected")
_PASSED: Final = _word("passed")

COOKIE: Final = struct.Struct("=Q")
_INT: Final = struct.Struct("i")
_BYTE_COUNTS: Final = struct.Struct("=QQ")
_BYTE_COUNTS_AT: Final = 120  # of struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received
_TCP_INFO_BYTES: Final = _BYTE_COUNTS_AT + _BYTE_COUNTS.size
_FIN: Final = 1


def bytes_received(sock: socket.socket) -> int:
    """All that TCP has received, with the FIN.  Raises OSError."""
    return _byte_counts(sock)[1]


def bytes_written(sock: socket.socket) -> int:
    """All that a socket was ever given to send, acknowledged or not.  Raises OSError."""
    acked = _byte_counts(sock)[0]
    while True:
        (queued,) = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
        before, acked = acked, _byte_counts(sock)[0]
        if before == acked:
            return acked + int(queued)  # nothing was acknowledged between the two looks


def _byte_counts(sock: socket.socket) -> tuple[int, int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    acked, received = _BYTE_COUNTS.unpack_from(info, _BYTE_COUNTS_AT)
    return acked, received


class KernelFlow:
    """What arrives on ``source`` for ``sink``.

    ``user_bytes`` of the methods: how many bytes of this direction the caller
    itself has given to ``sink`` since the two sockets were joined.
    """

    __slots__ = ("_received_before", "_words", "cookie", "key", "sink", "slot", "source")

    def __init__(
        self,
        *,
        words: memoryview,
        slot: int,
        key: bytes,
        source: socket.socket,
        sink: socket.socket,
        received_before: int,
        written_before: int,
    ) -> None:
        """``words`` are ours until ``release``; the sockets stay the caller's."""
        self._words = words
        self.slot = slot
        self.key = key
        (self.cookie,) = COOKIE.unpack(key)
        self.source = source
        self.sink = sink
        self._received_before = received_before
        for number in range(FLOW_WORDS):
            words[number] = 0
        words[_COOKIE] = self.cookie
        words[_WRITTEN_BEFORE] = written_before

    def release(self) -> None:
        """The record is another's."""
        self._words.release()

    @property
    def moved_bytes(self) -> int:
        """What the kernel has relayed."""
        return self._words[_REDIRECTED]

    @property
    def is_demoted(self) -> bool:
        """Whether the kernel has left bytes to us that we had not passed on when it was told so the last time."""
        return self._words[_PASSED] != self._words[_CONSUMED]

    def hold(self) -> None:
        """Whatever arrives is ours, if it is now: until ``take_up``."""
        self._words[_WANTED] = 0

    def take_up(self, user_bytes: int) -> bool:
        """Let the kernel relay again; False if it has left something to us that we have not passed on.

        No byte can come in between: the program only goes on when what it has
        passed is what we say here, and we only believe it if that is so.
        """
        self._words[_CONSUMED] = user_bytes
        self._words[_WANTED] = 1
        if self._words[_PASSED] == user_bytes:
            return True
        self._words[_WANTED] = 0
        return False

    def is_drained(self, user_bytes: int) -> bool:
        """Whether all that was handed on has reached the send buffer of ``sink``.  Raises OSError."""
        return bytes_written(self.sink) - self._words[_WRITTEN_BEFORE] >= self._words[_REDIRECTED] + user_bytes

    def is_whole(self, user_bytes: int) -> bool:
        """Whether all that came before the sender's FIN has been handed on.  Raises OSError."""
        received = bytes_received(self.source) - self._received_before - _FIN
        return received == self._words[_REDIRECTED] + user_bytes
