"""The Workload API served in this process, and a gRPC client that can also misbehave.

Identities are real SVIDs of a real authority, handed out by a stand-in for the
task that talks to it; trust, pods' namespaces and processes are the real thing,
or a function that the test gives.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import trio
from spiffe._proto import workload_pb2 as real

from ca.errors import CaError, CaUnreachable
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from ca.trust import JwtKey, Trust, TrustBundle
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Credentials
from node_agent.identity.credentials import make_credentials
from node_agent.identity.trust import TrustStore
from node_agent.model import ObjectName, Workload
from node_agent.telemetry.metrics import Metrics
from node_agent.workload_api.endpoint import WorkloadApi
from node_agent.workload_api.process import PeerProcess
from tests.authority_builder import TRUST_DOMAIN, Authority, workload

WEB: Final = workload("web")
HEADERS: Final = (
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def pod(uid: str = "uid-1", *, identity: SpiffeId = WEB, labels: dict[str, str] | None = None) -> Workload:
    return Workload(
        uid=uid,
        name=ObjectName("default", "web"),
        service_account="web",
        node="node-1",
        addresses=("10.247.1.5",),
        identity=identity,
        enrolled=True,
        labels=labels or {},
    )


class Identities:
    """What the Workload API needs of ``node_agent.identity.Identities``, without a CA to ask."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._current: dict[SpiffeId, Credentials] = {}
        self.on_rotated: list[Callable[[SpiffeId], None]] = []
        self.asked: list[tuple[SpiffeId, tuple[str, ...]]] = []
        self.token: Callable[[SpiffeId, tuple[str, ...]], str] | None = None
        self.error: CaError = CaUnreachable("the CA is away")
        self.gate = trio.Event()
        self.gate.set()

    def issue(self, identity: SpiffeId = WEB) -> KeyAndChain:
        own = self._authority.credentials(identity)
        self._current[identity] = make_credentials(
            identity=identity, own=own, roots=self._authority.hierarchy.roots, at=datetime.now(UTC), ring=1
        )
        self._announce(identity)
        return own

    def drop(self, identity: SpiffeId = WEB) -> None:
        del self._current[identity]
        self._announce(identity)

    def current(self, identity: SpiffeId) -> Credentials | None:
        return self._current.get(identity)

    async def wait_for(self, identity: SpiffeId) -> Credentials:
        found = self._current.get(identity)
        if found is None:
            raise ConnectionFailure(CloseReason.IDENTITY_UNAVAILABLE, f"{identity}: the CA has not answered yet")
        return found

    async def sign_jwt(self, identity: SpiffeId, audience: tuple[str, ...]) -> str:
        self.asked.append((identity, audience))
        await self.gate.wait()
        if self.token is None:
            raise self.error
        return self.token(identity, audience)

    def _announce(self, identity: SpiffeId) -> None:
        for call in self.on_rotated:
            call(identity)


@dataclass(kw_only=True)
class Served:
    """One endpoint, and what the test may turn."""

    path: Path
    api: WorkloadApi
    identities: Identities
    trust: TrustStore
    metrics: Metrics
    process_of: dict[str, Any] = field(default_factory=dict)

    def take(
        self, *, federated: tuple[TrustBundle, ...] = (), jwt_keys: tuple[JwtKey, ...] = (), **others: Any
    ) -> None:
        """Put other trust in force."""
        own = self.trust.trust.own
        mine = TrustBundle(
            trust_domain=own.trust_domain,
            sequence=own.sequence + 1,
            refresh_hint_s=300.0,
            x509_der=own.x509_der,
            jwt_keys=jwt_keys,
        )
        self.trust.take(Trust(version=self.trust.version + 1, bundles=(mine, *federated), **others))


@asynccontextmanager
async def served(
    directory: Path, authority: Authority, workload_of: Callable[[PeerProcess], Workload | None]
) -> AsyncIterator[Served]:
    path = directory / "workload" / "api.sock"
    identities = Identities(authority)
    trust = TrustStore(trust_domain=TRUST_DOMAIN, roots=authority.hierarchy.roots)
    metrics = Metrics()
    api = WorkloadApi(
        path=path,
        identities=identities,  # type: ignore[arg-type]
        trust=trust,
        workload_of=workload_of,
        metrics=metrics,
        utc_now=lambda: datetime.now(UTC),
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.run)
            yield Served(path=path, api=api, identities=identities, trust=trust, metrics=metrics)
            nursery.cancel_scope.cancel()
    finally:
        api.close()


class Call:
    """One call as its client sees it."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](64)
        self.buffer = bytearray()
        self.headers: dict[str, str] = {}
        self.ended = trio.Event()

    async def message(self) -> bytes:
        """The next message; fails if the call ends instead."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise AssertionError(f"the call ended with {self.headers}") from None

    async def status(self) -> tuple[int, str]:
        """How it ended: the gRPC status and its text."""
        await self.ended.wait()
        return int(self.headers["grpc-status"]), self.headers.get("grpc-message", "")

    def take(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 5 and len(self.buffer) >= 5 + int.from_bytes(self.buffer[1:5], "big"):
            length = int.from_bytes(self.buffer[1:5], "big")
            self._send.send_nowait(bytes(self.buffer[5 : 5 + length]))
            del self.buffer[: 5 + length]

    def end(self) -> None:
        self.ended.set()
        self._send.close()


class Client:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.calls: dict[int, Call] = {}
        self.closed = trio.Event()
        self._sending = trio.Lock()
        self.makes_room = True  # for more, when data has come

    async def run(self) -> None:
        try:
            while data := await self.stream.receive_some(65536):
                for event in self.h2.receive_data(bytes(data)):
                    self._take(event)
                await self.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed.set()
            for call in self.calls.values():
                call.end()

    async def call(
        self,
        method: str,
        message: bytes = b"",
        *,
        metadata: bool = True,
        end: bool = True,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Call:
        """Start a call; ``headers`` replace those that a client sends, or (None-less) add some."""
        number = self.h2.get_next_available_stream_id()
        sent = {":path": f"/SpiffeWorkloadAPI/{method}"} | dict(HEADERS) | (headers or {})
        if metadata:
            sent["workload.spiffe.io"] = "true"
        call = self.calls[number] = Call()
        self.h2.send_headers(number, list(sent.items()))
        self.h2.send_data(
            number, b"\0" + len(message).to_bytes(4, "big") + message if body is None else body, end_stream=end
        )
        await self.flush()
        return call

    async def flush(self) -> None:
        async with self._sending:
            await self.stream.send_all(self.h2.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self.calls[event.stream_id].headers |= {str(k): str(v) for k, v in event.headers}
            case h2.events.DataReceived():
                self.calls[event.stream_id].take(event.data)
                if self.makes_room:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded() | h2.events.StreamReset():
                self.calls[event.stream_id].end()
            case _:
                pass


@asynccontextmanager
async def client(path: Path) -> AsyncIterator[Client]:
    stream = await trio.open_unix_socket(os.fspath(path))
    try:
        async with trio.open_nursery() as nursery:
            made = Client(stream)
            await made.flush()
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        stream.socket.close()


def jwt_request(*audience: str, spiffe_id: str = "") -> bytes:
    encoded: bytes = real.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id).SerializeToString()
    return encoded


def validate_request(token: str, audience: str) -> bytes:
    encoded: bytes = real.ValidateJWTSVIDRequest(audience=audience, svid=token).SerializeToString()
    return encoded
