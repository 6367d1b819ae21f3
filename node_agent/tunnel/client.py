"""The source's end: get a tunnel to an endpoint, ask for a connection, hear the verdict."""

from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Final

import outcome
import trio

from node_agent.errors import CloseReason, ConnectionFailure, PolicyDenied
from node_agent.frames import HEADER_BYTES, RESET_FRAME, FrameType, Open, Verdict, decode_verdict, encode_open
from node_agent.stream_frames import encode_attach
from node_agent.tunnel.dial import ASKED, PEER_DOES_NOT_ANSWER, Dialler, Dials, TunnelKey
from node_agent.tunnel.label import label_of
from node_agent.tunnel.pool import DIAL, WAIT, Answer, Grant, TunnelPool
from node_agent.tunnel.shared import Carriers, SharedConnection, SharedTunnels
from node_agent.tunnel.tunnel import Tunnel, TunnelLost, Verify

_MAX_DIALS_A_KEY: Final = 32
_MAX_IDLE_A_KEY: Final = 512
_IDLE_S: Final = 240.0  # shorter than the server's, so that the side that would use a tunnel is the one that closes it
_SWEEP_S: Final = 10.0
_VERDICT_GRACE_S: Final = 2.0  # beyond the destination's own connect timeout
_MOVE_AGAIN_S: Final = 10.0  # after a connection could have no tunnel of its own
_HELD_S: Final = 1.0  # programs accept in milliseconds; one that is late hears of the connection twice

_Pool = TunnelPool[Tunnel, trio.lowlevel.Task]


