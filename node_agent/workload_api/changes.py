"""Wakes the streams whose next message may be another one."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ca.spiffe import SpiffeId


class Changes:
    """Streams register before they look, so that no change falls in between."""

    def __init__(self) -> None:
        self._waiting: dict[SpiffeId, set[trio.Event]] = {}

    @contextmanager
    def watched(self, identity: SpiffeId) -> Iterator[trio.Event]:
        """An event that is set by the next change that concerns ``identity``."""
        event = trio.Event()
        events = self._waiting.setdefault(identity, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events and self._waiting.get(identity) is events:
                del self._waiting[identity]

    def of(self, identity: SpiffeId) -> None:
        """The SVID of an identity is another one, or gone."""
        for event in self._waiting.get(identity, ()):
            event.set()

    def of_all(self) -> None:
        """The trust, or which pods there are, has changed."""
        for events in self._waiting.values():
            for event in events:
                event.set()
