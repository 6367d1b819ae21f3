"""The one door to bpf(2): a few commands by ctypes, without libbpf, bcc or LLVM.

linux/bpf.h, ``union bpf_attr``, has the layouts.  Everything returns or takes
file descriptors; whoever gets one closes it.  Errors are OSError with the
kernel's errno; what an errno means is the caller's business.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from bpf.errors import UnsupportedError, VerifierRefusal

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_LOG_BYTES: Final = 1 << 22
_NAME_BYTES: Final = 15
_LOOKUP_AND_DELETE: Final = 21
_LINK_TYPE_NETNS: Final = 5
_LINK_TYPE_TCX: Final = 11
_NUMBER: Final = _NUMBERS.get(os.uname().machine)
_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_syscall.restype = ctypes.c_long


class MapType(IntEnum):
    """The kinds of map that we ask for; the kernel has more."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    SOCKMAP = 15
    SOCKHASH = 18
    RINGBUF = 27


class ProgramType(IntEnum):
    SCHED_CLS = 3
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    SK_SKB = 14
    CGROUP_SOCK_ADDR = 18
    SK_LOOKUP = 30


class AttachType(IntEnum):
    """Where a program is called; only those that we use."""

    CGROUP_INET_INGRESS = 0
    CGROUP_SOCK_OPS = 3
    SK_SKB_STREAM_VERDICT = 5
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    SK_LOOKUP = 36
    TCX_INGRESS = 46


