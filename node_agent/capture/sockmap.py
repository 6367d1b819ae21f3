"""Connections that the kernel relays: the maps of bpf/sockmap.c, and their records in memory (docs/bpf.md).

One agent a node writes them: whose ring it is, is locked.  Everything here is
called between two events of the relay loop, by one thread.  Sockets are put
into the maps by ``KernelSockmap.join`` and by nothing else; the kernel takes
them out when they are closed, also when the agent is killed.
"""

import fcntl
import logging
import mmap
import os
import socket
import struct
import termios
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bpf import syscalls
from bpf.abi import abi
from bpf.errors import BpfError
from bpf.pins import Pins, State, open_state
from bpf.plan import SOCKMAP, hook
from bpf.ring import Ring
from node_agent.capture.kernel_flow import COOKIE, FLOW_WORDS, KernelFlow, bytes_received, bytes_written
from node_agent.capture.pinned import open_maps
from node_agent.capture.plain_sockets import NotPlaintextError, PlainSockets

_log = logging.getLogger("ringfence.sockmap")

_MAPS: Final = ("sockmap_sources", "sockmap_sinks", "sockmap_slots", "sockmap_flows", "sockmap_demotions")
_SO_COOKIE: Final = 57
_FD: Final = struct.Struct("=Q")
_SLOT: Final = struct.Struct("=I")
_DEMOTION: Final = struct.Struct("=QII")
_RING_BATCH: Final = 256
_NO_LOW_WATER_MARK: Final = 0x7FFFFFFF
_REASONS: Final = {
    abi().constants["SOCKMAP_BACKLOG"]: "backlog",
    abi().constants["SOCKMAP_NO_SINK"]: "closed",
}


def open_sockmap(root: Path, stack: ExitStack) -> tuple["KernelSockmap | None", str]:
    """What ``ringfence bpf load`` has pinned, or None and why it can not be had; ``stack`` closes it."""
    try:
        found = KernelSockmap(root)
    except BpfError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{root}: its maps can not be used: {error.strerror}"
    stack.callback(found.close)
    return found, ""


class Joined:
    """Two sockets that the kernel relays between; a direction is None if its sender had ended it before.

    The caller calls ``leave`` once both sockets are closed.
    """

    __slots__ = ("_sockmap", "down", "up")

    def __init__(self, sockmap: "KernelSockmap", up: KernelFlow | None, down: KernelFlow | None) -> None:
        self._sockmap = sockmap
        self.up = up
        self.down = down

    def leave(self) -> None:
        """Forget both directions; their counters are gone."""
        self._sockmap.leave(self)


