"""An application reset its connection: bring the tunnel to where the next one can begin.

A handshake costs a thousand times what these few frames do, and clients that
hang up in the middle are ordinary.  RESET ends a direction as EOF does
(docs/tunnel-protocol.md): whoever sends it reads on, past the bytes that nobody
wants any more, to the EOF or RESET of the peer, which answers with one if it
has sent neither.  Then both know where they are, and the tunnel is idle.

    writing (what was begun, and our RESET)  --all written-+
                                                           +--> settled
    skimming --EOF or RESET of the peer--------------------+
    either --error, cut, too long--> lost

A peer that does not answer soon, because it does not read (its application does
not), gets a FIN behind the RESET, which it is told even then; the tunnel is
given up and ``Farewell`` has it.
"""

import ssl
from collections.abc import Callable
from typing import Final

from node_agent.errors import RemoteProtocolError
from node_agent.relay.farewell import Farewell
from node_agent.relay.loop import IN, OUT, RelayLoop
from node_agent.relay.skim import Skimmer

_PATIENCE_S: Final = 0.25  # many round trips; a blocked application learns of the reset so much later
_PATIENCE_BYTES: Final = 4 * 1024 * 1024  # to decrypt more costs more than a handshake
_TLS_RECORD_BYTES: Final = 16384
_RECORDS_A_TURN: Final = 16
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)


class Settlement:
    """Owns ``tunnel`` from ``start`` until ``is_over``.

    ``leftover`` is then what came behind the peer's end, or None if the tunnel
    is lost; a lost one is closed here.
    """

    __slots__ = (
        "_call",
        "_is_wanted",
        "_loop",
        "_read",
        "_send",
        "_skimmed",
        "_skimmer",
        "_to_write",
        "_tunnel",
        "is_over",
        "leftover",
    )

    def __init__(
        self,
        *,
        loop: RelayLoop,
        tunnel: ssl.SSLSocket,
        to_write: list[memoryview],
        skimmer: Skimmer,
        leftover: bytes | None,
        send: Callable[[memoryview], object] | None = None,
    ) -> None:
        """``leftover`` is what came behind the peer's end, None if that has not come yet; ``send`` as for Farewell."""
        self._loop = loop
        self._tunnel = tunnel
        self._read = tunnel._sslobj.read  # type: ignore[attr-defined]  # noqa: SLF001
        self._send = tunnel.send if send is None else send
        self._to_write = to_write
        self._skimmer = skimmer
        self._skimmed = 0
        self.leftover = leftover
        self.is_over = False
        self._call: Callable[[], None] | None = None
        self._is_wanted = True

    def start(self) -> None:
        """Take over the events of the tunnel."""
        fd = self._tunnel.fileno()
        self._write()
        if self.leftover is None and not self.is_over and self._tunnel.pending():
            self._skim()  # bytes already inside SSL raise no event of their own
        if not self.is_over:
            self._loop.take_over(fd, self._mask(), self._on_event)
            self._loop.call_later(_PATIENCE_S, self._lose_patience)

    def _mask(self) -> int:
        # Behind the peer's end there may be more, which is not ours to read: it must not wake us again and again.
        return (OUT if self._to_write else 0) | (IN if self.leftover is None else 0)

    def tell(self, call: Callable[[], None]) -> None:
        """Call ``call`` in the loop when it is over; only for one that is not."""
        self._call = call

    def abandon(self) -> None:
        """The tunnel is not wanted back any more; harmless when it is over."""
        self._call = None
        self._is_wanted = False
        self._loop.call_soon(self._lose_patience)

    def _on_event(self, event: int) -> None:
        if event & OUT and self._to_write:
            self._write()
            if not self._to_write and not self.is_over:
                self._loop.interest(self._tunnel.fileno(), self._mask())
        if event & ~OUT and not self.is_over and self.leftover is None:
            self._skim()

    def _write(self) -> None:
        try:
            while self._to_write:
                self._send(self._to_write[0])
                del self._to_write[0]
        except _WANT:
            return
        except OSError:
            self._lose()
            return
        self._settle_if_ended()

    def _skim(self) -> None:
        for _ in range(_RECORDS_A_TURN):
            try:
                data = self._read(_TLS_RECORD_BYTES)
            except _WANT:
                return
            except OSError:
                data = b""
            try:
                end = self._skimmer.feed(data) if data else None
            except RemoteProtocolError:
                data, end = b"", None
            self._skimmed += len(data)
            if not data or (end is not None and end.is_cut):
                self._lose()
                return
            if end is not None:
                self.leftover = end.rest
                self._settle_if_ended()
                if not self.is_over:
                    self._loop.interest(self._tunnel.fileno(), self._mask())
                return
        if self._skimmed > _PATIENCE_BYTES:
            self._lose_patience()

    def _settle_if_ended(self) -> None:
        if self.leftover is not None and not self._to_write:
            if not self._is_wanted:
                self._lose()
                return
            self._loop.forget(self._tunnel.fileno())
            self._end(self.leftover)

    def _lose_patience(self) -> None:
        if not self.is_over:
            self._end(None)
            Farewell(loop=self._loop, tunnel=self._tunnel, to_write=self._to_write, send=self._send).start()

    def _lose(self) -> None:
        self._end(None)
        self._loop.close_later(self._tunnel)

    def _end(self, leftover: bytes | None) -> None:
        self.is_over = True
        self.leftover = leftover
        self._loop.report_later(self._report)

    def _report(self) -> None:
        if self._call is not None:
            self._call()
