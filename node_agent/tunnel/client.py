"""The source's end: get a tunnel to an endpoint, ask for a connection, hear the verdict."""

import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import outcome
import trio

from ca.spiffe import SpiffeId
from node_agent.config import TUNNEL_PORT
from node_agent.errors import CloseReason, ConnectionFailure, PolicyDenied
from node_agent.frames import RESET_FRAME, FrameType, Open, Verdict, decode_verdict, encode_open
from node_agent.tunnel.connect import connect
from node_agent.tunnel.pool import DIAL, WAIT, Answer, Grant, TunnelPool
from node_agent.tunnel.tunnel import Tunnel, TunnelLost, Verify, require_protocol, shake_hands

_MAX_DIALS_A_KEY: Final = 32
_MAX_IDLE_A_KEY: Final = 512
_IDLE_S: Final = 240.0  # shorter than the server's, so that the side that would use a tunnel is the one that closes it
_SWEEP_S: Final = 10.0
_VERDICT_GRACE_S: Final = 2.0  # beyond the destination's own connect timeout
_HELD_S: Final = 1.0  # programs accept in milliseconds; one that is late hears of the connection twice
CONNECTED: Final = "ringfence.tunnel.connected"
PROVEN: Final = "ringfence.tunnel.proven"
ASKED: Final = "ringfence.tunnel.asked"
"""Phases of a connection's way into a tunnel; the first two only if none was idle."""
_PEER_DOES_NOT_ANSWER: Final = frozenset({CloseReason.PEER_UNAVAILABLE, CloseReason.HANDSHAKE_TIMEOUT})