class TunnelClient:
    """Owns the idle tunnels; a tunnel returned by ``open`` is the caller's until ``release`` or its close."""

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        handshake_timeout_s: float,
        verify: Verify,
        fault: Callable[[OSError], ConnectionFailure],
        on_handshake: Callable[[float], None] = lambda _: None,
        carriers: Carriers | None = None,
    ) -> None:
        """``verify`` judges who answered; ``fault`` explains a TLS error; ``on_handshake`` gets the seconds of each.

        ``carriers`` move the bytes of shared tunnels; without them each connection has a tunnel to itself.
        """
        self._connect_timeout_s = connect_timeout_s
        self._dials = Dials(
            connect_timeout_s=connect_timeout_s,
            handshake_timeout_s=handshake_timeout_s,
            verify=verify,
            fault=fault,
            on_handshake=on_handshake,
        )
        self._pool: _Pool = TunnelPool(max_dials=_MAX_DIALS_A_KEY, max_idle=_MAX_IDLE_A_KEY, idle_s=_IDLE_S)
        self._shared = None if carriers is None else SharedTunnels(carriers)
        self._movers: trio.Nursery | None = None
        self._busy = 0
        self.moved_count = 0  # connections that left a shared tunnel for one of their own
        self.unmoved_count = 0  # that wanted to, and could not

    @property
    def busy_count(self) -> int:
        return self._busy + (0 if self._shared is None else self._shared.busy_count)

    @property
    def idle_count(self) -> int:
        return self._pool.idle_count + (0 if self._shared is None else self._shared.idle_count)

    @property
    def dialling_count(self) -> int:
        return self._pool.dial_count + (0 if self._shared is None else self._shared.dialling_count)

    @property
    def waiting_count(self) -> int:
        return self._pool.waiter_count + (0 if self._shared is None else self._shared.waiting_count)

    @property
    def shared_count(self) -> int:
        """Tunnels that connections share, or may share."""
        return 0 if self._shared is None else self._shared.count

    @property
    def shared_connection_count(self) -> int:
        """Connections in those."""
        return 0 if self._shared is None else self._shared.connection_count

    async def run(self) -> None:
        """Close idle tunnels in time, and those whose peer has gone; give connections their own; never returns."""
        async with trio.open_nursery() as self._movers:
            while True:
                await trio.sleep(_SWEEP_S)
                self._sweep(trio.current_time(), datetime.now(UTC))

    def _sweep(self, now: float, at: datetime) -> None:
        if self._shared is not None:
            self._shared.sweep(now, at)
        stale = self._pool.expire(now)
        stale += self._pool.drop(lambda _, tunnel: at >= tunnel.not_after or not tunnel.is_quiet())
        for tunnel in stale:
            tunnel.close()

    def forget(self, source_uid: str) -> None:
        """End the idle tunnels of a source workload that is gone."""
        for tunnel in self._pool.drop(lambda key, _: isinstance(key, TunnelKey) and key.source_uid == source_uid):
            tunnel.abort()
        if self._shared is not None:
            self._shared.drop(lambda key, _: isinstance(key, TunnelKey) and key.source_uid == source_uid, reset=True)

    def end_idle(self, unwanted: Callable[[TunnelKey, Tunnel], bool]) -> None:
        """Close the idle tunnels that ``unwanted`` names, and have no more connections in the shared ones."""

        def is_unwanted(key: Hashable, tunnel: Tunnel) -> bool:
            return isinstance(key, TunnelKey) and unwanted(key, tunnel)

        for tunnel in self._pool.drop(is_unwanted):
            tunnel.close()
        if self._shared is not None:
            self._shared.drop(is_unwanted)

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()
        for tunnel in self._pool.drop(lambda _, __: True):
            tunnel.close()

    async def open(self, key: TunnelKey, message: Open, dialler: Dialler) -> Tunnel:
        """Return a tunnel on which the destination has accepted the connection.

        Raises ConnectionFailure: with the destination's reason when it
        refused, with ours when there is no way to it.  Until the verdict no
        application byte has left, so the caller may try another endpoint.
        """
        tunnel, verdict = await self._ask(key, message, dialler)
        if verdict.reason is not CloseReason.OK:
            self.release(key, tunnel)
            _require_accepted(verdict)
        return tunnel

    async def open_shared(self, key: TunnelKey, message: Open, dialler: Dialler) -> SharedConnection | None:
        """As ``open``, in a tunnel that others use as well; None if the peer does not share, or it had better not.

        The caller owns the connection's stream, which it cuts, or hands to the relay.
        """
        port = message.destination.port
        if self._shared is None or not self._shared.may_share(key, port):
            return None
        payload = encode_open(message)[HEADER_BYTES:]
        timeout_s = (dialler.connect_timeout_s or self._connect_timeout_s) + _VERDICT_GRACE_S

        async def dial() -> Tunnel:
            return await self._dials.dial(key, dialler)

        while True:
            shared = self._shared.find(key) or await self._shared.acquire(
                key, dial, lambda tunnel: self._put(key, tunnel)
            )
            if shared is None:
                return None
            is_fresh = not shared.carrier.opened_count
            if dialler.reached is not None:
                dialler.reached(ASKED)
            try:
                stream, verdict = await self._shared.ask(shared, payload, timeout_s)
            except TunnelLost:
                if is_fresh:
                    raise
                continue  # as in ``_ask``
            except trio.TooSlowError:
                # The link is cut, or the agent there hangs: the next one shall not wait for it.
                self._shared.retire(key, shared)
                raise _no_verdict() from None
            if verdict.reason is CloseReason.DRAINED:
                self._shared.retire(key, shared)
            _require_accepted(verdict)
            self._shared.opened(key, port)
            return SharedConnection(shared=shared, stream=stream, port=port)

    def distrust(self, key: TunnelKey, connection: SharedConnection) -> None:
        """Reset a connection whose shared tunnel turned out to be unwanted; the next one is dialled anew."""
        connection.stream.cut(None)
        if self._shared is not None:
            self._shared.retire(key, connection.shared)

    def give_own(
        self, connection: SharedConnection, key: TunnelKey, dialler: Dialler, *, admit: Callable[[Tunnel], None]
    ) -> None:
        """Let a connection move from its shared tunnel to one of its own, as soon as there is one.

        ``admit`` raises ConnectionFailure for a tunnel that it is not to have.  ``connection.own`` is then its
        caller's, as what ``open`` returns.
        """
        if self._shared is not None and not connection.has_wished:
            connection.has_wished = True
            self._shared.wished(key, connection.port)
        if self._movers is not None:
            self._movers.start_soon(self._move, connection, key, dialler, admit)

    async def _move(
        self, connection: SharedConnection, key: TunnelKey, dialler: Dialler, admit: Callable[[Tunnel], None]
    ) -> None:
        stream = connection.stream
        if await self._has_moved(connection, key, dialler, admit):
            self.moved_count += 1
        elif stream.is_carrying:
            self.unmoved_count += 1
            await trio.sleep(_MOVE_AGAIN_S)
            if stream.is_carrying:
                stream.may_ask_again()

    async def _has_moved(
        self, connection: SharedConnection, key: TunnelKey, dialler: Dialler, admit: Callable[[Tunnel], None]
    ) -> bool:
        stream = connection.stream
        try:
            own = await self._attach(connection, key, dialler)
        except (ConnectionFailure, OSError):
            return False
        if own is None:
            return False
        try:
            if stream.is_carrying:
                admit(own)
                connection.own = own
                stream.move(own.lend())
                return True
        except ConnectionFailure:
            pass  # what it stands on is judged where that changes (trust_gate.py)
        self.discard(own)
        return False

    async def _attach(self, connection: SharedConnection, key: TunnelKey, dialler: Dialler) -> Tunnel | None:
        """Return the tunnel in which the destination lets the connection go on; None if there is none.

        A destination with worker processes may have accepted the tunnel, idle or just dialled, in another one than
        has the connection.  From then on only one will do that was dialled with the label (label.py); before, nobody
        on the link is told what belongs together.
        """
        assert self._shared is not None
        stream = connection.stream
        frame = encode_attach(connection.shared.token, stream.stream_id)
        while True:
            label = label_of(connection.shared.token) if self._shared.is_spread(key) else None
            own, verdict = await self._ask_with(key, frame, dialler, label=label)
            if verdict.reason is CloseReason.OK:
                return own
            is_missed = verdict.reason is CloseReason.UNKNOWN_DESTINATION and stream.is_carrying
            if is_missed and label is not None:
                own.label = None  # it came elsewhere nevertheless, and is not to be tried again
            self.release(key, own)  # most often because the connection has ended there
            if not is_missed or label is not None:
                return None
            self._shared.was_missed(key)

    async def check(self, key: TunnelKey, message: Open, dialler: Dialler) -> Verdict:
        """Ask whether a connection would be accepted; raises ConnectionFailure if there is no way to the destination.

        ``message`` has a ``check``.  A destination that does not know what that is has opened a connection, and
        it is reset with its tunnel.
        """
        tunnel, verdict = await self._ask(key, message, dialler)
        if verdict.is_check or verdict.reason is not CloseReason.OK:
            self.release(key, tunnel)
        else:
            self.discard(tunnel)
        return verdict

    async def _ask(self, key: TunnelKey, message: Open, dialler: Dialler) -> tuple[Tunnel, Verdict]:
        """Hear a verdict; the tunnel is the caller's, and counted as busy."""
        return await self._ask_with(key, encode_open(message), dialler)

    async def _ask_with(
        self,
        key: TunnelKey,
        frame: bytes,
        dialler: Dialler,
        *,
        label: str | None = None,
    ) -> tuple[Tunnel, Verdict]:
        """``label``: the tunnel has to be one that was dialled with it."""
        timeout_s = (dialler.connect_timeout_s or self._connect_timeout_s) + _VERDICT_GRACE_S
        was_held = False
        while True:
            tunnel, fresh = await self._acquire(key, dialler, label)
            if was_held and tunnel.may_be_held:
                tunnel.close()  # once is enough waiting
                continue
            self._busy += 1
            try:
                if dialler.reached is not None:
                    dialler.reached(ASKED)
                patience_s = min(timeout_s, _HELD_S) if tunnel.may_be_held else timeout_s
                verdict = await self._exchange(tunnel, frame, patience_s)
            except TunnelLost:
                self.discard(tunnel)
                if not fresh:
                    continue  # it died while it was idle; nothing of this connection was decided on it
                raise
            except ConnectionFailure as failure:
                self.discard(tunnel)
                if failure.reason is CloseReason.VERDICT_TIMEOUT and tunnel.may_be_held:
                    was_held = True
                    continue  # our OPEN lies behind what the last connection's program does not read
                raise
            except BaseException:
                self.discard(tunnel)
                raise
            return tunnel, verdict

    async def _exchange(self, tunnel: Tunnel, frame: bytes, timeout_s: float) -> Verdict:
        with trio.CancelScope(deadline=trio.current_time() + timeout_s):
            await tunnel.send(frame)
            return decode_verdict(await tunnel.read_control(FrameType.VERDICT))
        raise _no_verdict()

    def release(self, key: TunnelKey, tunnel: Tunnel) -> None:
        """Give back a tunnel whose connection is complete; it may be used at once by somebody who waits."""
        self._busy -= 1
        self._put(key, tunnel)

    def discard(self, tunnel: Tunnel) -> None:
        """Close a tunnel that can not be used again."""
        self._busy -= 1
        tunnel.close()

    def _put(self, key: TunnelKey, tunnel: Tunnel) -> None:
        if tunnel.leftover not in (b"", RESET_FRAME):
            tunnel.close()  # a destination has nothing to say before the next OPEN
            return
        given = self._pool.release(key, tunnel, trio.current_time())
        if isinstance(given, Grant):
            trio.lowlevel.reschedule(given.waiter, outcome.Value(given.tunnel))
        elif given is not None:
            given.close()

    async def _acquire(self, key: TunnelKey, dialler: Dialler, label: str | None) -> tuple[Tunnel, bool]:
        """Return a tunnel and whether it is fresh."""
        suits = None if label is None else lambda tunnel: tunnel.label == label
        while True:
            got: Tunnel | Answer | None = self._pool.acquire(key, trio.lowlevel.current_task(), suits=suits)
            if got is WAIT:
                got = await self._wait(key)
            if got is DIAL or got is None:
                return await self._dial(key, dialler, label), True
            assert not isinstance(got, Answer)
            if datetime.now(UTC) < got.not_after:
                return got, False  # if its peer is gone we hear it instead of a verdict, and ``open`` tries the next
            got.close()

    async def _wait(self, key: TunnelKey) -> Tunnel | None:
        task = trio.lowlevel.current_task()

        def give_up(_: object) -> trio.lowlevel.Abort:
            # Granted in this very tick: the reschedule is already under way and must be taken.
            return trio.lowlevel.Abort.SUCCEEDED if self._pool.give_up(key, task) else trio.lowlevel.Abort.FAILED

        granted: Tunnel | None = await trio.lowlevel.wait_task_rescheduled(give_up)
        return granted

    async def _dial(self, key: TunnelKey, dialler: Dialler, label: str | None) -> Tunnel:
        began = trio.current_time()
        try:
            tunnel = await self._dials.dial(key, dialler, label)
        except ConnectionFailure as failure:
            if failure.reason in PEER_DOES_NOT_ANSWER:
                granted, hopeless = self._pool.dial_unanswered(key, since=began)
                for waiter in hopeless:
                    trio.lowlevel.reschedule(waiter, outcome.Error(ConnectionFailure(failure.reason, failure.detail)))
            else:
                granted = self._pool.dial_ended(key)
            self._let_dial(granted)
            raise
        except BaseException:
            self._let_dial(self._pool.dial_ended(key))
            raise
        self._let_dial(self._pool.dial_succeeded(key, trio.current_time()))
        return tunnel

    def _let_dial(self, granted: Grant[Tunnel, trio.lowlevel.Task] | None) -> None:
        if granted is not None:
            trio.lowlevel.reschedule(granted.waiter, outcome.Value(granted.tunnel))


def _no_verdict() -> ConnectionFailure:
    return ConnectionFailure(CloseReason.VERDICT_TIMEOUT, "the peer agent gave no verdict in time")


def _require_accepted(verdict: Verdict) -> None:
    """Raise ConnectionFailure with the destination's reason if it refused."""
    if verdict.reason is CloseReason.OK:
        return
    detail = verdict.detail or "refused by the destination's agent"
    if verdict.reason is CloseReason.POLICY_DENIED:
        raise PolicyDenied(detail, policy=verdict.policy)
    raise ConnectionFailure(verdict.reason, detail)
