"""Where access records go: to the handlers of their logger, and to what keeps the last ones of them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from node_agent.errors import CloseReason
from node_agent.telemetry.archive import RecordArchive
from node_agent.telemetry.recent import RecentRecords
from node_agent.telemetry.response_flags import RESPONSE_FLAGS, ResponseFlag


@runtime_checkable
class TakesLines(Protocol):
    """A handler of access records that takes many at a time."""

    def emit_lines(self, texts: Sequence[str]) -> None:
        """The same as ``emit`` for each; never raises."""


class RecordOutlet:
    """Takes records as JSON text; ``logger`` is theirs alone."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._handlers: list[logging.Handler] = []  # those that ``_takers`` was made of
        self._takers: list[TakesLines] | None = []
        self._recent: Final = RecentRecords()
        self._archive: Final = RecordArchive()

    @property
    def is_open(self) -> bool:
        """Whether anybody wants them."""
        return self._logger.isEnabledFor(logging.INFO)

    def recent(self) -> Iterator[Mapping[str, Any]]:
        """Those that were kept last, newest first."""
        return self._recent.rows()

    def archive(self) -> Iterator[bytes]:
        """Some thousand of them, for ``archive.find_record``."""
        return self._archive.blocks()

    def keep(self, text: str, reason: CloseReason) -> None:
        """Write the record of a connection that ended by ``reason``, and keep it."""
        self._recent.add(text, reason)
        self._archive.add(text, keep=RESPONSE_FLAGS[reason] is ResponseFlag.DENY)
        self.write(text)

    def keep_all(self, texts: Sequence[str], again: Callable[[int, int], Sequence[str]]) -> None:
        """The same for many that ended well; ``again(begin, end)`` gives ``texts[begin:end]`` once more, later."""
        self._recent.add_all(texts, CloseReason.OK)
        self._archive.add_all(texts, again)
        self._write_all(texts)

    def write(self, text: str) -> None:
        """Write it."""
        self._write_all((text,))

    def _write_all(self, texts: Sequence[str]) -> None:
        takers = None if self._logger.propagate else self._who_takes_lines()
        if takers is None:
            for text in texts:
                # Not Logger.info(): looking for the calling line costs more than all of the rest.
                self._logger.handle(logging.LogRecord(self._logger.name, logging.INFO, "", 0, text, None, None))
            return
        for each in takers:  # a LogRecord and the way through a Handler cost more than to make the text
            each.emit_lines(texts)

    def _who_takes_lines(self) -> list[TakesLines] | None:
        """The handlers; None if one of them wants LogRecords."""
        handlers = self._logger.handlers
        if handlers != self._handlers:
            takers: list[TakesLines] = []
            others = 0
            for each in handlers:
                if isinstance(each, TakesLines):
                    takers.append(each)
                elif not isinstance(each, logging.NullHandler):
                    others += 1
            self._handlers, self._takers = list(handlers), None if others else takers
        return self._takers
