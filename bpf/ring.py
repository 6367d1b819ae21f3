"""Read a BPF ring buffer: two mappings of the map, and no library.

kernel/bpf/ringbuf.c has the layout: a page with the consumer's position, one
with the producer's, then the data, mapped twice in a row so that a record never
wraps.  Each record has a header of 8 bytes: its length, with a bit for "not
written yet" and one for "given up".
"""

import mmap
import struct
from collections.abc import Iterator
from typing import Any, Final

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER_BYTES: Final = 8
_POSITION: Final = struct.Struct("=Q")
_LENGTH_BYTES: Final = 4


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

    def read(self, kind: struct.Struct, *, most: int) -> Iterator[list[tuple[Any, ...]]]:
        """What is there now, oldest first, up to ``most`` at a time; all of it is of one ``kind`` ("=...").

        What was handed out is gone from the ring when the next is asked for.
        """
        entry = struct.Struct(f"={_HEADER_BYTES}x{kind.format[1:]}{-kind.size % 8}x")
        (at,) = _POSITION.unpack_from(self._consumer)
        while (there := min((_POSITION.unpack_from(self._data)[0] - at) // entry.size, most)) > 0:
            where = mmap.PAGESIZE + (at & self._mask)
            raw = self._data[where : where + there * entry.size]
            lengths = memoryview(raw).cast("I")[:: entry.size // _LENGTH_BYTES].tolist()
            ready = next((number for number, length in enumerate(lengths) if length & _BUSY), there)
            if not ready:
                return
            entries = list(entry.iter_unpack(raw[: ready * entry.size]))
            yield [each for each, length in zip(entries, lengths, strict=False) if not length & _DISCARDED]
            at += ready * entry.size
            _POSITION.pack_into(self._consumer, 0, at)
