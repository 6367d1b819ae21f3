"""The tunnel's frames: what two agents say to each other inside TLS.

Sans-I/O.  The protocol is specified in docs/tunnel-protocol.md; a frame is

    +--------+----------------+=================+
    | type 1 | length 3, big- | length bytes of |
    | byte   | endian         | payload         |
    +--------+----------------+=================+

and one connection at a time uses a tunnel (many use a shared one: stream_frames.py):

    source        OPEN ->                 DATA* EOF|RESET ->
    destination         <- VERDICT        <- DATA* EOF|RESET
                 idle   opening   open                      idle (after both EOFs)

The relay parses DATA headers itself, in place (relay/frame_reader.py);
what is here is the rest: control payloads, their limits and their checks.  It lies
beside model.py because both tunnel/ and relay/ speak it.
"""

import functools
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from ca.wire import WireError, pack, unpack
from node_agent import usual_open
from node_agent.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from node_agent.model import ObjectName, OriginalDestination, PeerAddress

HEADER: Final = struct.Struct(">I")
HEADER_BYTES: Final = HEADER.size
LENGTH_MASK: Final = 0xFFFFFF
TYPE_SHIFT: Final = 24

MAX_DATA_BYTES: Final = 256 * 1024 - HEADER_BYTES  # with its header, exactly sixteen full TLS records
ALPN: Final = "ringfence/1"
MAX_CONTROL_BYTES: Final = 16 * 1024  # OPEN with two 253-byte names and a trace context is under 1 KiB
_MAX_POLICY_CHARS: Final = 512  # namespace/name: 63 and 253 characters by Kubernetes' rules
_POLICY_NAME: Final = re.compile(r"[a-z0-9.-]+/[a-z0-9.-]+")
_DENIED: Final = str(CloseReason.POLICY_DENIED)
_TCP: Final = "tcp"
_TLS: Final = "tls"
_MAX_TIMEOUT_MS: Final = 3_600_000  # an hour is more than anybody waits for a program


class FrameType(IntEnum):
    """The first byte of a frame."""

    OPEN = 1
    VERDICT = 2
    DATA = 3
    EOF = 4
    RESET = 5
    SHARE = 9
    ATTACH = 10


EOF_FRAME: Final = HEADER.pack(FrameType.EOF << TYPE_SHIFT)
RESET_FRAME: Final = HEADER.pack(FrameType.RESET << TYPE_SHIFT)
CUTS: Final = frozenset(
    {
        CloseReason.DRAINED,
        CloseReason.WORKLOAD_REMOVED,
        CloseReason.IDENTITY_REVOKED,
        CloseReason.TRUST_REMOVED,
        CloseReason.IDLE_TIMEOUT,
        CloseReason.LIFETIME_EXCEEDED,
        CloseReason.STALLED_WRITE,
        CloseReason.FAULT_INJECTED,
    }
)
"""Why an agent ends a connection that was running; the other agent's record then says the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """One more such reason: AuthorizationPolicies allow it no longer.

    ``policy`` (namespace/name) denies it; None when no ALLOW policy matches.
    """

    policy: str | None


CutReason = CloseReason | Denied


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How an application is asked whether it is alive: does it accept a connection, and, ``tls``, shake hands?"""

    tls: bool
    timeout_s: float


class Outside(NamedTuple):
    """A service outside of the mesh: ``kind`` is Service or ServiceEntry."""

    kind: str
    service: ObjectName
    port: int


