"""The access records of the last thousands of connections, compressed: for whoever asks about one by its id.

Records are alike, so 64 of them compressed together take about 60 bytes each,
and 3 microseconds: the whole archive is some 300 KB.  Those that were denied are
kept in a ring of their own, so that good ones do not wash them away.

Sans-I/O, one thread.
"""

import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast

_RECORDS_A_BLOCK: Final = 64
_MOST_RECORDS_A_BLOCK: Final = 128  # of those that came together
_RECORDS: Final = 4096
_KEPT_RECORDS: Final = 1024  # denied ones
_LEVEL: Final = 3  # a quarter less time than 1, with less memory
_MOST_BLOCK_BYTES: Final = 1024 * 1024  # of records of at most some 4 KiB each


class RecordArchive:
    """What the access log puts in, as JSON text without line feeds."""

    def __init__(self) -> None:
        self._all = _Ring(_RECORDS)
        self._kept = _Ring(_KEPT_RECORDS)

    def add(self, text: str, *, keep: bool) -> None:
        """Keep a record; with ``keep`` longer than the others."""
        self._all.add(text)
        if keep:
            self._kept.add(text)

    def add_all(self, texts: Sequence[str], again: Callable[[int, int], Sequence[str]]) -> None:
        """Keep many records, by how to make ``texts[begin:end]`` again, which is cheaper than to compress them."""
        if len(texts) < _RECORDS_A_BLOCK:
            for text in texts:
                self._all.add(text)
            return
        for begin in range(0, len(texts), _MOST_RECORDS_A_BLOCK):
            end = min(begin + _MOST_RECORDS_A_BLOCK, len(texts))
            self._all.add_block(partial(again, begin, end), records=end - begin)

    def blocks(self) -> Iterator[bytes]:
        """Everything, compressed, the newest first; a snapshot."""
        yield from self._all.blocks()
        yield from self._kept.blocks()


def find_record(blocks: Iterable[bytes], record_id: str) -> dict[str, Any] | None:
    """The record of this id, None if it is in none of the ``blocks``."""
    wanted = f'"id":{json.dumps(record_id)},'
    for block in blocks:
        text = zlib.decompressobj().decompress(block, _MOST_BLOCK_BYTES).decode()
        if wanted not in text:
            continue
        for line in reversed(text.split("\n")):
            if wanted in line and (record := json.loads(line))["id"] == record_id:
                return cast("dict[str, Any]", record)
    return None


_Texts = Callable[[], Sequence[str]]


class _Ring:
    """Blocks of records, the last one still open."""

    def __init__(self, records: int) -> None:
        self._most = records
        self._blocks: deque[tuple[bytes | _Texts, int]] = deque()
        self._records = 0  # in blocks
        self._open: list[str] = []

    def add(self, text: str) -> None:
        self._open.append(text)
        if len(self._open) == _RECORDS_A_BLOCK:
            self.add_block(_compressed(self._open), records=_RECORDS_A_BLOCK)
            self._open = []

    def add_block(self, block: bytes | _Texts, *, records: int) -> None:
        self._blocks.append((block, records))
        self._records += records
        while self._records - self._blocks[0][1] >= self._most:
            self._records -= self._blocks.popleft()[1]

    def blocks(self) -> Iterator[bytes]:
        open_, blocks = self._open.copy(), list(self._blocks)
        if open_:
            yield _compressed(open_)
        for block, _ in reversed(blocks):
            yield block if isinstance(block, bytes) else _compressed(block())


def _compressed(texts: Sequence[str]) -> bytes:
    return zlib.compress("\n".join(texts).encode(), _LEVEL)
