"""The stories of connections that arrive in shared tunnels.

    hear SHARE > (hear OPEN > check > authorize > connect the application > verdict > relay > account)* at the same time

A stream is to its story what a tunnel of its own would be, but that it may get
one later: ATTACH, in another tunnel from the same peer.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from node_agent.drain import Drain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import HEADER_BYTES, Open, Verdict, encode_verdict
from node_agent.proxy.crew import Crew
from node_agent.proxy.elsewhere import Elsewhere
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Accepted, Pod
from node_agent.proxy.policy_gate import cut_failure, cut_reason
from node_agent.proxy.reception import ACCEPTED, CLOSE_REASONS, Reception, count, refusal, require_valid
from node_agent.proxy.trust_gate import TrustGate
from node_agent.relay import Ending, Relay, SharedTunnel, Stream
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Tunnel, label_of

_IDLE_S: Final = 300.0  # longer than the source's, so that the side that would use a tunnel is the one that closes it
_ACCEPTED: Final = ACCEPTED[HEADER_BYTES:]
_DRAINED: Final = encode_verdict(Verdict(reason=CloseReason.DRAINED, detail="the agent goes down"))[HEADER_BYTES:]
_NO_STREAM: Final = Verdict(reason=CloseReason.UNKNOWN_DESTINATION, detail="there is no such stream")


@dataclass(slots=True, kw_only=True, eq=False)
class _Accepted:
    """A shared tunnel of a pod, and the records of its streams."""

    tunnel: Tunnel
    carrier: SharedTunnel
    records: dict[int, ConnectionRecord] = field(default_factory=dict)


class SharedInbound:
    """Serves the shared tunnels of all pods."""

    def __init__(
        self,
        *,
        access_log: AccessLog,
        live: LiveConnections,
        drain: Drain,
        relay: Relay,
        gate: TrustGate,
        reception: Reception,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._access_log = access_log
        self._live = live
        self._drain = drain
        self._relay = relay
        self._gate = gate
        self._reception = reception
        self._elsewhere = elsewhere
        self._labels: set[tuple[str, str]] = set()  # of pods and shared tunnels; only with an ``elsewhere``
        self._accepted: dict[tuple[str, bytes], _Accepted] = {}
        self._lent: set[Stream] = set()  # who has a tunnel of its own, or is being told so

    async def serve(self, pod: Pod, tunnel: Tunnel, token: bytes) -> None:
        """Serve a tunnel that its source shares, and all its connections, until it ends.  Takes ``tunnel`` over.

        Raises ConnectionFailure if the peer breaks the protocol.
        """
        key = (pod.workload.uid, token)
        if key in self._accepted:
            raise ConnectionFailure(CloseReason.PROTOCOL_ERROR, "SHARE: another tunnel has this token")
        ended = trio.Event()
        carrier: SharedTunnel | None = None
        try:
            async with trio.open_nursery() as nursery:
                streams = Crew(nursery)

                def opened(stream: Stream, message: Open) -> None:
                    if carrier is None or carrier.refuses is not None:  # it was under way from the loop to us
                        stream.answer(_DRAINED, is_refusal=True)
                        return
                    streams.serve(partial(self._serve, pod, accepted, stream, message))

                carrier = self._relay.share(tunnel.lend(), on_open=opened, on_end=ended.set)
                accepted = self._accepted[key] = _Accepted(tunnel=tunnel, carrier=carrier)
                self._began(*key)
                try:
                    await self._until_idle(carrier, ended)
                finally:
                    carrier.refuses = _DRAINED
                    streams.dismiss()
        finally:
            if self._accepted.pop(key, None) is not None:
                self._ended(*key)
            if carrier is not None:
                carrier.close(reset=pod.gone.is_set())
        if carrier.fault is not None:
            raise ConnectionFailure(CloseReason.PROTOCOL_ERROR, carrier.fault)

    def _began(self, uid: str, token: bytes) -> None:
        if self._elsewhere is not None:
            label = label_of(token)
            self._labels.add((uid, label))
            self._elsewhere.began(uid, label)

    def _ended(self, uid: str, token: bytes) -> None:
        if self._elsewhere is not None:
            label = label_of(token)
            self._labels.discard((uid, label))
            self._elsewhere.ended(uid, label)

    def has(self, uid: str, label: str) -> bool:
        """Whether a shared tunnel of that pod is here; told only where it could be elsewhere."""
        return (uid, label) in self._labels

    async def _until_idle(self, carrier: SharedTunnel, ended: trio.Event) -> None:
        """Wait until the tunnel has ended, nobody has used it for long, or the agent goes down."""
        seen = -1
        while not (ended.is_set() or self._drain.begun.is_set()):
            if not carrier.streams and carrier.opened_count == seen:
                return
            seen = carrier.opened_count
            with self._drain.idle(_IDLE_S):
                await ended.wait()

    async def _serve(
        self, pod: Pod, accepted: _Accepted, stream: Stream, message: Open, scope: trio.CancelScope
    ) -> None:
        """Serve one connection; what cuts it cancels ``scope``."""
        is_answered = False
        record: ConnectionRecord | None = None
        try:
            with (
                self._access_log.connection("inbound", trace_parent=message.trace_parent) as record,
                self._live.track(record, pod.workload.uid, scope),
            ):
                try:
                    upstream = await self._reception.receive(pod, accepted.tunnel, message, record)
                except ConnectionFailure as failure:
                    record.failed(failure)
                    is_answered = True
                    stream.answer(refusal(record)[HEADER_BYTES:], is_refusal=True)
                    raise

                downstream = Accepted(upstream)
                with downstream:
                    is_answered = True
                    stream.answer(_ACCEPTED, is_refusal=False)
                    record.opened()
                    accepted.records[stream.stream_id] = record
                    try:
                        outcome = await self._relay.run_stream(
                            downstream.take(),
                            stream,
                            count(record, application_is_plain=True),
                            why=lambda: cut_reason(record),
                        )
                    finally:
                        del accepted.records[stream.stream_id]
                if outcome.ending is not Ending.COMPLETE:
                    record.failed(cut_failure(outcome.reason or CLOSE_REASONS[outcome.ending]))
        finally:
            if not is_answered and record is not None:  # cut before it had a verdict
                stream.answer(refusal(record)[HEADER_BYTES:], is_refusal=True)

    # -- a tunnel of its own for a stream ---------------------------------------

    async def lend(self, pod: Pod, tunnel: Tunnel, token: bytes, stream_id: int) -> bool:
        """Let a stream go on in ``tunnel``, to its end; False when the tunnel can not be used again.

        Raises ConnectionFailure when the tunnel is lost.
        """
        try:
            stream = self._find(pod, tunnel, token, stream_id)
        except ConnectionFailure as failure:
            await tunnel.send(encode_verdict(Verdict(reason=failure.reason, detail=failure.detail)))
            return True
        if stream is None:
            await tunnel.send(encode_verdict(_NO_STREAM))
            return True
        self._lent.add(stream)
        try:
            await tunnel.send(ACCEPTED)
            leftover = await self._relay.attached(stream, tunnel.lend())
        finally:
            self._lent.discard(stream)
        if leftover is None:
            return False
        tunnel.take_back(leftover)
        return True

    def _find(self, pod: Pod, tunnel: Tunnel, token: bytes, stream_id: int) -> Stream | None:
        """The stream that ``tunnel`` may carry on: of the same pod, for the same proven peer."""
        accepted = self._accepted.get((pod.workload.uid, token))
        if accepted is None:
            return None
        peer = accepted.tunnel.peer.identity, accepted.tunnel.peer_ip
        stream = accepted.carrier.streams.get(stream_id)
        record = accepted.records.get(stream_id)
        if peer != (tunnel.peer.identity, tunnel.peer_ip) or stream is None or record is None:
            return None
        if not stream.is_carrying or stream in self._lent:
            return None
        require_valid(tunnel)
        self._gate.admit_move(record, pod.workload.identity, tunnel)
        return stream
