"""Two plaintext sockets that the kernel relays between while messages are small.

It begins as a plain pair (plain_pair.py) does: most connections carry a few
messages, and to join costs as much as those.  After some small ones both
sockets go into the kernel's maps.  From then on bytes pass without us, and we
hear only of the end of a direction (EPOLLRDHUP), of resets, and that the kernel
leaves a direction to us: its receiver does not keep up, and the kernel has no
bound for what waits.  Then it is relayed as ever, with TCP's back-pressure, and
goes back when it is calm again.

    who relays a direction      sockmap_flow.py
    what the kernel does        bpf/sockmap.c

Why is no byte out of order?  We read only what the kernel has left to us, and
only when all that it took before has arrived in the other socket.  It takes a
direction back only if we have passed on all that it had left.

The FIN is ours to carry, and only when every byte before it has been handed on;
TCP's own counters are asked.  If they ever disagreed, the connection would end
with RST: a stream that is not whole must not look complete.
"""

import logging
import socket
from collections.abc import Callable
from typing import Final

from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.kernel import Joined, Kernel
from node_agent.relay.loop import ARENA_BYTES, ERR, HUP, IN, OUT, RDHUP, RelayLoop
from node_agent.relay.socket_pair import SocketPair
from node_agent.relay.sockmap_flow import CALM_READS, Mode, SockmapFlow

_log = logging.getLogger("ringfence.relay")

_SILENT: Final = -1
_DRAIN_S: Final = (0.001, 0.02)  # the kernel's queue is short: its worker only has to run


class SockmapPair(SocketPair[SockmapFlow]):
    """See ``SocketPair``."""

    __slots__ = ("_joined", "_kernel")

    def __init__(
        self,
        *,
        loop: RelayLoop,
        kernel: Kernel,
        first: socket.socket,
        second: socket.socket,
        on_done: Callable[[Outcome], None],
    ) -> None:
        super().__init__(
            loop=loop,
            first=first,
            second=second,
            on_done=on_done,
            up=SockmapFlow(first, second, source_broken=Ending.PLAIN_RESET, sink_broken=Ending.PEER_RESET),
            down=SockmapFlow(second, first, source_broken=Ending.PEER_RESET, sink_broken=Ending.PLAIN_RESET),
        )
        self._kernel = kernel
        self._joined: Joined | None = None

    @property
    def is_joined(self) -> bool:
        """Whether the kernel knows of it; it may be that it relays nothing of it now."""
        return self._joined is not None

    def start(self) -> None:
        """Hand both sockets to the loop; called once."""
        first_fd, second_fd = self._first.fileno(), self._second.fileno()
        self._loop.adopt(second_fd, IN, lambda event: self._serve(event, second_fd, self._down, self._up))
        self._loop.adopt(first_fd, IN, lambda event: self._serve(event, first_fd, self._up, self._down))

    # -- events -------------------------------------------------------------

    def _serve(self, event: int, fd: int, outgoing: SockmapFlow, incoming: SockmapFlow) -> None:
        """Obey an event of the socket that ``outgoing`` reads from and ``incoming`` writes to."""
        if incoming.held is not None and event & OUT:
            self._flush(incoming)
        if self._over:
            return
        mask = self._masks[fd]
        if mask != _SILENT and mask & IN:
            if event & ~OUT:
                self._pump(outgoing)
        elif event & ERR:
            self._abort(outgoing.source_broken)
        else:
            if outgoing.mode is Mode.KERNEL and event & (RDHUP | HUP):
                self._drain(outgoing)
            if event & HUP and not self._over:
                self._loop.silence(fd)
                self._masks[fd] = _SILENT
        if not self._over:
            self._update_interest()

    def _pump(self, flow: SockmapFlow) -> None:
        arena = self._loop.arena
        try:
            received = flow.source.recv_into(arena, flow.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            self._abort(flow.source_broken)
            return
        if not received:
            self._end_flow(flow)
            return
        flow.read(received, most_bytes=ARENA_BYTES)
        try:
            sent = flow.sink.send(arena[:received])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._abort(flow.sink_broken)
            return
        if sent < received:
            flow.held = self._loop.keep(arena[sent:received])
            flow.stalled()
        elif flow.calm_reads >= CALM_READS // 2:
            self._hand_over(flow)

    def _end_flow(self, flow: SockmapFlow) -> None:
        """The sender has ended its direction."""
        try:
            if not flow.is_drained():
                # We can hear of the end before the program has seen what came with it: only now it has.
                self._drain(flow)
                return
            if not flow.is_whole():
                _log.error("bytes are missing at the end of a connection that the kernel relayed: it is reset")
                self._abort(flow.source_broken)
                return
        except OSError:
            self._abort(flow.source_broken)
            return
        flow.ended = True
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._abort(flow.sink_broken)

    # -- to the kernel and back -----------------------------------------------------

    def _hand_over(self, flow: SockmapFlow) -> None:
        """Let the kernel relay, if this is a connection of small messages."""
        if flow.is_joined:
            if flow.is_calm and not flow.give_back():
                flow.put_off()
            return
        up, down = self._up, self._down
        if self._joined is not None or up.calm_reads + down.calm_reads < CALM_READS:
            return  # this direction was ended when the other one was joined; or it has only begun
        if up.ended or down.ended or up.held is not None or down.held is not None:
            return
        joined = self._kernel.join(
            self._first, self._second, tell=(lambda: self._demoted(self._up), lambda: self._demoted(self._down))
        )
        if joined is None:
            up.put_off()
            down.put_off()
            return
        self._joined = joined
        if joined.up is not None:
            up.join(joined.up)
        if joined.down is not None:
            down.join(joined.down)

    def _demoted(self, flow: SockmapFlow) -> None:
        """The kernel says that it has left a direction to us: maybe once too often, it says so in two ways."""
        if not self._over and flow.is_demoted:
            self._drain(flow)
            if not self._over:
                self._update_interest()

    def _drain(self, flow: SockmapFlow) -> None:
        flow.drain()
        self._look_if_drained(flow, _DRAIN_S[0])

    def _look_if_drained(self, flow: SockmapFlow, again_s: float) -> None:
        if self._over:
            return
        try:
            is_drained = flow.is_drained()
        except OSError:
            self._abort(flow.sink_broken)
            return
        if is_drained:
            flow.mode = Mode.USER
            self._update_interest()
        else:
            self._loop.call_later(again_s, lambda: self._look_if_drained(flow, min(again_s * 2, _DRAIN_S[1])))

    # -- what to wait for, and the end ------------------------------------------------

    def _update_interest(self) -> None:
        if self._up.ended and self._down.ended:
            self._complete()
            return
        for sock, outgoing, incoming in (
            (self._first, self._up, self._down),
            (self._second, self._down, self._up),
        ):
            fd = sock.fileno()
            mask = OUT if incoming.held is not None else 0
            if outgoing.mode is Mode.KERNEL:
                mask |= RDHUP  # with IN every packet would wake us
            elif outgoing.mode is Mode.USER and not outgoing.ended and outgoing.held is None:
                mask |= IN
            if mask != self._masks[fd] and (mask or self._masks[fd] != _SILENT):
                self._masks[fd] = mask
                self._loop.interest(fd, mask)

    def _report(self, ending: Ending) -> None:
        """Both sockets are closed: what the kernel has counted is final."""
        self._up.leave()
        self._down.leave()
        if self._joined is not None:
            self._joined.leave()
        super()._report(ending)
