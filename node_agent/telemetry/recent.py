"""The access records of the connections that ended last, for whoever asks what has just happened.

Two rings, so that a storm of good connections does not wash away the one that
was refused: the last ones of any kind, and the last ones that did not end well.

Sans-I/O.  A record is kept as the text that was written: a dictionary would be
made for every connection, and read for hardly any.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from node_agent.errors import CloseReason

_LAST: Final = 256  # of about 900 bytes each
_LAST_FAILED: Final = 128
_NOT_WORTH_KEEPING: Final = frozenset({CloseReason.OK})


class RecentRecords:
    """What ``AccessLog`` puts in; the newest comes first out."""

    def __init__(self, *, last: int = _LAST, last_failed: int = _LAST_FAILED) -> None:
        self._last: deque[str] = deque(maxlen=last)
        self._failed: deque[str] = deque(maxlen=last_failed)

    def add(self, text: str, reason: CloseReason) -> None:
        """Keep one access record, as JSON text."""
        self._last.append(text)
        if reason not in _NOT_WORTH_KEEPING:
            self._failed.append(text)

    def add_all(self, texts: Sequence[str], reason: CloseReason) -> None:
        """Keep many that ended alike."""
        self._last.extend(texts)
        if reason not in _NOT_WORTH_KEEPING:
            self._failed.extend(texts)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The records, each once, newest first; a snapshot."""
        last = list(self._last)
        seen = set(last)
        kept = [text for text in self._failed if text not in seen]
        for text in (*reversed(last), *reversed(kept)):
            yield json.loads(text)
