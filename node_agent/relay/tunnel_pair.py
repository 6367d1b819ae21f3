"""One application socket and one tunnel, joined: bytes on one side, frames on the other.

    application --recv--> [header|payload] --one SSL write--> tunnel      (up)
    application <--send-- payload slices of the arena <--SSL reads-- tunnel  (down)

A direction is in one of these states:

    up:    reading --write blocked--> holding --flushed--> reading --EOF read--> ended (EOF frame sent)
    down:  reading --send blocked---> holding --flushed--> reading --EOF frame-> ended (application's socket shut)

When both have ended the pair is complete and the tunnel can be used again.
Anything else is an abort: the application gets a RST, never a FIN, because a
FIN would call a truncated stream whole.  After the reset of an application the
tunnel can be saved (settlement.py).  While a meter has it paused neither side
is read (meter.py).
"""

import socket
import ssl
from collections.abc import Callable
from typing import Final

from node_agent.errors import CloseReason
from node_agent.frames import (
    EOF_FRAME,
    HEADER,
    HEADER_BYTES,
    LENGTH_MASK,
    MAX_DATA_BYTES,
    RESET_FRAME,
    TYPE_SHIFT,
    CutReason,
    FrameType,
    decode_reset,
    encode_reset,
)
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.farewell import Farewell
from node_agent.relay.last_words import find_reset
from node_agent.relay.linger import end_on_close, reset_on_close
from node_agent.relay.loop import ARENA_BYTES, ERR, HUP, IN, OUT, RDHUP, READ, RelayLoop
from node_agent.relay.meter import Meter, Metered
from node_agent.relay.send_queue import unsent_bytes
from node_agent.relay.settlement import Settlement
from node_agent.relay.skim import Skimmer

_TLS_RECORD_BYTES: Final = 16384  # RFC 8446 section 5.1; a read of this size takes a whole record, so none hides in SSL
_FIRST_READ_BYTES: Final = _TLS_RECORD_BYTES - HEADER_BYTES
_DATA: Final = int(FrameType.DATA)
_DATA_WORD: Final = _DATA << TYPE_SHIFT
_SILENT: Final = -1  # equal to no mask, so the next change of interest registers again
_GATHER_AT_MOST: Final = 16  # payloads in one sendmsg; far below IOV_MAX
_LAST_START: Final = ARENA_BYTES - _TLS_RECORD_BYTES
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)
_pack_header = HEADER.pack_into
_unpack_header = HEADER.unpack_from


