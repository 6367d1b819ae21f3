"""What the agent's parent process and its workers tell each other.

Sans-I/O.  One frame (``ca.wire``) is ``{"type": name, "body": fields}``; the
body is what ``codec`` makes of the class of that name.  Some messages go with file descriptors, in the
order that the class says.  Everything is in order: what was sent first is in
force first, so an answer to a question says that all before it has been taken in.

    parent to worker                       worker to parent
    Start (once, first)
    RegistryPart ... (the last one is
      applied: the state, then increments)
    TrustChanged, SvidIssued, SvidGone
    StateComplete (once)              -->  Ready
    ServePod, PodChanged              -->  PodServed
    EndPod                            -->  PodClosed
    IdentityAnswered                  <--  IdentityAsked
    tunnels of other workers               the same (tunnel_messages.py)
    Question                          -->  Answer ... (parts, the last one says so)
    LogLevel, StartProfile, CutAll, RefreshLogs
    Drain                             -->  Answer (the last figures), then its end

Private keys travel in ``SvidIssued``: over a socket pair that has no name,
between two processes of one user, never to a file.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ca import fields
from ca.errors import WireError
from ca.manifests import EndpointSlice, ObjectKey
from ca.spiffe import SpiffeId
from ca.trust import Trust
from ca.wire import FrameDecoder, Limits, encode_frame, pack, unpack
from node_agent.config import Config
from node_agent.errors import CloseReason
from node_agent.model import Workload
from node_agent.registry.changes import RegistryObject
from node_agent.workers import codec, tunnel_messages

_LIMITS: Final = Limits(
    # An object never spans frames, and may be as long as a manifest file, 64 MiB; msgpack is shorter than YAML.
    frame_bytes=128 * 1024 * 1024,
    array_items=16 * 1024 * 1024,
    map_items=2,
)
_OBJECTS_A_PART: Final = 500  # 50 to 100 KB, a few milliseconds to read


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Who you are, one of how many.

    With three descriptors: the locks that keep lines of several processes apart
    (telemetry/logs.py), and the counts that all workers share (ledger.py).
    """

    worker: int
    workers: int
    run: str  # RUN.N: the agent's start, and which start of a worker this is
    config: Config
    log_level: str
    log_modules: Mapping[str, str] = field(default_factory=dict)
    trust: bytes  # pack_trust


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPart:
    """A piece of one registry update; ``is_last`` asks to apply all pieces since the last one, in one step."""

    upserts: tuple[RegistryObject, ...] = ()
    deletes: tuple[ObjectKey, ...] = ()
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustChanged:
    """Other roots or revocations are in force (``pack_trust``)."""

    trust: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SvidIssued:
    """An identity's key (PKCS #8, DER) and chain (DER, leaf first)."""

    identity: SpiffeId
    key_der: bytes
    chain_der: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SvidGone:
    """It has expired, or nobody on the node has that identity any more."""

    identity: SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class StateComplete:
    """Registry, trust and identities are all there: say ``Ready``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePod:
    """Accept for a pod.  With its namespace, and so many listeners, in the order of ``Listeners.in_order``."""

    workload: Workload
    listeners: int
    capture: str  # the mode


@dataclass(frozen=True, slots=True, kw_only=True)
class PodChanged:
    """Labels or readiness of a pod that is served; uid, identity and addresses never change."""

    workload: Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPod:
    """Cut a pod's connections and let go of it."""

    uid: str
    reason: CloseReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityAnswered:
    """``reason`` and ``detail`` say why there is none; ``reason`` is None if it has just been sent."""

    number: int
    reason: CloseReason | None
    detail: str