class Open(NamedTuple):
    """The source asks for a connection: to whom, for whom; or, with ``check``, only whether there could be one.

    ``outside``: the tunnel leads to an egress pod, and ``destination`` is an
    address of this service, which it is to connect to.  ``connect_timeout_s``:
    how long the application may take to accept, if the source wants it otherwise
    than the destination's agent does.
    """

    destination: OriginalDestination
    source: PeerAddress
    workload: ObjectName
    trace_parent: str = ""
    check: Check | None = None
    outside: Outside | None = None
    connect_timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The destination's answer, before any application byte.

    ``reason`` is ``CloseReason.OK`` when the application accepted the
    connection, otherwise why not; ``detail`` is for people.  ``policy``: with
    ``POLICY_DENIED``, which policy, if it was one.  ``is_check``: it answers a
    check, and there is no connection.
    """

    reason: CloseReason
    detail: str = ""
    policy: str | None = None
    is_check: bool = False


def encode_open(message: Open) -> bytes:
    """Return the OPEN frame."""
    destination, source, workload, trace_parent, *others = message
    if others == _NO_OTHERS and source.port >= usual_open.LOWEST_PORT:
        before, after = usual_open.wording(destination, source.ip, workload)
        return _frame(FrameType.OPEN, usual_open.joined(before, source.port, after, trace_parent))
    fields: dict[str, object] = {
        "dst": list(message.destination),
        "src": list(message.source),
        "ns": message.workload.namespace,
        "name": message.workload.name,
        "trace": message.trace_parent,
    }
    if message.outside is not None:
        kind, (namespace, name), port = message.outside
        fields["outside"] = [kind, namespace, name, port]
    if message.check is not None:
        fields["check"] = [_TLS if message.check.tls else _TCP, _milliseconds(message.check.timeout_s)]
    if message.connect_timeout_s is not None:
        fields["connect"] = _milliseconds(message.connect_timeout_s)
    return _control(FrameType.OPEN, fields)


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), _MAX_TIMEOUT_MS)


def encode_verdict(message: Verdict) -> bytes:
    """Return the VERDICT frame."""
    fields: dict[str, object] = {"reason": str(message.reason), "detail": message.detail[:1024]}
    if message.policy is not None:
        fields["policy"] = message.policy[:_MAX_POLICY_CHARS]
    if message.is_check:
        fields["check"] = True
    return _control(FrameType.VERDICT, fields)


def encode_reset(reason: CutReason | None) -> bytes:
    """Return the RESET frame; ``reason`` is told if it is one of an agent, not of an application."""
    if isinstance(reason, Denied):
        return _reset_frame(" ".join((_DENIED, reason.policy or "")).strip().encode())
    return RESET_FRAME if reason not in CUTS else _reset_frame(str(reason).encode())


def _reset_frame(payload: bytes) -> bytes:
    return HEADER.pack(FrameType.RESET << TYPE_SHIFT | len(payload)) + payload


def decode_reset(payload: bytes) -> CutReason | None:
    """Why the peer agent cut; None for a reset by the application, or for a reason that we do not know."""
    word, _, policy = payload.decode(errors="replace").partition(" ")
    if word == _DENIED:
        return Denied(policy=_policy_name(policy))
    return next((reason for reason in CUTS if reason.encode() == payload), None)


def _control(kind: FrameType, fields: Mapping[str, object]) -> bytes:
    return _frame(kind, pack(fields))


def _frame(kind: FrameType, payload: bytes) -> bytes:
    if len(payload) > MAX_CONTROL_BYTES:
        raise LocalProtocolError(f"{kind.name} of {len(payload)} bytes is over {MAX_CONTROL_BYTES}")
    return HEADER.pack(kind << TYPE_SHIFT | len(payload)) + payload


_NO_OTHERS: Final = [None, None, None]  # neither a check nor outside, and no timeout
_SOME_PORT: Final = 65535
_ACCEPTED: Final = Verdict(reason=CloseReason.OK)
_ACCEPTED_PAYLOAD: Final = encode_verdict(_ACCEPTED)[HEADER_BYTES:]


def parse_control_header(header: bytes, *expected: FrameType) -> tuple[FrameType, int]:
    """Return the type and the payload length of a control frame, which is of an ``expected`` type."""
    (word,) = HEADER.unpack(header)
    number: int = word >> TYPE_SHIFT
    if number not in expected:
        raise RemoteProtocolError(f"expected {expected[0].name}, got a frame of type {number}")
    kind = FrameType(number)
    length: int = word & LENGTH_MASK
    if length > MAX_CONTROL_BYTES:
        raise RemoteProtocolError(f"{kind.name} of {length} bytes is over {MAX_CONTROL_BYTES}")
    return kind, length


def decode_open(payload: bytes) -> Open:
    """Read an OPEN payload; raises RemoteProtocolError whatever the bytes.

    The connections of a program differ in the source's port and in the trace:
    the rest is decoded once, and remembered by its bytes.
    """
    wording = usual_open.split(payload)
    if wording is not None:
        before, port, after, trace_parent = wording
        known = _spoken(before, after)
        if known is not None and port:
            destination, source_ip, workload = known
            return Open(destination, PeerAddress(source_ip, port), workload, trace_parent)
    return decode_any_open(payload)


@functools.lru_cache(maxsize=usual_open.MOST_REMEMBERED)
def _spoken(before: bytes, after: bytes) -> tuple[OriginalDestination, str, ObjectName] | None:
    """What a wording says, by an OPEN that has it and was decoded in full; None if it is not what we would write.

    So what is put together with it are the port and the trace parent, whatever they are.
    """
    try:
        destination, source, workload, *_ = decode_any_open(usual_open.joined(before, _SOME_PORT, after, ""))
    except RemoteProtocolError:
        return None
    ours = usual_open.wording(destination, source.ip, workload)
    return (destination, source.ip, workload) if ours == (before, after) else None


def decode_any_open(payload: bytes) -> Open:
    """The same, every byte of it looked at."""
    fields = _fields(payload, "OPEN")
    return Open(
        destination=OriginalDestination(*_address(fields, "dst")),
        source=PeerAddress(*_address(fields, "src")),
        workload=ObjectName(_text(fields, "ns", 253), _text(fields, "name", 253)),
        trace_parent=_text(fields, "trace", 128),
        check=_check(fields),
        outside=_outside(fields),
        connect_timeout_s=_connect_timeout_s(fields),
    )


def decode_verdict(payload: bytes) -> Verdict:
    """Read a VERDICT payload; raises RemoteProtocolError whatever the bytes.

    A reason that this version does not know is a refusal for an unknown
    reason, never an acceptance.
    """
    if payload == _ACCEPTED_PAYLOAD:
        return _ACCEPTED  # nearly always: what OPEN asks for is granted, in words that are always the same
    fields = _fields(payload, "VERDICT")
    reason = _text(fields, "reason", 64)
    detail = _text(fields, "detail", 1024)
    policy = _policy_name(_text(fields, "policy", _MAX_POLICY_CHARS))
    is_check = fields.get("check", False) is True
    try:
        return Verdict(reason=CloseReason(reason), detail=detail, policy=policy, is_check=is_check)
    except ValueError:
        return Verdict(reason=CloseReason.CONNECT_FAILED, detail=f"{reason}: {detail}", is_check=is_check)


def _policy_name(text: str) -> str | None:
    """What a peer says is a policy's name, if it could be one: it goes into records."""
    return text if _POLICY_NAME.fullmatch(text) else None


