"""Run one BPF program once, on a packet or a look-up that the test makes: BPF_PROG_RUN of bpf(2).

The kernel allows it for programs of packets (``SCHED_CLS``, ``CGROUP_SKB``) and of socket look-ups
(``SK_LOOKUP``); programs of connect(2), of TCP events and of closes can only be met in a namespace.
"""

import ctypes
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from bpf import btf, syscalls
from bpf.compiler import NO_DEFINES, compile_sources
from bpf.plan import FEATURES
from bpf.preconditions import kernel_version
from bpf.syscalls import Map
from bpf.verified import Verified, verify

_RUN: Final = 10
_ATTRIBUTES: Final = struct.Struct("=IIIIQQIIIIQQIIII")  # union bpf_attr, "test"
_RETVAL_AT: Final = 4
_CONTEXT_BYTES: Final = 256
_PACKET_BYTES: Final = 2048
_LOOKUP: Final = struct.Struct("=QII4s16s2sH4s16sIII")  # struct bpf_sk_lookup, with the padding at its end
_SKB_MARK_AT: Final = 8
_SKB_INTERFACE_AT: Final = 40  # struct __sk_buff
_SKB_BYTES: Final = 192


class Programs:
    """What some features are made of, loaded and pinned nowhere; all of it goes with ``stack``."""

    def __init__(self, names: Sequence[str], stack: ExitStack, *, defines: Mapping[str, int] = NO_DEFINES) -> None:
        """``defines`` are macros of the sources, beside those that they get from the running kernel."""
        features = [each for each in FEATURES if each.name in names]
        compiled = {
            each.name: compile_sources(
                each.sources,
                [row.function for row in each.programs],
                defines={**btf.numbers(each.numbers), **defines},
            )
            for each in features
        }
        found: Verified = verify(features, compiled, lacking={}, kept={}, kernel=kernel_version(), stack=stack)
        assert not found.off, found.off
        self._programs = found.programs
        self.maps = {name: Map(fd) for name, fd in found.maps.items()}

    def on_packet(self, function: str, packet: bytes, *, mark: int = 0, interface: int = 0) -> int:
        """What a program says of a packet; with ``interface`` 0 it has come from the loopback."""
        context = bytearray(_SKB_BYTES)
        struct.pack_into("=I", context, _SKB_MARK_AT, mark)
        struct.pack_into("=I", context, _SKB_INTERFACE_AT, interface)
        return _signed(run(self._programs[function], packet=packet, context=bytes(context))[0])

    def on_lookup(
        self, function: str, *, local: tuple[str, int], remote: tuple[str, int], protocol: int = socket.IPPROTO_TCP
    ) -> tuple[int, int]:
        """What a program says of an arriving packet, and the cookie of the socket that it has chosen, or 0."""
        (local_ip, local_port), (remote_ip, remote_port) = local, remote
        is_ip6 = ":" in local_ip
        family = socket.AF_INET6 if is_ip6 else socket.AF_INET
        to, by = (socket.inet_pton(family, each) for each in (local_ip, remote_ip))
        no4, no6 = bytes(4), bytes(16)
        context = _LOOKUP.pack(
            0,
            family,
            protocol,
            no4 if is_ip6 else by,
            by if is_ip6 else no6,
            struct.pack("!H", remote_port),
            0,
            no4 if is_ip6 else to,
            to if is_ip6 else no6,
            local_port,
            0,  # no interface: BPF_PROG_RUN takes none
            0,
        )
        verdict, after = run(self._programs[function], context=context)
        return verdict, int.from_bytes(after[:8], "little")


def run(program: int, *, packet: bytes = b"", context: bytes) -> tuple[int, bytes]:
    """The verdict, and the context as the program has left it; raises OSError if the kernel does not run it."""
    data, out = ctypes.create_string_buffer(packet, max(len(packet), 1)), ctypes.create_string_buffer(_PACKET_BYTES)
    before = ctypes.create_string_buffer(context, len(context))
    after = ctypes.create_string_buffer(_CONTEXT_BYTES)
    attributes = ctypes.create_string_buffer(
        _ATTRIBUTES.pack(
            program,
            0,
            len(packet),
            len(out) if packet else 0,
            ctypes.addressof(data) if packet else 0,
            ctypes.addressof(out) if packet else 0,
            0 if not packet else 1,
            0,
            len(context),
            len(after),
            ctypes.addressof(before),
            ctypes.addressof(after),
            0,
            0,
            0,
            0,
        ),
        _ATTRIBUTES.size,
    )
    syscalls._bpf(_RUN, attributes)
    (verdict,) = struct.unpack_from("=I", attributes, _RETVAL_AT)
    return verdict, after.raw[: len(context)]


def _signed(verdict: int) -> int:
    return verdict - (1 << 32) if verdict >> 31 else verdict


def cookie_of(sock: socket.socket) -> int:
    """The number of a socket, as programs know it."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE


def ip_packet(source: str, destination: str, *, protocol: int = socket.IPPROTO_TCP) -> bytes:
    """A SYN between two addresses of one version; the kernel takes the link's header away where there is none."""
    is_ip6 = ":" in source
    family = socket.AF_INET6 if is_ip6 else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    segment = struct.pack("!HHIIBBHHH", 45000, 8080, 1, 0, 5 << 4, 2, 64240, 0, 0)
    if is_ip6:
        packet = struct.pack("!IHBB", 6 << 28, len(segment), protocol, 64) + addresses + segment
    else:
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0) + addresses + segment
    return link_header(0x86DD if is_ip6 else 0x0800) + packet


def link_header(ether_type: int) -> bytes:
    """To and from nobody in particular."""
    return b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02" + struct.pack("!H", ether_type)
