"""The wording of an OPEN as nearly all are: five fields, the source's port in two bytes, no outside, no check.

Sans-I/O.  The payload (docs/tunnel-protocol.md) is then

    before | port, 2 bytes, big-endian | after | trace parent, a msgpack text

and the connections of one program to one place have ``before`` and ``after`` in
common.  ``wording`` makes them, once; ``split`` finds them, without a look at
what they say: only what equals a ``wording`` is one.
"""

import functools
import re
from typing import Final

from ca.wire import pack
from node_agent.model import ObjectName, OriginalDestination

MOST_REMEMBERED: Final = 256  # wordings, of about a kilobyte each, however long the names in them
LOWEST_PORT: Final = 256  # msgpack has a shorter form for those below
_NO_TEXT: Final = pack("")

_PARTS: Final = re.compile(
    rb"(\x85\xa3dst\x92.[0-9a-f.:]{2,45}+(?:\xcd..|[^\xcd])\xa3src\x92.[0-9a-f.:]{2,45}+\xcd)"
    rb"(..)"
    rb"(\xa2ns(?:\xd9.|.)[a-z0-9.-]{0,253}+\xa4name(?:\xd9.|.)[a-z0-9.-]{0,253}+\xa5trace)"
    rb"(?:\xa0|\xd9\x37([0-9a-f-]{55}))",
    re.DOTALL,
)


@functools.lru_cache(maxsize=MOST_REMEMBERED)
def wording(destination: OriginalDestination, source_ip: str, workload: ObjectName) -> tuple[bytes, bytes]:
    """What stands before and after the source's port, up to the value of the last field, the trace parent."""
    before = (b"\x85", pack("dst"), pack(destination), pack("src"), b"\x92", pack(source_ip), b"\xcd")
    after = (pack("ns"), pack(workload.namespace), pack("name"), pack(workload.name), pack("trace"))
    return b"".join(before), b"".join(after)


def joined(before: bytes, port: int, after: bytes, trace_parent: str) -> bytes:
    """The payload; ``port`` is at least ``LOWEST_PORT``."""
    return before + port.to_bytes(2) + after + (pack(trace_parent) if trace_parent else _NO_TEXT)


def split(payload: bytes) -> tuple[bytes, int, bytes, str] | None:
    """What ``joined`` has put together, if ``before`` and ``after`` are a ``wording``; None if they can not be."""
    parts = _PARTS.fullmatch(payload)
    if parts is None:
        return None
    before, port, after, trace_parent = parts.groups(b"")
    return before, int.from_bytes(port), after, trace_parent.decode()
