"""The ring of the kernel, as far as a file in memory can be one."""

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from bpf.ring import Ring

_PAGE = mmap.PAGESIZE
_KIND = struct.Struct("=IQ")  # 12 bytes: an entry has a header of 8, and is 24
_ENTRY = 24
_BUSY, _DISCARDED = 1 << 31, 1 << 30


class _Kernel:
    """Writes what the kernel would: the data twice, one after the other."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.truncate(self.fd, _PAGE * 4)
        self._produced = 0

    def put(self, number: int, *, flags: int = 0) -> None:
        self._write(self._produced, struct.pack("=I4xIQ", _KIND.size | flags, number, number * 10) + bytes(4))
        self._produced += _ENTRY
        os.pwrite(self.fd, struct.pack("=Q", self._produced), _PAGE)

    def commit(self, at: int) -> None:
        self._write(at, struct.pack("=I", _KIND.size))

    def _write(self, at: int, raw: bytes) -> None:
        for number, each in enumerate(raw):
            for copy in (0, _PAGE):
                os.pwrite(self.fd, bytes([each]), 2 * _PAGE + (at + number) % _PAGE + copy)

    @property
    def consumed(self) -> int:
        found: int = struct.unpack("=Q", os.pread(self.fd, 8, 0))[0]
        return found


@pytest.fixture
def kernel() -> Iterator[_Kernel]:
    kernel = _Kernel()
    yield kernel
    os.close(kernel.fd)


@pytest.fixture
def ring(kernel: _Kernel) -> Iterator[Ring]:
    ring = Ring(kernel.fd, size_bytes=_PAGE)
    yield ring
    ring.close()


def _read(ring: Ring, most: int = 100) -> list[list[int]]:
    return [[number for number, ten_times in read if ten_times == number * 10] for read in ring.read(_KIND, most=most)]


def test_each_is_read_once_some_at_a_time_over_the_end_of_the_buffer(kernel: _Kernel, ring: Ring) -> None:
    assert _read(ring) == []
    for begin in range(0, 1000, 100):
        for number in range(begin, begin + 100):
            kernel.put(number)
        assert _read(ring, most=64) == [list(range(begin, begin + 64)), list(range(begin + 64, begin + 100))]
        assert _read(ring) == []


def test_what_was_handed_out_is_gone_when_the_next_is_asked_for(kernel: _Kernel, ring: Ring) -> None:
    kernel.put(1)
    kernel.put(2)
    reading = ring.read(_KIND, most=1)
    assert next(reading) == [(1, 10)]
    assert kernel.consumed == 0
    assert next(reading) == [(2, 20)]
    assert kernel.consumed == _ENTRY


def test_what_is_not_written_yet_holds_back_the_rest_and_what_was_given_up_is_passed(
    kernel: _Kernel, ring: Ring
) -> None:
    kernel.put(1)
    kernel.put(2, flags=_DISCARDED)
    kernel.put(3, flags=_BUSY)
    kernel.put(4)
    assert _read(ring) == [[1]]
    assert _read(ring) == []
    kernel.commit(2 * _ENTRY)
    assert _read(ring) == [[3, 4]]
