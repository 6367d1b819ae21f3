"""The source's shared tunnels: those that carry many connections at a time, by key.

A key has as few of them as its connections need.  While one is being dialled
the others wait for it: a storm of connections shakes hands once, not once for
each.  What moves the bytes of a shared tunnel is given from outside
(``Carriers``: relay/ is no business of ours).
"""

import os
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ssl import SSLSocket
from typing import Final, Protocol

import trio

from node_agent.errors import CloseReason, ConnectionFailure, RemoteProtocolError
from node_agent.frames import Verdict, decode_verdict
from node_agent.stream_frames import SHARED_ALPN, TOKEN_BYTES, encode_share
from node_agent.tunnel.dial import PEER_DOES_NOT_ANSWER
from node_agent.tunnel.habits import Habits
from node_agent.tunnel.tunnel import Tunnel, TunnelLost

_MAX_STREAMS: Final = 100  # in one tunnel; as HTTP/2 recommends (RFC 9113 section 6.5.2)
_IDLE_S: Final = 240.0  # as for other tunnels
_ASK_AGAIN_S: Final = 300.0  # whether a peer that did not share has learned to


class Stream(Protocol):
    """One connection in a shared tunnel."""

    @property
    def stream_id(self) -> int: ...

    @property
    def is_carrying(self) -> bool: ...

    @property
    def has_moved(self) -> bool: ...

    def forget(self) -> None: ...

    def cut(self, reason: None) -> None: ...

    def move(self, own: SSLSocket) -> None: ...

    def may_ask_again(self) -> None: ...


class Carrier(Protocol):
    """A shared tunnel, as its streams are moved."""

    @property
    def streams(self) -> Collection[object]: ...

    @property
    def opened_count(self) -> int: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def fault(self) -> str | None: ...

    async def ask(self, payload: bytes, timeout_s: float) -> tuple[Stream, bytes | None]: ...

    def close(self, *, reset: bool = False) -> None: ...


class Carriers(Protocol):
    """What moves the bytes: the relay."""

    def share(self, tunnel: SSLSocket, *, on_end: Callable[[], None]) -> Carrier: ...


@dataclass(slots=True, eq=False, kw_only=True)
class Shared:
    """A shared tunnel: ``tunnel`` says who is at its ends, ``token`` names it in ATTACH; the rest is for the sweep."""

    key: Hashable
    tunnel: Tunnel
    carrier: Carrier
    token: bytes
    seen: int = -1
    used_at: float = 0.0

    def has_room(self) -> bool:
        """Whether it may have one stream more."""
        carrier = self.carrier
        return not carrier.is_over and len(carrier.streams) < _MAX_STREAMS and datetime.now(UTC) < self.tunnel.not_after


@dataclass(slots=True, eq=False, kw_only=True)
class SharedConnection:
    """A connection to ``port`` that the destination has accepted, in a shared tunnel.

    ``own`` is the tunnel that it was given, when it had wished for one.
    """

    shared: Shared
    stream: Stream
    port: int
    own: Tunnel | None = None
    has_wished: bool = False

    @property
    def tunnel(self) -> Tunnel:
        """Who is at the ends."""
        return self.shared.tunnel


@dataclass(slots=True, eq=False)
class _Waiter:
    woken: trio.Event = field(default_factory=trio.Event)
    failure: ConnectionFailure | None = None


@dataclass(slots=True, eq=False)
class _Slot:
    tunnels: list[Shared] = field(default_factory=list)
    current: Shared | None = None
    is_dialling: bool = False
    waiters: deque[_Waiter] = field(default_factory=deque)
    unshared_until: float = 0.0
    habits: Habits = field(default_factory=Habits)
    is_spread: bool = False