class TunnelPair:
    """Owns ``plain`` and ``tunnel`` from ``start`` until ``on_done``.

    ``plain`` is closed before ``on_done`` is called.  ``tunnel`` is its owner's
    again if the ending is COMPLETE, or when the outcome's settlement says so;
    else it is closed here, at the latest some seconds later.  ``on_done`` is
    called by the loop.  ``up_bytes`` (application to tunnel) and ``down_bytes``
    may be read at any time.
    """

    __slots__ = (
        "_down_ended",
        "_header",
        "_last_start",
        "_leftover",
        "_loop",
        "_meter",
        "_most_up_bytes",
        "_on_done",
        "_over",
        "_paused",
        "_plain",
        "_plain_fd",
        "_plain_mask",
        "_read_bytes",
        "_recv_into",
        "_remaining",
        "_send",
        "_tls_read",
        "_tls_write",
        "_to_plain",
        "_to_tunnel",
        "_tunnel",
        "_tunnel_fd",
        "_tunnel_mask",
        "_up_ended",
        "down_bytes",
        "up_bytes",
    )

    def __init__(
        self,
        *,
        loop: RelayLoop,
        plain: socket.socket,
        tunnel: ssl.SSLSocket,
        on_done: Callable[[Outcome], None],
        meter: Meter | None = None,
    ) -> None:
        self._loop = loop
        self._plain = plain
        self._plain_fd = plain.fileno()
        self._recv_into = plain.recv_into
        self._send = plain.send
        self._tunnel = tunnel
        self._tunnel_fd = tunnel.fileno()
        # The methods of SSLSocket add 0.7 us of checks to each call.
        tls = tunnel._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
        self._tls_read = tls.read
        self._tls_write = tls.write
        self._on_done = on_done
        self._to_tunnel: memoryview | None = None
        self._to_plain: memoryview | None = None
        self._up_ended = False
        self._down_ended = False
        self._over = False
        self._remaining = 0
        self._header = b""
        self._leftover = b""
        self._read_bytes = _FIRST_READ_BYTES
        self._plain_mask = READ
        self._tunnel_mask = IN
        self.up_bytes = 0
        self.down_bytes = 0
        self._paused = False
        self._most_up_bytes = MAX_DATA_BYTES
        self._last_start = _LAST_START
        self._meter: Metered | None = None
        if meter is not None:
            self._meter = Metered(loop=loop, pair=self, meter=meter)
            self._most_up_bytes = min(meter.most_bytes, MAX_DATA_BYTES)
            self._read_bytes = min(self._read_bytes, self._most_up_bytes)
            # At least a whole record, or bytes would hide in SSL.
            self._last_start = min(meter.most_bytes, ARENA_BYTES) - _TLS_RECORD_BYTES

    @property
    def is_half_closed(self) -> bool:
        """Whether exactly one direction has ended."""
        return self._up_ended != self._down_ended

    @property
    def held_bytes(self) -> int:
        """Bytes that were read from one side and wait for the other."""
        return len(self._to_tunnel or b"") + len(self._to_plain or b"")

    def send_queues(self) -> tuple[int, int]:
        """The bytes that wait to be taken: up by the peer agent, down by the application."""
        return unsent_bytes(self._tunnel), unsent_bytes(self._plain)

    def start(self) -> None:
        """Hand both sockets to the loop; called once."""
        if self._tunnel.pending():
            # Bytes already inside SSL raise no event of their own; "writable" is true at once and brings us there.
            self._tunnel_mask = IN | OUT
        meter = self._meter
        self._loop.adopt(
            self._tunnel_fd, self._tunnel_mask, self._on_tunnel if meter is None else meter.handler(self._on_tunnel)
        )
        self._loop.adopt(self._plain_fd, READ, self._on_plain if meter is None else meter.handler(self._on_plain))
        if meter is not None:
            meter.start()

    def cut(self, reason: CutReason | None) -> None:
        """Abort both sides and tell the peer agent why; called from any thread, harmless when it is over."""
        self._loop.call_soon(lambda: self._abort(Ending.CUT, reason))

    # -- for the meter ------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self._over

    def abort(self, reason: CloseReason) -> None:
        """Abort both sides and tell the peer agent why, from within the loop."""
        self._abort(Ending.CUT, reason)

    def pause(self) -> None:
        """Read neither side."""
        self._paused = True
        self._update_interest()

    def resume(self) -> None:
        if self._over:
            return
        self._paused = False
        self._update_interest()
        if self._to_plain is None and self._tunnel.pending():
            self._pump_down()  # bytes already inside SSL raise no event of their own

    # -- events -------------------------------------------------------------

    def _on_plain(self, event: int) -> None:
        if event == IN and self._plain_mask == READ:
            self._pump_up()
            return
        if self._to_plain is not None and event & OUT:
            self._flush_plain()
        if self._over:
            return
        if self._plain_mask & IN:
            if event & ~OUT:
                self._pump_up(is_last=bool(event & RDHUP))
        elif event & ERR:
            self._reset_by_application()
        elif event & HUP:
            # Shut both ways, with bytes still to be read once the tunnel takes them: hush it until then.
            self._loop.silence(self._plain_fd)
            self._plain_mask = _SILENT

    def _on_tunnel(self, event: int) -> None:
        if event == IN and self._tunnel_mask == IN:
            self._pump_down()
            return
        if event & OUT:
            if self._to_tunnel is not None:
                self._flush_tunnel()
            elif self._to_plain is None and not self._paused and not self._over:
                self._pump_down()
                self._update_interest()
                return
        if self._to_plain is None and not self._paused:
            if event & ~OUT and not self._over:
                self._pump_down()
        elif event & (ERR | RDHUP) and not self._over:
            self._lose_tunnel()

    # -- up: application to tunnel --------------------------------------------

    def _pump_up(self, *, is_last: bool = False) -> None:
        """Read once, write once; ``is_last``: the application's FIN has arrived, perhaps behind these bytes."""
        loop = self._loop
        try:
            received = self._recv_into(loop.arena_body, self._read_bytes)
        except BlockingIOError:
            return
        except OSError:
            self._reset_by_application()
            return
        if received:
            self.up_bytes += received
            arena = loop.arena
            _pack_header(arena, 0, _DATA_WORD | received)
            if received == self._read_bytes and received < self._most_up_bytes:
                self._read_bytes = min((received + HEADER_BYTES) * 4 - HEADER_BYTES, self._most_up_bytes)
            end = HEADER_BYTES + received
            try:
                is_last = is_last and received < _FIRST_READ_BYTES and not self._plain.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                is_last = False
            except OSError:
                # The kernel tells an error once; the next recv would call the stream whole.
                self._reset_by_application()
                return
            if is_last:
                # The end in the same record as the last bytes: one write, one packet, one wake-up of the peer.
                arena[end : end + HEADER_BYTES] = EOF_FRAME
                self._end_up(arena[: end + HEADER_BYTES])
            else:
                self._write_tunnel(arena[:end])
        else:
            self._end_up(memoryview(EOF_FRAME))

    def _end_up(self, last: memoryview) -> None:
        self._up_ended = True
        self._write_tunnel(last)
        self._update_interest()
        self._complete_if_ended()

    def _write_tunnel(self, frame: memoryview) -> None:
        # OpenSSL writes all of it or wants to be called again with the same bytes (SSL_write(3), no partial writes).
        try:
            self._tls_write(frame)
        except _WANT:
            self._to_tunnel = self._loop.keep(frame)
            self._update_interest()
        except OSError:
            self._lose_tunnel()

    def _flush_tunnel(self) -> None:
        held = self._to_tunnel
        assert held is not None
        try:
            self._tls_write(held)
        except _WANT:
            return
        except OSError:
            self._lose_tunnel()
            return
        self._to_tunnel = None
        self._loop.give_back(held)
        self._update_interest()
        self._complete_if_ended()

    # -- down: tunnel to application ------------------------------------------

    def _pump_down(self) -> None:
        arena = self._loop.arena
        read = self._tls_read
        lost = False
        end = 0
        try:
            end = read(_TLS_RECORD_BYTES, arena)
            if HEADER_BYTES < end < _TLS_RECORD_BYTES and not self._remaining:
                # Nearly always: one record, and in it one whole DATA frame.
                (word,) = _unpack_header(arena)
                if word == _DATA_WORD | end - HEADER_BYTES and not self._header and not self._down_ended:
                    self._send_payload(arena[HEADER_BYTES:end])
                    return
            got = end
            while got == _TLS_RECORD_BYTES and end <= self._last_start:
                got = read(_TLS_RECORD_BYTES, arena[end:])
                end += got
            lost = got == 0
        except _WANT:
            pass
        except OSError:
            lost = True
        if end:
            self._take_frames(arena, end)
        if lost and not self._over:
            self._abort(Ending.TUNNEL_LOST)

    def _take_frames(self, arena: memoryview, end: int) -> None:
        """Deliver the frames in ``arena[:end]``; what is cut off at its end is remembered."""
        payloads: list[memoryview] = []
        start = 0
        while start < end:
            if self._remaining:
                stop = min(start + self._remaining, end)
                payloads.append(arena[start:stop])
                self._remaining -= stop - start
                start = stop
                continue
            if self._header or end - start < HEADER_BYTES:
                missing = HEADER_BYTES - len(self._header)
                self._header += bytes(arena[start : min(start + missing, end)])
                start += missing
                if start > end:
                    break
                (word,) = HEADER.unpack(self._header)
                self._header = b""
            else:
                (word,) = _unpack_header(arena, start)
                start += HEADER_BYTES
            if word >> TYPE_SHIFT == _DATA and not self._down_ended:
                self._remaining = word & LENGTH_MASK
                if 0 < self._remaining <= MAX_DATA_BYTES:
                    continue
                self._abort(Ending.PROTOCOL_ERROR)
                return
            if not self._take_control(word, arena[start:end]):
                return
            if self._down_ended and start < end and self._up_ended and self._to_tunnel is None:
                # Our EOF is out and so is theirs: what follows opens the tunnel's next connection.
                self._leftover = bytes(arena[start:end])
                break
        if len(payloads) == 1:
            self._send_payload(payloads[0])
        elif payloads:
            self._send_payloads(payloads)
        elif self._down_ended and self._to_plain is None:
            self._shut_plain()

    def _take_control(self, word: int, rest: memoryview) -> bool:
        """Obey a frame that is not DATA, ``rest`` is what came behind its header; False when the pair is over."""
        kind, length = word >> TYPE_SHIFT, word & LENGTH_MASK
        if kind == FrameType.EOF and length == 0 and not self._down_ended:
            self._down_ended = True
            return True
        if kind == FrameType.RESET and length == 0:
            self._settle(Ending.PEER_RESET, behind_peers_end=bytes(rest))
        elif kind == FrameType.RESET:
            self._abort(Ending.PEER_RESET, decode_reset(bytes(rest[:length])))
        else:
            self._abort(Ending.PROTOCOL_ERROR)
        return False

    def _send_payload(self, payload: memoryview) -> None:
        size = len(payload)
        self.down_bytes += size
        try:
            # Bytes and FIN in one packet, if the end is known already.
            sent = self._send(payload, socket.MSG_MORE) if self._down_ended else self._send(payload)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._reset_by_application()
            return
        if sent < size:
            self._to_plain = self._loop.keep(payload[sent:])
            self._update_interest()
        elif self._down_ended:
            self._shut_plain()

    def _send_payloads(self, payloads: list[memoryview]) -> None:
        """Send several payloads at once; what can not be sent is joined."""
        if len(payloads) > _GATHER_AT_MOST:
            self._send_payload(memoryview(b"".join(payloads)))
            return
        size = sum(map(len, payloads))
        self.down_bytes += size
        try:
            sent = self._plain.sendmsg(payloads)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._reset_by_application()
            return
        if sent < size:
            self._to_plain = memoryview(b"".join(payloads))[sent:]
            self._update_interest()
        elif self._down_ended:
            self._shut_plain()

    def _flush_plain(self) -> None:
        held = self._to_plain
        assert held is not None
        try:
            sent = self._send(held)
        except BlockingIOError:
            return
        except OSError:
            self._reset_by_application()
            return
        if sent < len(held):
            self._to_plain = held[sent:]
            return
        self._to_plain = None
        self._loop.give_back(held)
        if self._down_ended:
            self._shut_plain()
        if not self._over:
            self._update_interest()

    def _shut_plain(self) -> None:
        try:
            self._plain.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset_by_application()
            return
        if not self._complete_if_ended():
            self._update_interest()

    # -- what to wait for, and the end ----------------------------------------

    def _update_interest(self) -> None:
        if self._over:
            return
        plain = (READ if not self._up_ended and self._to_tunnel is None and not self._paused else 0) | (
            OUT if self._to_plain is not None else 0
        )
        if plain != self._plain_mask:
            self._plain_mask = plain
            if self._up_ended and self._down_ended and not plain:
                # Shut both ways: its "hung up" is level-triggered for ever and tells nothing new.
                self._loop.forget(self._plain_fd)
            else:
                self._loop.interest(self._plain_fd, plain)
        if self._to_plain is None and not self._paused:
            tunnel = IN
        else:
            # Not reading, because the application does not, or the meter has us wait.  A peer that leaves now has not
            # heard our EOF: it aborts, and the application must hear of that although it does not read.  After our EOF
            # it may leave in peace.
            tunnel = 0 if self._up_ended else RDHUP
        if self._to_tunnel is not None:
            tunnel |= OUT
        if tunnel != self._tunnel_mask:
            self._tunnel_mask = tunnel
            self._loop.interest(self._tunnel_fd, tunnel)

    def _complete_if_ended(self) -> bool:
        if self._over:
            return True
        if self._up_ended and self._down_ended and self._to_tunnel is None and self._to_plain is None:
            self._loop.forget(self._tunnel_fd)
            end_on_close(self._plain)
            self._end(Ending.COMPLETE)
            return True
        return False

    def _lose_tunnel(self) -> None:
        """The tunnel broke or ended: abort, for the reason that the peer may have told before."""
        was_reset, reason = find_reset(self._tls_read, remaining=self._remaining, header=self._header)
        self._abort(Ending.PEER_RESET if was_reset else Ending.TUNNEL_LOST, reason)

    def _reset_by_application(self) -> None:
        self._settle(Ending.PLAIN_RESET, behind_peers_end=self._leftover if self._down_ended else None)

    def _settle(self, ending: Ending, *, behind_peers_end: bytes | None) -> None:
        """An application has reset the connection: abort, but try to keep the tunnel."""
        if self._over:
            return
        to_write = [] if self._to_tunnel is None else [self._to_tunnel]
        if ending is Ending.PLAIN_RESET or not self._up_ended:
            to_write.append(memoryview(RESET_FRAME))
        settlement = Settlement(
            loop=self._loop,
            tunnel=self._tunnel,
            to_write=to_write,
            skimmer=Skimmer(remaining=self._remaining, header=self._header),
            leftover=behind_peers_end,
        )
        reset_on_close(self._plain)
        self._end(ending, settlement=settlement)
        settlement.start()

    def _abort(self, ending: Ending, reason: CutReason | None = None) -> None:
        """End the connection and its tunnel."""
        if self._over:
            return
        reset_on_close(self._plain)
        self._end(ending, reason)
        if ending in (Ending.TUNNEL_LOST, Ending.PEER_RESET):
            self._loop.close_later(self._tunnel)
        else:
            to_write = [] if self._to_tunnel is None else [self._to_tunnel]
            to_write.append(memoryview(encode_reset(reason if ending is Ending.CUT else None)))
            Farewell(loop=self._loop, tunnel=self._tunnel, to_write=to_write).start()

    def _end(self, ending: Ending, reason: CutReason | None = None, settlement: Settlement | None = None) -> None:
        self._over = True
        self._loop.close_later(self._plain)
        outcome = Outcome(ending=ending, leftover=self._leftover, reason=reason, settlement=settlement)
        self._loop.report_later(lambda: self._on_done(outcome))
