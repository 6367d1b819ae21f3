"""One application socket and one tunnel, joined: bytes on one side, frames on the other.

    application --recv--> [header|payload] --one SSL write--> tunnel      (up, tunnel_up.py)
    application <--send-- payload slices of the arena <--SSL reads-- tunnel  (down, tunnel_down.py)

Each half moves its bytes by itself and tells the pair when something else
happens (news.py); the pair keeps what both have to do with: which events to
wait for, and the end.

When both halves have ended the pair is complete and the tunnel can be used again.
Anything else is an abort: the application gets a RST, never a FIN, because a
FIN would call a truncated stream whole.  After the reset of an application the
tunnel can be saved (settlement.py).  While a meter has it paused neither side
is read (meter.py).
"""

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from node_agent.errors import CloseReason
from node_agent.frames import RESET_FRAME, CutReason, encode_reset
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.farewell import Farewell
from node_agent.relay.linger import end_on_close, reset_on_close
from node_agent.relay.loop import ARENA_BYTES, ERR, HUP, IN, OUT, RDHUP, READ, RelayLoop
from node_agent.relay.meter import Meter, Metered
from node_agent.relay.news import News
from node_agent.relay.send_queue import unsent_bytes
from node_agent.relay.settlement import Settlement
from node_agent.relay.skim import Skimmer
from node_agent.relay.tunnel_down import Down
from node_agent.relay.tunnel_up import Up

_SILENT: Final = -1  # equal to no mask, so the next change of interest registers again


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """How far a connection has come that began elsewhere.

    ``held`` are bytes for the application that it has not taken yet; ``is_shut``:
    the end of that direction was delivered, and comes once more.
    """

    up_bytes: int
    down_bytes: int
    held: bytes | None
    is_shut: bool