class Topic(StrEnum):
    """What the parent asks its workers for."""

    COUNTS = "counts"
    CONNECTIONS = "connections"
    LOADS = "loads"
    RECENT = "recent"
    ARCHIVE = "archive"
    METRICS = "metrics"
    PROFILE = "profile"
    STACKS = "stacks"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Asked when an operator or Prometheus asks."""

    number: int
    topic: Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLevel:
    """What is logged from now on; ``modules``: those that have a level of their own."""

    level: str
    modules: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProfile:
    """Sample your own threads for so long (telemetry/debugging)."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshLogs:
    """Follow the files that were renamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Accept nothing more, and end when the last connection has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutAll:
    """Cut every connection that is left."""

    reason: CloseReason
    detail: str


ToWorker = (
    Start
    | RegistryPart
    | TrustChanged
    | SvidIssued
    | SvidGone
    | StateComplete
    | ServePod
    | PodChanged
    | EndPod
    | IdentityAnswered
    | Question
    | LogLevel
    | RefreshLogs
    | StartProfile
    | Drain
    | CutAll
    | tunnel_messages.TakeTunnel
    | tunnel_messages.PassedOn
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """All of the first state is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodServed:
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodClosed:
    """Nothing of ours is left in that pod."""

    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityAsked:
    """A connection waits for this identity."""

    number: int
    identity: SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How much there is of something now, or since the start."""

    name: str
    value: int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRow:
    """One live connection as ``ringfence connections`` shows it, but for the worker; or one access record."""

    cells: Mapping[str, str | int | float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRow:
    """Some access records, as ``telemetry.archive`` keeps them."""

    records: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """What a worker's balancer knows of one endpoint; see ``EndpointLoad``."""

    ip: str
    port: int
    uid: str
    open_connections: int
    latency_s: float | None
    health: str
    why: str | None
    ejected_for_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One number of a family; see ``telemetry.metrics.Sample``."""

    values: tuple[str, ...]
    value: int | float
    suffix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRow:
    """A metric's name and kind, and some of its samples."""

    name: str
    kind: str
    help_text: str
    labels: tuple[str, ...]
    merge: str
    samples: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugRow:
    """What ``telemetry.debugging`` says of the process, as JSON; with the counts: a problem that it has."""

    text: str


AnswerRow = Count | LiveRow | BlockRow | LoadRow | FamilyRow | DebugRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Rows that answer a question; ``number`` 0 are the last figures, which nobody asked for."""

    number: int
    rows: tuple[AnswerRow, ...]
    is_last: bool


ToParent = (
    Ready
    | PodServed
    | PodClosed
    | IdentityAsked
    | Answer
    | tunnel_messages.TunnelShared
    | tunnel_messages.SharedTunnelEnded
    | tunnel_messages.PassOn
    | tunnel_messages.Taken
)
Message = ToWorker | ToParent


def encode_message(message: Message) -> bytes:
    """Return the frame of a message."""
    name, body = codec.encode(Message, message)
    return encode_frame({"type": name, "body": body}, max_frame_bytes=_LIMITS.frame_bytes)


class MessageDecoder:
    """Collects bytes and gives back the messages in them; ``kind`` is ``ToWorker`` or ``ToParent``."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._frames = FrameDecoder(limits=_LIMITS)

    def feed(self, data: bytes | bytearray) -> list[Any]:
        """Return the messages that ``data`` completes; raises WireError."""
        return [self._message(frame) for frame in self._frames.feed(data)]

    def _message(self, frame: Mapping[str, Any]) -> Any:
        if frame.keys() != {"type", "body"}:
            raise WireError(f"a frame with the fields {', '.join(frame)}")
        return codec.decode_any(self._kind, [frame["type"], frame["body"]])


def pack_trust(trust: Trust) -> bytes:
    """What ``Start`` and ``TrustChanged`` carry."""
    return pack(trust.to_wire())


def unpack_trust(data: bytes) -> Trust:
    """Read it; raises WireError."""
    return Trust.from_wire(fields.mapping(unpack(data, _LIMITS.frame_bytes), "trust"))


def registry_parts(upserts: Iterable[RegistryObject], deletes: Iterable[ObjectKey]) -> Iterator[RegistryPart]:
    """Cut one registry update into messages of a bearable size; at least one."""
    gone = tuple(deletes)
    batch: list[RegistryObject] = []
    weight = 0
    for each in upserts:
        batch.append(each)
        weight += 1 + (len(each.endpoints) if isinstance(each, EndpointSlice) else 0)
        if weight >= _OBJECTS_A_PART:
            yield RegistryPart(upserts=tuple(batch), is_last=False)
            batch.clear()
            weight = 0
    yield RegistryPart(upserts=tuple(batch), deletes=gone, is_last=True)