class KernelSockmap:
    """The pinned program and maps of one node; owns their descriptors until ``close``."""

    def __init__(self, root: Path) -> None:
        """Raises BpfError (UnsupportedError where the feature is off), or OSError."""
        pins = Pins(root)
        self._maps = open_maps(pins, _MAPS, feature=SOCKMAP)
        self._lock = -1
        try:
            self._lock = _lock(pins)
            _attach(pins, self._maps["sockmap_sources"].fd)
            flows, demotions = self._maps["sockmap_flows"], self._maps["sockmap_demotions"]
            size = flows.info.max_entries * flows.info.value_bytes
            self._memory = mmap.mmap(flows.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._ring = Ring(demotions.fd, size_bytes=demotions.info.max_entries)
        except BaseException:
            self._close_descriptors()
            raise
        self.ring_fd = demotions.fd  # readable when a direction became ours
        self._words = memoryview(self._memory).cast("Q")
        self._free = list(range(flows.info.max_entries - 1, -1, -1))
        self._flows: dict[int, KernelFlow] = {}
        self._tell: dict[int, Callable[[], None]] = {}
        self.pairs = 0
        self.taken = 0
        self.full = 0
        self.demotions: Counter[str] = Counter(dict.fromkeys(_REASONS.values(), 0))
        for key in list(self._maps["sockmap_slots"]):  # of an agent that was killed
            self._maps["sockmap_slots"].delete(key)
        for _ in self._ring.read(_DEMOTION, most=_RING_BATCH):
            pass

    def close(self) -> None:
        """Close our descriptors; every pair must have ended before, unless everything ends."""
        for each in self._flows.values():
            each.release()
        self._words.release()
        self._memory.close()
        self._ring.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for each in self._maps.values():
            each.close()
        if self._lock >= 0:
            os.close(self._lock)

    @property
    def is_used(self) -> bool:
        """Whether any connection is joined."""
        return bool(self._flows)

    @property
    def directions(self) -> int:
        """How many are relayed by the kernel now."""
        return sum(not each.is_demoted for each in self._flows.values())

    def join(
        self, first: socket.socket, second: socket.socket, *, tell: tuple[Callable[[], None], Callable[[], None]]
    ) -> Joined | None:
        """Let the kernel relay between two sockets of which every byte that was read has been passed on.

        None if that can not be now: no room, something has just arrived or ended.  Sockets that are not plain are
        refused, and it is logged: that is a bug.
        ``tell`` are called, for up and down, when the kernel leaves a direction to
        the caller, who then asks the flow.
        """
        if len(self._free) < 2:
            self.full += 1
            return None
        try:
            return self._join(PlainSockets(first, second), tell)
        except NotPlaintextError:
            _log.exception("refused to relay in the kernel; this is a bug")
            return None
        except OSError:
            return None  # one of them has ended: the caller hears of it

    def _join(self, sockets: PlainSockets, tell: tuple[Callable[[], None], Callable[[], None]]) -> Joined | None:
        received = (_received_if_all_was_read(sockets.first), _received_if_all_was_read(sockets.second))
        if received[0] is None or received[1] is None:
            return None
        flows: list[KernelFlow] = []
        try:
            for source, sink, before, told in (
                (sockets.first, sockets.second, received[0], tell[0]),
                (sockets.second, sockets.first, received[1], tell[1]),
            ):
                flows.append(self._flow(source, sink, before, told))
            # Sinks first: what arrived for a socket that is not there yet would be nobody's.
            for each in flows:
                each.sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NO_LOW_WATER_MARK)
                self._maps["sockmap_slots"].put(each.key, _SLOT.pack(each.slot))
                self._maps["sockmap_sinks"].put(each.key, _FD.pack(each.sink.fileno()))
        except OSError:
            for each in flows:
                self._maps["sockmap_sinks"].delete(each.key)
            self._forget(flows)
            return None
        self.pairs += 1
        return Joined(self, self._take(flows[0]), self._take(flows[1]))

    def leave(self, joined: Joined) -> None:
        """See ``Joined.leave``."""
        self.pairs -= 1
        self._forget(each for each in (joined.up, joined.down) if each is not None)

    def _flow(
        self, source: socket.socket, sink: socket.socket, received_before: int, tell: Callable[[], None]
    ) -> KernelFlow:
        """A record of one direction; nothing goes by it yet."""
        key, written_before = source.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, COOKIE.size), bytes_written(sink)
        slot = self._free.pop()
        at = slot * FLOW_WORDS
        flow = KernelFlow(
            words=self._words[at : at + FLOW_WORDS],
            slot=slot,
            key=key,
            source=source,
            sink=sink,
            received_before=received_before,
            written_before=written_before,
        )
        self._flows[slot] = flow
        self._tell[slot] = tell
        return flow

    def _take(self, flow: KernelFlow) -> KernelFlow | None:
        """From here on the program is called for what arrives; None if the sender has ended this direction."""
        try:
            self._maps["sockmap_sources"].put(flow.key, _FD.pack(flow.source.fileno()))
        except OSError:  # EOPNOTSUPP: not ESTABLISHED any more
            self._forget((flow,))
            return None
        # What arrived before is waiting for the next packet; setting this lets the kernel look again (tcp(7)).
        flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self.taken += 1
        return flow

    def _forget(self, flows: Iterable[KernelFlow]) -> None:
        """Give the slots back; the sockets are out of the maps, or were never in ``sockmap_sources``."""
        for each in flows:
            self._maps["sockmap_slots"].delete(each.key)
            del self._flows[each.slot], self._tell[each.slot]
            self._free.append(each.slot)
            each.release()

    def read_ring(self, _event: int) -> None:
        """Tell whose directions the kernel has left to us."""
        for batch in self._ring.read(_DEMOTION, most=_RING_BATCH):
            for cookie, slot, reason in batch:
                flow = self._flows.get(slot)
                if flow is not None and flow.cookie == cookie:
                    self.demotions[_REASONS.get(reason, "closed")] += 1
                    self._tell[slot]()

    def look(self) -> None:
        """The same, without the ring: it may have had no room, or two at a time have written to it."""
        for slot, flow in list(self._flows.items()):
            if flow.is_demoted:
                self._tell[slot]()


def _lock(pins: Pins) -> int:
    """Two agents would take each other's entries out of the ring."""
    fd = os.open(pins.links, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BpfError(
            f"{pins.root}: another agent relays in the kernel by these maps; give each its own [capture] pins"
        ) from error
    return fd


def _attach(pins: Pins, sources: int) -> None:
    state = open_state(pins)
    if state is None:
        raise BpfError(f"{pins.root}: nothing is loaded; run `ringfence bpf load` before the agent")
    try:
        slot = State.read(state).active_slot
    finally:
        state.close()
    program = syscalls.open_pin(pins.program(slot, "sockmap_verdict"))
    try:
        syscalls.attach_to_map(sources, program=program, attach_type=hook("sockmap").attach_type)
    finally:
        os.close(program)


def _received_if_all_was_read(sock: socket.socket) -> int | None:
    """How much a socket has received; None if there is something to read.

    What is there in part would be handed on in whole.
    """
    received = bytes_received(sock)
    (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    return received if not waiting and bytes_received(sock) == received else None