class TunnelPair:
    """Owns ``plain`` and ``tunnel`` from ``start`` until ``on_done``.

    ``plain`` is closed before ``on_done`` is called.  ``tunnel`` is its owner's
    again if the ending is COMPLETE, or when the outcome's settlement says so;
    else it is closed here, at the latest some seconds later.  ``on_done`` is
    called by the loop.  ``up_bytes`` (application to tunnel) and ``down_bytes``
    may be read at any time.
    """

    __slots__ = (
        "_down",
        "_loop",
        "_meter",
        "_on_done",
        "_over",
        "_paused",
        "_plain",
        "_plain_fd",
        "_plain_mask",
        "_tunnel",
        "_tunnel_fd",
        "_tunnel_mask",
        "_up",
    )

    def __init__(
        self,
        *,
        loop: RelayLoop,
        plain: socket.socket,
        tunnel: ssl.SSLSocket,
        on_done: Callable[[Outcome], None],
        meter: Meter | None = None,
        handed: Handed | None = None,
    ) -> None:
        self._loop = loop
        self._plain = plain
        self._plain_fd = plain.fileno()
        self._tunnel = tunnel
        self._tunnel_fd = tunnel.fileno()
        self._on_done = on_done
        # The methods of SSLSocket add 0.7 us of checks to each call.
        tls = tunnel._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
        most_bytes = ARENA_BYTES if meter is None else meter.most_bytes
        self._up = up = Up(loop=loop, plain=plain, tls=tls, most_bytes=most_bytes)
        self._down = Down(loop=loop, plain=plain, tls_read=tls.read, most_bytes=most_bytes, up=up)
        self._over = False
        self._paused = False
        self._plain_mask = READ
        self._tunnel_mask = IN
        self._meter = None if meter is None else Metered(loop=loop, pair=self, meter=meter)
        if handed is not None:
            self._go_on_from(handed)

    def _go_on_from(self, handed: Handed) -> None:
        self._up.moved_bytes = handed.up_bytes
        self._down.moved_bytes = handed.down_bytes
        self._down.is_shut = handed.is_shut
        if handed.held is not None:
            self._down.held = memoryview(handed.held)
            self._plain_mask = READ | OUT
            self._tunnel_mask = RDHUP

    @property
    def up_bytes(self) -> int:
        return self._up.moved_bytes

    @property
    def down_bytes(self) -> int:
        return self._down.moved_bytes

    @property
    def is_half_closed(self) -> bool:
        """Whether exactly one direction has ended."""
        return self._up.has_ended != self._down.has_ended

    @property
    def held_bytes(self) -> int:
        """Bytes that were read from one side and wait for the other."""
        return self._up.held_bytes + len(self._down.held or b"")

    def send_queues(self) -> tuple[int, int]:
        """The bytes that wait to be taken: up by the peer agent, down by the application."""
        return unsent_bytes(self._tunnel), unsent_bytes(self._plain)

    def start(self) -> None:
        """Hand both sockets to the loop; called once."""
        if self._tunnel.pending() and self._down.held is None:
            # Bytes already inside SSL raise no event of their own; "writable" is true at once and brings us there.
            self._tunnel_mask = IN | OUT
        meter = self._meter
        self._loop.adopt(
            self._tunnel_fd, self._tunnel_mask, self._on_tunnel if meter is None else meter.handler(self._on_tunnel)
        )
        self._loop.adopt(
            self._plain_fd, self._plain_mask, self._on_plain if meter is None else meter.handler(self._on_plain)
        )
        if meter is not None:
            meter.start()

    def cut(self, reason: CutReason | None) -> None:
        """Abort both sides and tell the peer agent why; called from any thread, harmless when it is over."""
        self._loop.call_soon(lambda: self._abort(Ending.CUT, reason))

    # -- for the meter ------------------------------------------------------

    @property
    def moved_bytes(self) -> int:
        """Both ways together."""
        return self._up.moved_bytes + self._down.moved_bytes

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
        if self._down.held is None and self._tunnel.pending():
            self._heed(self._down.pump())  # bytes already inside SSL raise no event of their own

    # -- events -------------------------------------------------------------

    def _on_plain(self, event: int) -> None:
        up = self._up
        if event == IN and self._plain_mask == READ:
            if (news := up.pump()) is not None:
                self._heed(news)
            return
        if event & OUT and self._down.held is not None:
            self._heed(self._down.flush())
        if self._over:
            return
        if self._plain_mask & IN:
            if event & ~OUT:
                self._heed(up.pump(is_last=bool(event & RDHUP)))
        elif event & ERR:
            self._reset_by_application()
        elif event & HUP:
            # Shut both ways, with bytes still to be read once the tunnel takes them: hush it until then.
            self._loop.silence(self._plain_fd)
            self._plain_mask = _SILENT

    def _on_tunnel(self, event: int) -> None:
        down = self._down
        if event == IN and self._tunnel_mask == IN:
            if (news := down.pump()) is not None:
                self._heed(news)
            return
        if event & OUT:
            if self._up.held is not None:
                self._heed(self._up.flush())
            elif down.held is None and not self._paused and not self._over:
                self._heed(down.pump())
                self._update_interest()
                return
        if down.held is None and not self._paused:
            if event & ~OUT and not self._over:
                self._heed(down.pump())
        elif event & (ERR | RDHUP) and not self._over:
            self._lose_tunnel()

    def _heed(self, news: News | None) -> None:
        match news:
            case None:
                pass
            case News.CHANGED:
                self._look()
            case News.PLAIN_BROKEN:
                self._reset_by_application()
            case News.TUNNEL_BROKEN:
                self._lose_tunnel()
            case News.TUNNEL_ENDED:
                self._look()  # what came before the end may be all that was to come
                self._abort(Ending.TUNNEL_LOST)
            case News.PEER_RESET:
                self._settle(Ending.PEER_RESET, behind_peers_end=self._down.rest)
            case News.PEER_CUT:
                self._abort(Ending.PEER_RESET, self._down.reason)
            case News.PROTOCOL_ERROR:
                self._abort(Ending.PROTOCOL_ERROR)
            case _:
                assert_never(news)

    def _look(self) -> None:
        """A half has changed: is it the end, and if not, what is there to wait for?"""
        up, down = self._up, self._down
        if up.is_out and down.has_ended and down.held is None:
            self._complete()
        else:
            self._update_interest()

    def _update_interest(self) -> None:
        if self._over:
            return
        up, down = self._up, self._down
        plain = (READ if not up.has_ended and up.held is None and not self._paused else 0) | (
            OUT if down.held is not None else 0
        )
        if plain != self._plain_mask:
            self._plain_mask = plain
            if up.has_ended and down.has_ended and not plain:
                # Shut both ways: its "hung up" is level-triggered for ever and tells nothing new.
                self._loop.forget(self._plain_fd)
            else:
                self._loop.interest(self._plain_fd, plain)
        if down.held is None and not self._paused:
            tunnel = IN
        else:
            # Not reading, because the application does not, or the meter has us wait.  A peer that leaves now has not
            # heard our EOF: it aborts, and the application must hear of that although it does not read.  After our EOF
            # it may leave in peace.
            tunnel = 0 if up.has_ended else RDHUP
        if up.held is not None:
            tunnel |= OUT
        if tunnel != self._tunnel_mask:
            if tunnel == IN and self._tunnel.pending():
                tunnel |= OUT  # as in ``start``
            self._tunnel_mask = tunnel
            self._loop.interest(self._tunnel_fd, tunnel)

    # -- the end --------------------------------------------------------------

    def _complete(self) -> None:
        if not self._over:
            self._loop.forget(self._tunnel_fd)
            end_on_close(self._plain)
            self._end(Ending.COMPLETE)

    def _lose_tunnel(self) -> None:
        """The tunnel broke or ended: abort, for the reason that the peer may have told before."""
        was_reset, reason = self._down.find_reset()
        self._abort(Ending.PEER_RESET if was_reset else Ending.TUNNEL_LOST, reason)

    def _reset_by_application(self) -> None:
        self._settle(Ending.PLAIN_RESET, behind_peers_end=self._down.rest if self._down.has_ended else None)

    def _settle(self, ending: Ending, *, behind_peers_end: bytes | None) -> None:
        """An application has reset the connection: abort, but try to keep the tunnel."""
        if self._over:
            return
        to_write = [] if self._up.held is None else [self._up.held]
        if ending is Ending.PLAIN_RESET or not self._up.has_ended:
            to_write.append(memoryview(RESET_FRAME))
        remaining, header = self._down.position
        settlement = Settlement(
            loop=self._loop,
            tunnel=self._tunnel,
            to_write=to_write,
            skimmer=Skimmer(remaining=remaining, header=header),
            leftover=behind_peers_end,
            send=self._up.send,
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
            to_write = [] if self._up.held is None else [self._up.held]
            to_write.append(memoryview(encode_reset(reason if ending is Ending.CUT else None)))
            Farewell(loop=self._loop, tunnel=self._tunnel, to_write=to_write, send=self._up.send).start()

    def _end(self, ending: Ending, reason: CutReason | None = None, settlement: Settlement | None = None) -> None:
        self._over = True
        self._loop.close_later(self._plain)
        outcome = Outcome(ending=ending, leftover=self._down.rest, reason=reason, settlement=settlement)
        self._loop.report_later(lambda: self._on_done(outcome))