@dataclass(frozen=True, slots=True, kw_only=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    id: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramInfo:
    """``tag`` is a digest of the instructions, which map they use aside."""

    type: int
    id: int
    tag: bytes
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInfo:
    """``cgroup_id``, ``netns_inode`` and ``interface`` are 0 for a link of another kind, or when what it was linked to
    is gone."""

    id: int
    program_id: int
    cgroup_id: int
    netns_inode: int
    attach_type: int
    interface: int = 0


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    if _NUMBER is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {os.uname().machine}")
    size = len(attributes)
    buffer = ctypes.create_string_buffer(attributes, size) if isinstance(attributes, bytes) else attributes
    result: int = _syscall(_NUMBER, command, buffer, size)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _name(name: str) -> bytes:
    return name.encode()[:_NAME_BYTES]


def create_map(*, type: int, key_bytes: int, value_bytes: int, max_entries: int, flags: int = 0, name: str) -> int:
    """BPF_MAP_CREATE."""
    return _bpf(0, struct.pack("IIIIIII16s", type, key_bytes, value_bytes, max_entries, flags, 0, 0, _name(name)))


class Map:
    """One map, of fixed sizes, with buffers that are used again: about 2 us a call.  Not for several threads at once.

    Owns ``fd`` until ``close``.
    """

    __slots__ = ("_attributes", "_key", "_key_bytes", "_next", "_read_bytes", "_value", "fd", "info")

    def __init__(self, fd: int) -> None:
        """Take over ``fd``; raises OSError."""
        self.fd = fd
        self.info = map_info(fd)
        self._key = ctypes.create_string_buffer(self.info.key_bytes)
        self._key_bytes = memoryview(self._key).cast("B")
        self._next = ctypes.create_string_buffer(self.info.key_bytes)
        self._read_bytes = self.info.value_bytes
        if self.info.type == MapType.PERCPU_ARRAY:
            self._read_bytes = possible_processors() * _per_processor(self.info.value_bytes)
        self._value = ctypes.create_string_buffer(max(self._read_bytes, 8))
        addresses = (ctypes.addressof(self._key), ctypes.addressof(self._value))
        self._attributes = ctypes.create_string_buffer(struct.pack("IIQQQ", fd, 0, *addresses, 0), 32)

    def close(self) -> None:
        os.close(self.fd)

    def get(self, key: bytes) -> bytes | None:
        """BPF_MAP_LOOKUP_ELEM; of a map that each processor has its own of, all values, see ``of_processors``."""
        return self._read(1, key)

    def of_processors(self, key: bytes) -> Iterator[bytes]:
        """The value of each processor, of such a map."""
        values, step = self.get(key) or b"", _per_processor(self.info.value_bytes)
        return (values[at : at + self.info.value_bytes] for at in range(0, len(values), step))

    def take(self, key: bytes) -> bytes | None:
        """Get an entry and delete it, in one step (Linux 5.14 for hashes)."""
        return self._read(_LOOKUP_AND_DELETE, key)

    def _read(self, command: int, key: bytes) -> bytes | None:
        self._set(key)
        try:
            _bpf(command, self._attributes)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw[: self._read_bytes]

    def put(self, key: bytes, value: bytes) -> None:
        """BPF_MAP_UPDATE_ELEM: make or replace an entry; OSError E2BIG when the map is full."""
        assert len(value) == self.info.value_bytes, (self.info, len(value))
        self._set(key)
        ctypes.memmove(self._value, value, len(value))
        _bpf(2, self._attributes)

    def delete(self, key: bytes) -> bool:
        """Whether there was such an entry."""
        self._set(key)
        try:
            # Whatever follows the key has to be zero: shorter attributes leave it out.
            _bpf(3, self._attributes.raw[:16])
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def __iter__(self) -> Iterator[bytes]:
        """Every key, also while others change the map; one may then come twice or not at all."""
        attributes = struct.pack("IIQQ", self.fd, 0, 0, ctypes.addressof(self._next))
        while True:
            try:
                _bpf(4, attributes)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = self._next.raw
            yield key
            previous = ctypes.create_string_buffer(key, len(key))
            attributes = struct.pack("IIQQ", self.fd, 0, ctypes.addressof(previous), ctypes.addressof(self._next))

    def _set(self, key: bytes) -> None:
        assert len(key) == self.info.key_bytes, (self.info, len(key))
        self._key_bytes[:] = key


def _per_processor(value_bytes: int) -> int:
    return (value_bytes + 7) & ~7


def possible_processors() -> int:
    """How many values a map has that each processor has its own of: also of those that may be plugged in yet."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return 1 + max(int(part.split("-")[-1]) for part in text.split(","))


def load_program(*, type: int, attach_type: int, instructions: bytes, name: str) -> int:
    """BPF_PROG_LOAD.

    Raises:
        VerifierRefusal: with the verifier's log.
        UnsupportedError: the kernel does not know this kind of program.
        OSError: anything else, EPERM among it.
    """
    try:
        return _load(type, attach_type, instructions, name, None)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.E2BIG):
            raise
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        return _load(type, attach_type, instructions, name, log)
    except OSError as error:
        text = log.value.decode(errors="replace").strip()
        if not text:
            raise UnsupportedError(f"the kernel does not know this kind of program ({error.strerror})") from error
        raise VerifierRefusal(f"the kernel's verifier refused {name}: {_essence(text)}", log=text) from error


def _load(type: int, attach_type: int, instructions: bytes, name: str, log: ctypes.Array[ctypes.c_char] | None) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    gpl = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "IIQQIIQII16sII",
        type,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(gpl),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        0,
        0,
        _name(name),
        0,
        attach_type,
    )
    return _bpf(5, attributes)


def _essence(log: str) -> str:
    """The sentence that says why: the last one before the statistics."""
    lines = [line for line in log.splitlines() if line and not line.startswith(("processed ", "verification time"))]
    return lines[-1] if lines else log


def pin(fd: int, path: os.PathLike[str]) -> None:
    """BPF_OBJ_PIN; EEXIST if there is something."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(6, struct.pack("QII", ctypes.addressof(text), fd, 0))


def open_pin(path: os.PathLike[str]) -> int:
    """BPF_OBJ_GET."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(7, struct.pack("QII", ctypes.addressof(text), 0, 0))


def create_link(*, program: int, target: int, attach_type: int) -> int:
    """BPF_LINK_CREATE: call ``program`` at ``target``, beside others' programs, as long as the link is there.

    ``target`` is a descriptor, or the index of an interface of our own network namespace (TCX).
    """
    return _bpf(28, struct.pack("IIIIIIII", program, target, attach_type, 0, 0, 0, 0, 0))


def attach_to_map(map_fd: int, *, program: int, attach_type: int) -> None:
    """BPF_PROG_ATTACH: call ``program`` for sockets that are put into a SOCKHASH from now on, instead of another."""
    _bpf(8, struct.pack("IIII", map_fd, program, attach_type, 0))


def update_link(link: int, *, program: int) -> None:
    """BPF_LINK_UPDATE: from one call to the next it is another program."""
    _bpf(29, struct.pack("IIII", link, program, 0, 0))


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    _bpf(15, struct.pack("IIQ", fd, size, ctypes.addressof(buffer)))
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    """BPF_OBJ_GET_INFO_BY_FD of a map."""
    kind, number, key, value, entries, flags, name = struct.unpack_from("IIIIII16s", _info(fd, 80))
    return MapInfo(
        type=kind,
        id=number,
        key_bytes=key,
        value_bytes=value,
        max_entries=entries,
        flags=flags,
        name=name.rstrip(b"\0").decode(),
    )


def program_info(fd: int) -> ProgramInfo:
    """BPF_OBJ_GET_INFO_BY_FD of a program."""
    raw = _info(fd, 80)
    kind, number, tag = struct.unpack_from("II8s", raw)
    return ProgramInfo(type=kind, id=number, tag=tag, name=raw[64:80].rstrip(b"\0").decode())


def link_info(fd: int) -> LinkInfo:
    """BPF_OBJ_GET_INFO_BY_FD of a cgroup's, a network namespace's or an interface's link."""
    raw = _info(fd, 32)
    kind, number, program, _ = struct.unpack_from("IIII", raw)
    cgroup = inode = interface = 0
    if kind == _LINK_TYPE_NETNS:
        inode, attach = struct.unpack_from("II", raw, 16)
    elif kind == _LINK_TYPE_TCX:
        interface, attach = struct.unpack_from("II", raw, 16)
    else:
        cgroup, attach = struct.unpack_from("QI", raw, 16)
    return LinkInfo(
        id=number,
        program_id=program,
        cgroup_id=cgroup,
        netns_inode=inode,
        attach_type=attach,
        interface=interface,
    )


def program_by_id(number: int) -> int:
    """BPF_PROG_GET_FD_BY_ID."""
    return _bpf(13, struct.pack("III", number, 0, 0))
