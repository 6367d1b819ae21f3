"""The counts of limits and rate limits that all worker processes of an agent share.

A file in memory that every process maps, and flock(2) on it: what one does
within ``locked`` is one step for all.  A lock of the kernel's, because it ends
with its holder, and because Python has no atomic operation on shared memory.

Rows are found by the digest of their key, in sets of sixteen as in a processor's
cache, so nothing has to be moved when one goes: a row that counts nothing and
whose bucket is full says nothing, and is the next key's.  Each worker counts in
a column of its own, and the parent empties the column of one that has ended,
also by SIGKILL in the middle of a step.

    row: digest of the key (16) | when the bucket is full (float64) | count of worker 1, 2, ... (int32 each)
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final, Self

from node_agent.balance.limits import LedgerFullError

_SETS: Final = 4096
_WAYS: Final = 16  # ten thousand keys are two or three a set; seventeen in one do not happen
_DIGEST_BYTES: Final = 16
_FREE: Final = bytes(_DIGEST_BYTES)
_FULL_AT: Final = struct.Struct("=d")
_COUNT: Final = struct.Struct("=i")
_COUNTS_AT: Final = _DIGEST_BYTES + _FULL_AT.size


class SharedLedger:
    """A ``Ledger`` in the memory behind ``fd``, for worker number ``worker`` (from 1) of ``workers``; 0 is the parent.

    Closes nothing of the caller's; owns what it makes of ``fd`` until ``close``.
    """

    def __init__(self, fd: int, *, workers: int, worker: int = 0) -> None:
        self._counts = struct.Struct(f"={workers}i")
        self._row_bytes = _COUNTS_AT + self._counts.size
        self._column = _COUNTS_AT + (worker - 1) * _COUNT.size
        # An open file of our own: the lock belongs to the open file, and descriptors that were passed share one.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(self._fd, _SETS * _WAYS * self._row_bytes)

    @classmethod
    def create(cls, workers: int) -> tuple[Self, int]:
        """Make the memory; returns the parent's view of it, and a descriptor for the workers, the caller's to close."""
        fd = os.memfd_create("ringfence-limits")
        os.ftruncate(fd, _SETS * _WAYS * (_COUNTS_AT + workers * _COUNT.size))
        return cls(fd, workers=workers), fd

    def close(self) -> None:
        """Counts stay as they are."""
        self._memory.close()
        os.close(self._fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; the others wait some microseconds."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def count(self, key: str) -> int:
        """What all workers have added."""
        row = self._find(_digest(key))
        return 0 if row is None else sum(self._counts.unpack_from(self._memory, row + _COUNTS_AT))

    def add(self, key: str, change: int, now: float) -> None:
        """Add to this worker's count."""
        at = self._find_or_make(_digest(key), now) + self._column
        (count,) = _COUNT.unpack_from(self._memory, at)
        _COUNT.pack_into(self._memory, at, count + change)

    def full_at(self, key: str) -> float:
        """When a bucket will be full again."""
        row = self._find(_digest(key))
        return 0.0 if row is None else self._full_at(row)

    def set_full_at(self, key: str, full_at: float, now: float) -> None:
        """Raises LedgerFullError for a key that is new."""
        _FULL_AT.pack_into(self._memory, self._find_or_make(_digest(key), now) + _DIGEST_BYTES, full_at)

    def forget(self, worker: int) -> None:
        """Nothing counts any more of what a worker had counted that has ended."""
        at = _COUNTS_AT + (worker - 1) * _COUNT.size
        with self.locked():
            for byte in range(at, at + _COUNT.size):
                self._memory[byte :: self._row_bytes] = bytes(_SETS * _WAYS)

    def _rows(self, digest: bytes) -> range:
        start = int.from_bytes(digest[:4]) % _SETS * _WAYS * self._row_bytes
        return range(start, start + _WAYS * self._row_bytes, self._row_bytes)

    def _find(self, digest: bytes) -> int | None:
        for row in self._rows(digest):
            found = self._memory[row : row + _DIGEST_BYTES]
            if found == digest:
                return row
            if found == _FREE:
                return None  # a set is filled from its start, and a row once used is never free again
        return None

    def _find_or_make(self, digest: bytes, now: float) -> int:
        row = self._find(digest)
        if row is None:
            row = next((each for each in self._rows(digest) if self._says_nothing(each, now)), None)
            if row is None:
                raise LedgerFullError
            self._memory[row : row + _DIGEST_BYTES] = digest
            _FULL_AT.pack_into(self._memory, row + _DIGEST_BYTES, 0.0)
        return row

    def _says_nothing(self, row: int, now: float) -> bool:
        return self._full_at(row) <= now and not any(self._counts.unpack_from(self._memory, row + _COUNTS_AT))

    def _full_at(self, row: int) -> float:
        (full_at,) = _FULL_AT.unpack_from(self._memory, row + _DIGEST_BYTES)
        assert isinstance(full_at, float)
        return full_at


def _digest(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()