def _fields(payload: bytes, what: str) -> Mapping[object, object]:
    try:
        fields = unpack(payload, MAX_CONTROL_BYTES)
    except WireError as error:
        raise RemoteProtocolError(f"{what}: {error}") from error
    if not isinstance(fields, dict):
        raise RemoteProtocolError(f"{what}: expected a map")
    return fields


def _text(fields: Mapping[object, object], key: str, most: int) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str) or len(value) > most:
        raise RemoteProtocolError(f"{key}: expected a text of at most {most} characters")
    return value


def _address(fields: Mapping[object, object], key: str) -> tuple[str, int]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) != 2:
        raise RemoteProtocolError(f"{key}: expected [ip, port]")
    ip, port = value
    if not isinstance(ip, str) or len(ip) > 45 or type(port) is not int or not 0 < port < 65536:
        raise RemoteProtocolError(f"{key}: expected [ip, port]")
    return ip, port


def _outside(fields: Mapping[object, object]) -> Outside | None:
    value = fields.get("outside")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise RemoteProtocolError("outside: expected [kind, namespace, name, port]")
    *texts, port = value
    if any(not isinstance(each, str) or not 0 < len(each) <= 253 for each in texts):
        raise RemoteProtocolError("outside: expected texts of at most 253 characters")
    if type(port) is not int or not 0 < port < 65536:
        raise RemoteProtocolError("outside: expected a port")
    return Outside(texts[0], ObjectName(texts[1], texts[2]), port)


def _check(fields: Mapping[object, object]) -> Check | None:
    value = fields.get("check")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise RemoteProtocolError("check: expected [kind, milliseconds]")
    kind, milliseconds = value
    if kind not in (_TCP, _TLS) or type(milliseconds) is not int or not 0 < milliseconds <= _MAX_TIMEOUT_MS:
        raise RemoteProtocolError("check: expected [kind, milliseconds]")
    return Check(tls=kind == _TLS, timeout_s=milliseconds / 1000)


def _connect_timeout_s(fields: Mapping[object, object]) -> float | None:
    value = fields.get("connect")
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= _MAX_TIMEOUT_MS:
        raise RemoteProtocolError("connect: expected milliseconds")
    return value / 1000
