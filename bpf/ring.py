"""Read a BPF ring buffer: two mappings of the map, and no library.

kernel/bpf/ringbuf.c has the layout: a page with the consumer's position, one
with the producer's, then the data, mapped twice in a row so that a record never
wraps.  Each record has a header of 8 bytes: its length, with a bit for "not
written yet" and one for "given up".
"""

import mmap
import struct
from collections.abc import Iterator
from typing import Final

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER_BYTES: Final = 8
_POSITION: Final = struct.Struct("=Q")
_LENGTH: Final = struct.Struct("=I")


class Ring:
    """One consumer.  ``fd`` stays the caller's; it is readable when there is something to read."""

    def __init__(self, fd: int, *, size_bytes: int) -> None:
        """``size_bytes``: the map's ``max_entries``.  Raises OSError."""
        self._mask = size_bytes - 1
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._data = mmap.mmap(fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def close(self) -> None:
        self._consumer.close()
        self._data.close()

    def read(self) -> Iterator[bytes]:
        """What is there now, oldest first; what was handed out is gone from the ring when the next one is asked for."""
        (at,) = _POSITION.unpack_from(self._consumer)
        while at < _POSITION.unpack_from(self._data)[0]:
            where = mmap.PAGESIZE + (at & self._mask)
            (length,) = _LENGTH.unpack_from(self._data, where)
            if length & _BUSY:
                return
            size = length & ~_DISCARDED
            if size == length:
                yield bytes(self._data[where + _HEADER_BYTES : where + _HEADER_BYTES + size])
            at += (size + _HEADER_BYTES + 7) & ~7
            _POSITION.pack_into(self._consumer, 0, at)