class TunnelKey(NamedTuple):
    """Connections with an equal key may follow each other in one tunnel.

    The source workload is part of it (its sockets live in its namespace, and
    the tunnel's source address vouches for the workload's), and so is the
    identity that the endpoint proved: a new pod with an old address has
    another key.
    """

    source_uid: str
    source: SpiffeId
    endpoint_ip: str
    expected: SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialler:
    """What a dial needs from the story; called only if there is no idle tunnel.

    ``make_socket`` returns an unconnected socket in the source's namespace,
    ``context`` presents the source's SVID ``serial``, which is valid until ``not_after``.
    ``connect_timeout_s`` and ``handshake_timeout_s`` count instead of the client's own.
    ``reached`` is told of the phases below, if somebody wants to know.
    """

    make_socket: Callable[[str], socket.socket]
    context: ssl.SSLContext
    not_after: datetime
    serial: int = 0
    connect_timeout_s: float | None = None
    handshake_timeout_s: float | None = None
    reached: Callable[[str], None] | None = None


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
    ) -> None:
        """``verify`` judges who answered; ``fault`` explains a TLS error; ``on_handshake`` gets the seconds of each."""
        self._connect_timeout_s = connect_timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        self._verify = verify
        self._fault = fault
        self._on_handshake = on_handshake
        self._pool: _Pool = TunnelPool(max_dials=_MAX_DIALS_A_KEY, max_idle=_MAX_IDLE_A_KEY, idle_s=_IDLE_S)
        self.busy_count = 0

    @property
    def idle_count(self) -> int:
        return self._pool.idle_count

    @property
    def dialling_count(self) -> int:
        return self._pool.dial_count

    @property
    def waiting_count(self) -> int:
        return self._pool.waiter_count

    async def run(self) -> None:
        """Close idle tunnels in time, and those whose peer has gone; never returns."""
        while True:
            await trio.sleep(_SWEEP_S)
            self._sweep(trio.current_time(), datetime.now(UTC))

    def _sweep(self, now: float, at: datetime) -> None:
        stale = self._pool.expire(now)
        stale += self._pool.drop(lambda _, tunnel: at >= tunnel.not_after or not tunnel.is_quiet())
        for tunnel in stale:
            tunnel.close()

    def forget(self, source_uid: str) -> None:
        """End the idle tunnels of a source workload that is gone."""
        for tunnel in self._pool.drop(lambda key, _: isinstance(key, TunnelKey) and key.source_uid == source_uid):
            tunnel.abort()

    def end_idle(self, unwanted: Callable[[TunnelKey, Tunnel], bool]) -> None:
        """Close the idle tunnels that ``unwanted`` names."""
        for tunnel in self._pool.drop(lambda key, tunnel: isinstance(key, TunnelKey) and unwanted(key, tunnel)):
            tunnel.close()

    def close(self) -> None:
        for tunnel in self._pool.drop(lambda _, __: True):
            tunnel.close()

    async def open(self, key: TunnelKey, message: Open, dialler: Dialler) -> Tunnel:
        """Return a tunnel on which the destination has accepted the connection.

        Raises ConnectionFailure: with the destination's reason when it
        refused, with ours when there is no way to it.  Until the verdict no
        application byte has left, so the caller may try another endpoint.
        """
        tunnel, verdict = await self._ask(key, message, dialler)
        if verdict.reason is CloseReason.OK:
            return tunnel
        self.release(key, tunnel)
        detail = verdict.detail or "refused by the destination's agent"
        if verdict.reason is CloseReason.POLICY_DENIED:
            raise PolicyDenied(detail, policy=verdict.policy)
        raise ConnectionFailure(verdict.reason, detail)

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
        frame = encode_open(message)
        timeout_s = (dialler.connect_timeout_s or self._connect_timeout_s) + _VERDICT_GRACE_S
        was_held = False
        while True:
            tunnel, fresh = await self._acquire(key, dialler)
            if was_held and tunnel.may_be_held:
                tunnel.close()  # once is enough waiting
                continue
            self.busy_count += 1
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
        raise ConnectionFailure(CloseReason.VERDICT_TIMEOUT, "the peer agent gave no verdict in time")

    def release(self, key: TunnelKey, tunnel: Tunnel) -> None:
        """Give back a tunnel whose connection is complete; it may be used at once by somebody who waits."""
        self.busy_count -= 1
        self._put(key, tunnel)

    def discard(self, tunnel: Tunnel) -> None:
        """Close a tunnel that can not be used again."""
        self.busy_count -= 1
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

    async def _acquire(self, key: TunnelKey, dialler: Dialler) -> tuple[Tunnel, bool]:
        """Return a tunnel and whether it is fresh."""
        while True:
            got: Tunnel | Answer | None = self._pool.acquire(key, trio.lowlevel.current_task())
            if got is WAIT:
                got = await self._wait(key)
            if got is DIAL or got is None:
                return await self._dial(key, dialler), True
            assert isinstance(got, Tunnel)
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

    async def _dial(self, key: TunnelKey, dialler: Dialler) -> Tunnel:
        began = trio.current_time()
        try:
            tunnel = await self._connect(key, dialler)
        except ConnectionFailure as failure:
            if failure.reason in _PEER_DOES_NOT_ANSWER:
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

    async def _connect(self, key: TunnelKey, dialler: Dialler) -> Tunnel:
        connect_timeout_s = dialler.connect_timeout_s or self._connect_timeout_s
        handshake_timeout_s = dialler.handshake_timeout_s or self._handshake_timeout_s
        sock = dialler.make_socket(key.endpoint_ip)
        try:
            await connect(sock, key.endpoint_ip, TUNNEL_PORT, timeout_s=connect_timeout_s)
        except ConnectionFailure as failure:
            sock.close()
            raise ConnectionFailure(CloseReason.PEER_UNAVAILABLE, failure.detail) from failure
        except BaseException:
            sock.close()
            raise
        owned: socket.socket = sock
        try:
            if dialler.reached is not None:
                dialler.reached(CONNECTED)
            began = trio.current_time()
            # An agent that ends has reset us by now; ``wrap_socket`` would raise that too, and leave a socket behind.
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))
            owned = tls = dialler.context.wrap_socket(sock, do_handshake_on_connect=False, suppress_ragged_eofs=False)
            with trio.fail_after(handshake_timeout_s):
                await shake_hands(tls)
            self._on_handshake(trio.current_time() - began)
            tunnel = self._checked(tls, key, dialler)
            if dialler.reached is not None:
                dialler.reached(PROVEN)
            return tunnel
        except trio.TooSlowError as error:
            owned.close()
            raise ConnectionFailure(
                CloseReason.HANDSHAKE_TIMEOUT,
                f"no TLS handshake with {key.endpoint_ip} within {handshake_timeout_s:g} s",
            ) from error
        except OSError as error:
            owned.close()
            raise self._fault(error) from error
        except BaseException:
            owned.close()
            raise

    def _checked(self, tls: ssl.SSLSocket, key: TunnelKey, dialler: Dialler) -> Tunnel:
        """Judge who answered; raises ConnectionFailure."""
        peer = self._verify(tls, datetime.now(UTC))
        require_protocol(tls)
        if peer.identity != key.expected:
            raise ConnectionFailure(
                CloseReason.IDENTITY_MISMATCH, f"{key.endpoint_ip} must be {key.expected} but proved {peer.identity}"
            )
        return Tunnel(
            tls,
            peer=peer,
            peer_ip=key.endpoint_ip,
            not_after=min(peer.not_after, dialler.not_after),
            fault=self._fault,
            own_serial=dialler.serial,
        )
