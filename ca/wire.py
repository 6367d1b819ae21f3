"""Bytes to messages and back: msgpack and frames of it.  The only door to msgpack.

A frame is a 4-byte big-endian length and that many bytes of one msgpack map.
The length is judged before a byte of the body is kept.

msgpack is used as a strict subset, so that one value has one meaning
everywhere: nil, bool, int, finite float, UTF-8 text, bytes, arrays, and maps
whose keys are text and differ.  No extension types, no timestamps.

A decoder raises ``WireError`` and nothing else, whatever the bytes.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgpack

from ca.errors import WireError

__all__ = ["MAX_FRAME_BYTES", "FrameDecoder", "Limits", "WireError", "encode_frame", "pack", "unpack"]

MAX_FRAME_BYTES: Final = 1024 * 1024  # 500 identities in one SignWorkloads are ~300 KiB
_LENGTH_BYTES: Final = 4
_MAX_DEPTH: Final = 16  # our deepest message has 4 levels
# The C decoder allocates an array when it reads its header, before it has seen
# one element: these two bound what a few lying headers can make it allocate.
_MAX_ARRAY_ITEMS: Final = 4096
_MAX_MAP_ITEMS: Final = 256
_ARRAYS_WORTH: Final = 16  # a Trust with all that it may hold, our largest message, has ten full arrays' worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a decoder puts up with.  The defaults are for a peer on the network, who may be anybody."""

    frame_bytes: int = MAX_FRAME_BYTES
    array_items: int = _MAX_ARRAY_ITEMS
    map_items: int = _MAX_MAP_ITEMS

    @property
    def values(self) -> int:
        """How many items all arrays and maps of one message may have together.

        One byte can be a value, and a value costs Python 60 times as much: a
        frame full of empty arrays is not to become 60 MiB.
        """
        return _ARRAYS_WORTH * self.array_items


_NETWORK: Final = Limits()


def pack(value: object) -> bytes:
    """Encode one value; a type outside the subset is a bug of ours and raises TypeError."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | bytearray | memoryview, max_bytes: int, *, limits: Limits = _NETWORK) -> Any:
    """Decode exactly one value of at most ``max_bytes`` encoded bytes.

    Raises:
        WireError: too long, truncated, followed by more bytes, or outside the subset.
    """
    if len(data) > max_bytes:
        raise WireError(f"a message of {len(data)} bytes, more than the {max_bytes} allowed")
    budget = _Budget(limits.values)
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            object_pairs_hook=budget.map,
            list_hook=budget.array,
            ext_hook=_refuse_extension,
            max_array_len=limits.array_items,
            max_map_len=limits.map_items,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise WireError(f"not a well-formed msgpack value: {str(error) or type(error).__name__}") from error
    _require_subset(value, _MAX_DEPTH)
    return value


def encode_frame(message: dict[str, Any], *, max_frame_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """Encode one message with its length in front; too long a message is a bug of ours: ValueError."""
    body = pack(message)
    if len(body) > max_frame_bytes:
        raise ValueError(f"a message of {len(body)} bytes does not fit a frame of {max_frame_bytes}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameDecoder:
    """Collects bytes as they arrive and gives back the messages in them.

    Sans-I/O.  After it has raised, it raises the same on every further call:
    there is no way to find the next frame in a broken stream.
    """

    def __init__(self, *, max_frame_bytes: int | None = None, limits: Limits = _NETWORK) -> None:
        """``max_frame_bytes`` instead of the one in ``limits``."""
        self._max_frame_bytes = limits.frame_bytes if max_frame_bytes is None else max_frame_bytes
        self._limits = limits
        self._buffer = bytearray()
        self._error: WireError | None = None

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended; at end of file that means it was cut off."""
        return bool(self._buffer)

    @property
    def buffered_bytes(self) -> int:
        """How much of a frame that has not ended is kept."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[dict[str, Any]]:
        """Take the next bytes of the stream and return the messages that they complete.

        Raises:
            WireError: the stream is broken; messages completed by the same call are dropped with it.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        messages = []
        try:
            while (message := self._next()) is not None:
                messages.append(message)
        except WireError as error:
            self._error = error
            self._buffer.clear()
            raise
        return messages

    def _next(self) -> dict[str, Any] | None:
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if length > self._max_frame_bytes:
            raise WireError(f"a frame of {length} bytes, more than the {self._max_frame_bytes} allowed")
        end = _LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        message = unpack(bytes(self._buffer[_LENGTH_BYTES:end]), self._max_frame_bytes, limits=self._limits)
        del self._buffer[:end]
        if not isinstance(message, dict):
            raise WireError(f"a frame holds a {type(message).__name__}, not a map")
        return message


class _Budget:
    """Counts what a message holds while it is decoded, so that one of too much is given up half-way."""

    __slots__ = ("_left", "_most")

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def array(self, items: list[Any]) -> list[Any]:
        self._spend(len(items))
        return items

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._spend(len(pairs))
        found = dict(pairs)
        if len(found) != len(pairs):
            raise WireError("a map has the same key twice")
        return found

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise WireError(f"a message of more than {self._most} values")


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise WireError(f"extension type {code} is not allowed")


_PLAIN: Final = frozenset({str, bytes, int, bool, type(None)})
"""Looked at where they are found: a call for each costs more than the look."""


def _require_subset(value: object, depth: int) -> None:
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise WireError("a number is not finite")
        return
    if depth == 0:
        raise WireError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, list):
        for item in value:
            if type(item) not in _PLAIN:
                _require_subset(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise WireError("the key of a map is not text")
            if type(item) not in _PLAIN:
                _require_subset(item, depth - 1)
    else:
        raise WireError(f"a value of type {kind.__name__} is not allowed")