class SharedTunnels:
    """Owns the shared tunnels until ``close``."""

    def __init__(self, carriers: Carriers) -> None:
        self._carriers = carriers
        self._slots: dict[Hashable, _Slot] = {}
        self._retired: list[Shared] = []

    @property
    def idle_count(self) -> int:
        return sum(not shared.carrier.streams for shared in self._all())

    @property
    def busy_count(self) -> int:
        return sum(bool(shared.carrier.streams) for shared in self._all())

    @property
    def count(self) -> int:
        return len(self._all())

    @property
    def connection_count(self) -> int:
        return sum(len(shared.carrier.streams) for shared in self._all())

    @property
    def dialling_count(self) -> int:
        return sum(slot.is_dialling for slot in self._slots.values())

    @property
    def waiting_count(self) -> int:
        return sum(len(slot.waiters) for slot in self._slots.values())

    def _all(self) -> list[Shared]:
        return [shared for slot in self._slots.values() for shared in slot.tunnels] + self._retired

    # -- for connections ------------------------------------------------------

    def may_share(self, key: Hashable, port: int) -> bool:
        """Whether a connection to ``port`` is to begin in a shared tunnel; asked once for each."""
        slot = self._slots.get(key)
        return slot is None or slot.habits.may_share(port)

    def opened(self, key: Hashable, port: int) -> None:
        """One has begun so."""
        slot = self._slots.get(key)
        if slot is not None:
            slot.habits.opened(port)

    def wished(self, key: Hashable, port: int) -> None:
        """One of those wants a tunnel of its own; told once for each."""
        slot = self._slots.get(key)
        if slot is not None:
            slot.habits.moved(port)

    def is_spread(self, key: Hashable) -> bool:
        """Whether a tunnel for one of its connections has to say so when it is dialled (label.py)."""
        slot = self._slots.get(key)
        return slot is not None and slot.is_spread

    def was_missed(self, key: Hashable) -> None:
        """A tunnel for one of its connections came to where that is not known: to another process of the peer agent."""
        slot = self._slots.get(key)
        if slot is not None:
            slot.is_spread = True

    def find(self, key: Hashable) -> Shared | None:
        """A tunnel with room."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        current = slot.current
        if current is None or not current.has_room():
            current = slot.current = next((shared for shared in slot.tunnels if shared.has_room()), None)
        return current

    async def acquire(
        self, key: Hashable, dial: Callable[[], Awaitable[Tunnel]], keep: Callable[[Tunnel], None]
    ) -> Shared | None:
        """Return a tunnel with room, or None if the peer does not share.

        ``dial`` is called by one of those who wait; a tunnel that can not be shared goes to ``keep``.  Raises
        ConnectionFailure.
        """
        while True:
            found = self.find(key)
            slot = self._slots.setdefault(key, _Slot())
            if found is not None:
                if slot.waiters and not slot.is_dialling:
                    self._wake(slot, 1)  # there may be room for it, too; or it finds none, and dials
                return found
            if trio.current_time() < slot.unshared_until:
                return None
            if slot.is_dialling:
                await self._wait(slot)
            elif (made := await self._dial(key, slot, dial, keep)) is not None:
                return made  # even if a certificate ends this very moment: to dial again and again would not help

    async def ask(self, shared: Shared, payload: bytes, timeout_s: float) -> tuple[Stream, Verdict]:
        """Open a stream; raises TunnelLost, RemoteProtocolError, trio.TooSlowError (the stream is cut then)."""
        stream, answer = await shared.carrier.ask(payload, timeout_s)
        if answer is None:
            if shared.carrier.fault is not None:
                raise RemoteProtocolError(shared.carrier.fault)
            raise TunnelLost("the shared tunnel ended before its verdict")
        try:
            verdict = decode_verdict(answer)
        except BaseException:
            stream.cut(None)
            raise
        if verdict.reason is not CloseReason.OK:
            stream.forget()
        return stream, verdict

    async def _wait(self, slot: _Slot) -> None:
        waiter = _Waiter()
        slot.waiters.append(waiter)
        try:
            await waiter.woken.wait()
        except BaseException:
            if waiter.woken.is_set():
                self._wake(slot, 1)  # it was our turn
            else:
                slot.waiters.remove(waiter)
            raise
        if waiter.failure is not None:
            raise ConnectionFailure(waiter.failure.reason, waiter.failure.detail)

    def _wake(self, slot: _Slot, most: int, failure: ConnectionFailure | None = None) -> None:
        for _ in range(min(most, len(slot.waiters))):
            waiter = slot.waiters.popleft()
            waiter.failure = failure
            waiter.woken.set()

    async def _dial(
        self, key: Hashable, slot: _Slot, dial: Callable[[], Awaitable[Tunnel]], keep: Callable[[Tunnel], None]
    ) -> Shared | None:
        slot.is_dialling = True
        to_wake = 1
        failure: ConnectionFailure | None = None
        try:
            tunnel = await dial()
            if tunnel.protocol == SHARED_ALPN:
                shared = slot.current = await self._share(key, slot, tunnel)
                to_wake = _MAX_STREAMS  # one of them is ours; the last finds it full, and dials the next
                return shared
            slot.unshared_until = trio.current_time() + _ASK_AGAIN_S
            to_wake = len(slot.waiters)
            keep(tunnel)
        except ConnectionFailure as failed:
            if failed.reason in PEER_DOES_NOT_ANSWER:
                failure = failed  # found out once, not by every waiter in its turn
                to_wake = len(slot.waiters)
            raise
        finally:
            slot.is_dialling = False
            self._wake(slot, to_wake, failure)
        return None

    async def _share(self, key: Hashable, slot: _Slot, tunnel: Tunnel) -> Shared:
        token = os.urandom(TOKEN_BYTES)
        try:
            await tunnel.send(encode_share(token))
        except BaseException:
            tunnel.close()
            raise

        def ended() -> None:
            for tunnels in (slot.tunnels, self._retired):
                if shared in tunnels:
                    tunnels.remove(shared)
            if slot.current is shared:
                slot.current = None

        carrier = self._carriers.share(tunnel.lend(), on_end=ended)
        shared = Shared(key=key, tunnel=tunnel, carrier=carrier, token=token)
        slot.tunnels.append(shared)
        return shared

    # -- for who looks after them -----------------------------------------------

    def sweep(self, now: float, at: datetime) -> None:
        """Close what was idle for too long, and what is used no more and has no connection left."""
        for shared in list(self._retired):
            if not shared.carrier.streams:
                shared.carrier.close()
        for key, slot in list(self._slots.items()):
            for shared in list(slot.tunnels):
                if shared.carrier.streams or shared.carrier.opened_count != shared.seen:
                    shared.seen = shared.carrier.opened_count
                    shared.used_at = now
                if at >= shared.tunnel.not_after or now - shared.used_at >= _IDLE_S:
                    self._retire(slot, shared)
            if not (slot.tunnels or slot.is_dialling or slot.waiters or now < slot.unshared_until):
                del self._slots[key]

    def drop(self, unwanted: Callable[[Hashable, Tunnel], bool], *, reset: bool = False) -> None:
        """Have no more connections in the tunnels that ``unwanted`` names, and close them when they have none.

        ``reset``: close them now, by RST.
        """
        for key, slot in list(self._slots.items()):
            for shared in list(slot.tunnels):
                if unwanted(key, shared.tunnel):
                    self._retire(slot, shared, reset=reset)
        for shared in list(self._retired) if reset else ():
            if unwanted(shared.key, shared.tunnel):
                shared.carrier.close(reset=True)

    def retire(self, key: Hashable, shared: Shared) -> None:
        """Have no more connections in a tunnel, and close it when it has none."""
        slot = self._slots.get(key)
        if slot is not None and shared in slot.tunnels:
            self._retire(slot, shared)

    def _retire(self, slot: _Slot, shared: Shared, *, reset: bool = False) -> None:
        slot.tunnels.remove(shared)
        if slot.current is shared:
            slot.current = None
        self._retired.append(shared)
        if reset or not shared.carrier.streams:
            shared.carrier.close(reset=reset)

    def close(self) -> None:
        """Close all of them, and end what is left in them."""
        for shared in self._all():
            shared.carrier.close()
