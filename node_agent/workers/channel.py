"""One end of the socket pair between the parent and a worker: messages in order, and descriptors with them.

A unix stream socket.  Descriptors (SCM_RIGHTS, unix(7)) travel with the first
byte of the frame that they belong to, so they have arrived when it has; the
kernel never joins the descriptors of two sends into one receive.

``post`` queues and returns; ``write`` sends.  Nobody who posts ever waits for
the other end: a worker that does not read must not hold up the parent, nor the
other workers.  One that never reads again is found out by its silence (group.py).
"""

import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import trio

from ca.errors import WireError
from node_agent.workers.messages import Message, MessageDecoder, ServePod, Start, encode_message
from node_agent.workers.tunnel_messages import PassOn, TakeTunnel

SPARE_DESCRIPTORS: Final = 16
"""Enough for what goes with a message; a pod has three listeners, another workload three for each address."""

PARENTS_SPARE_DESCRIPTORS: Final = 2
"""Of the parent, for each worker: one connection at a time comes from there."""

_INT: Final = struct.Struct("i")
_READ_BYTES: Final = 256 * 1024
_MOST_DESCRIPTORS: Final = 64  # in one receive; the kernel closes and reports what does not fit
_BUFFER_BYTES: Final = 1024 * 1024  # bounded by net.core.wmem_max


def _descriptors_with(message: Message) -> int:
    match message:
        case Start():
            return 3
        case ServePod(listeners=listeners):
            return 1 + listeners
        case PassOn() | TakeTunnel():
            return 1
        case _:
            return 0


class _Post(NamedTuple):
    frame: bytes
    descriptors: list[int]


class Received(NamedTuple):
    """A message and its descriptors, which are now the receiver's to close."""

    message: Any
    descriptors: list[int]


class Channel:
    """Owns ``sock`` until ``close``.  ``receives`` is the union of the messages that the other end may send.

    ``spare_descriptors`` are kept open on nothing, and let go of when something
    arrives: a process that has no descriptor left, because of its connections,
    must still be able to take in a pod.
    """

    def __init__(self, sock: socket.socket, *, receives: Any, spare_descriptors: int = 0) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._sock = sock
        self._decoder = MessageDecoder(receives)
        self._arrived: deque[int] = deque()
        self._spare_count = spare_descriptors
        self._spare: list[int] = []
        self._queue: deque[_Post | Iterator[Message]] = deque()
        self._something = trio.Event()
        self._nothing = trio.Event()
        self._closed = False

    def post(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Queue ``message``; its descriptors are duplicated, so the caller may close them."""
        assert len(descriptors) == _descriptors_with(message)
        self.post_frame(encode_message(message), descriptors)

    def give(self, message: Message, descriptors: Sequence[int]) -> None:
        """Like ``post``, but takes the descriptors over: they are closed when they are on their way, or can not be."""
        assert len(descriptors) == _descriptors_with(message)
        owned = list(descriptors)
        if self._closed:
            _close_all(owned)
        else:
            self._put(_Post(encode_message(message), owned))

    @property
    def is_short(self) -> bool:
        """Whether this process has no descriptors left to spare: what came with the last message had better go."""
        return len(self._spare) < self._spare_count

    def post_frame(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Like ``post``, for a message that goes to several workers and is encoded once."""
        if not self._closed:
            self._put(_Post(frame, [os.dup(each) for each in descriptors]))

    def post_lazily(self, messages: Iterator[Message]) -> None:
        """Queue messages without descriptors that are made when their turn comes."""
        if not self._closed:
            self._put(messages)

    def _put(self, item: _Post | Iterator[Message]) -> None:
        self._queue.append(item)
        self._something.set()
        if self._nothing.is_set():
            self._nothing = trio.Event()

    async def write(self) -> None:
        """Send what is posted, for ever.  Raises OSError when the other end is gone."""
        while True:
            while self._queue:
                item = self._queue[0]
                if isinstance(item, _Post):
                    await self._send(item)
                    self._queue.popleft()
                else:
                    for message in item:
                        await self._send(_Post(encode_message(message), []))
                        await trio.lowlevel.checkpoint()  # a big registry takes longer than a connection should wait
                    self._queue.popleft()
            self._something = trio.Event()
            self._nothing.set()
            await self._something.wait()

    async def flush(self) -> None:
        """Return when everything posted is on its way; ``write`` has to run."""
        while self._queue:
            await self._nothing.wait()

    async def _send(self, post: _Post) -> None:
        view = memoryview(post.frame)
        while view:
            try:
                if post.descriptors:
                    sent = socket.send_fds(self._sock, [view], post.descriptors)
                    _close_all(post.descriptors)
                else:
                    sent = self._sock.send(view)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
                continue
            view = view[sent:]

    async def receive(self) -> list[Received]:
        """Return the next messages; none at the end of the stream.

        Raises:
            OSError: the other end was killed.
            WireError: it does not keep to the protocol.
        """
        while True:
            self._fill_spare()
            await trio.lowlevel.wait_readable(self._sock)
            _close_all(self._spare)
            try:
                # Not socket.recv_fds: it drops the flags, and the descriptors would be inherited by our children.
                data, ancillary, flags, _ = self._sock.recvmsg(
                    _READ_BYTES, socket.CMSG_SPACE(_MOST_DESCRIPTORS * _INT.size), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            self._arrived.extend(_descriptors(ancillary))
            self._fill_spare()
            if flags & socket.MSG_CTRUNC:
                raise WireError("descriptors were lost: this process may have no more of them")
            if not data:
                return []
            received: list[Received] = []
            try:
                for message in self._decoder.feed(data):
                    received.append(Received(message, self._take(message)))
            except WireError:
                for each in received:
                    _close_all(each.descriptors)
                raise
            if received:
                return received

    def _fill_spare(self) -> None:
        try:
            while len(self._spare) < self._spare_count:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass  # there are none left now; when some come free, they are taken

    def _take(self, message: Message) -> list[int]:
        count = _descriptors_with(message)
        if len(self._arrived) < count:
            raise WireError(f"{type(message).__name__} without its descriptors")
        return [self._arrived.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the socket and every descriptor that has not found its way; later posts go nowhere."""
        self._closed = True
        self._sock.close()
        _close_all(self._arrived)
        _close_all(self._spare)
        for item in self._queue:
            if isinstance(item, _Post):
                _close_all(item.descriptors)
        self._queue.clear()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            for (fd,) in _INT.iter_unpack(data[: len(data) - len(data) % _INT.size]):
                yield fd


def _close_all(descriptors: list[int] | deque[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
