"""The same-node lane in the kernel: what its programs are told, and what they tell (bpf/lane_*.c, docs/bpf.md).

What is filed is never changed.  It is in force as long as its generation is:
``begin_generation`` takes all of it back in one step, however much it is, and
only then are the entries deleted.
"""

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bpf import preconditions
from bpf.abi import Layout, abi
from bpf.pins import Pins
from bpf.plan import LANE, hook
from bpf.ring import Ring
from node_agent.capture.lane_end import LaneConnection, LaneEnd, LaneEndpoint, RawEnd, count, fate
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.pinned import address_bytes, address_text, open_maps
from node_agent.capture.pod_links import link_hook
from node_agent.capture.pod_source import PodSources
from node_agent.capture.socket_diag import destroy, is_supported
from node_agent.model import EndpointAddress, OriginalDestination, PeerAddress

_MAX_ENDPOINTS: Final = abi().constants["MAX_LANE_ENDPOINTS"]
_MAX_LANES: Final = abi().constants["MAX_LANES"]
_HOOKS: Final = ("lane_sock_release", "lane_sock_ops", "lane_connect4", "lane_connect6")
_MAPS: Final = (
    "lane_control",
    "lane_counters",
    "lanes",
    "lane_connections",
    "lane_ends",
    "lane_spill",
)
_END: Final = abi().structs["lane_end"].whole
_ENDS_AT_ONCE: Final = 128  # some 2 ms
_FIRST: Final = struct.pack("=I", 0)
_COOKIE: Final = struct.Struct("=Q")
_NS: Final = 1e-9


class KernelLane:
    """The pinned programs and maps of one node; owns their descriptors until ``close``."""

    max_endpoints = _MAX_ENDPOINTS

    def __init__(self, root: Path, *, sources: PodSources) -> None:
        """``sources`` stay the caller's.  Raises BpfError, or UnsupportedError where the lane is off."""
        self._pins = Pins(root)
        self.sources = sources
        self._maps = open_maps(self._pins, _MAPS, feature=LANE)
        self._structs = abi().structs
        assert tuple(self._structs["lane_end"].members) == RawEnd._fields
        ends = self._maps["lane_ends"]
        self._ring = Ring(ends.fd, size_bytes=ends.info.max_entries)
        self.ring_fd = ends.fd  # readable when connections have ended
        control = self._maps["lane_control"].get(_FIRST) or b""
        self._generation = self._structs["lane_control"].number(control, "generation")
        self._collected = self._structs["lane_control"].number(control, "collected")
        self._last_generation = max(self._generation, time.time_ns())  # also above those of agents before us
        self._filed: set[bytes] = set()
        self._is_linked = False
        self.end_generation()  # of an agent before us

    def close(self) -> None:
        """Close our descriptors; connections that are open go on, and their ends wait for the next agent."""
        self.end_generation()
        self._ring.close()
        for each in self._maps.values():
            each.close()

    def link(self, somewhere: NetworkNamespace) -> None:
        """Put the programs to work, after those of the pods; again does nothing.

        Raises:
            OSError: the kernel can not, or refused.
        """
        if self._is_linked:
            return
        if not is_supported(somewhere):
            raise OSError(0, "the kernel can not end a connection from outside (CONFIG_INET_DIAG_DESTROY)")
        for name in _HOOKS:
            link_hook(self._pins, "pods", hook(name), preconditions.node_cgroup_root())
        self._is_linked = True

    # -- what may take the lane -----------------------------------------------------

    @property
    def has_lanes(self) -> bool:
        return bool(self._filed)

    def begin_generation(self, *, valid_s: float) -> None:
        """Take back everything that was filed, and file for ``valid_s`` seconds from now on."""
        self._last_generation += 1
        self._generation = self._last_generation
        self._write_control(valid_until_ns=time.monotonic_ns() + int(valid_s / _NS))
        self._delete_filed()

    def end_generation(self) -> None:
        """Take back everything; nothing is filed any more."""
        self._generation = 0
        self._write_control(valid_until_ns=0)
        self._delete_filed()

    def _write_control(self, *, valid_until_ns: int) -> None:
        self._valid_until_ns = valid_until_ns
        packed = self._structs["lane_control"].pack(
            generation=self._generation, valid_until_ns=valid_until_ns, collected=self._collected
        )
        self._maps["lane_control"].put(_FIRST, packed)

    def _delete_filed(self) -> None:
        lanes = self._maps["lanes"]
        for key in self._filed or list(lanes):  # at first those of an agent that was killed
            lanes.delete(key)
        self._filed.clear()

    def file(self, netns_cookie: int, destination: OriginalDestination, endpoints: Sequence[LaneEndpoint]) -> bool:
        """Let a pod connect to ``destination`` without us; False if there is no room, or it is filed already.

        ``endpoints`` are 1 to ``max_endpoints``, of the destination's IP version.
        """
        assert 0 < len(endpoints) <= _MAX_ENDPOINTS
        key = self._key(netns_cookie, destination)
        if not self._generation or key in self._filed or len(self._filed) >= _MAX_LANES:
            return False
        unused = _MAX_ENDPOINTS - len(endpoints)
        weights: list[int] = []
        for each in endpoints:
            weights.append(each.weight + (weights[-1] if weights else 0))
        packed = self._structs["lane"].pack(
            generation=self._generation,
            grants=tuple(each.grant for each in endpoints) + (0,) * unused,
            ip_be=b"".join(address_bytes(each.address.ip) for each in endpoints),
            port_be=tuple(socket.htons(each.address.port) for each in endpoints) + (0,) * unused,
            weights=tuple(weights) + (0,) * unused,
            count=len(endpoints),
        )
        self._maps["lanes"].put(key, packed)
        self._filed.add(key)
        return True

    def is_filed(self, netns_cookie: int, destination: OriginalDestination) -> bool:
        """Whether a pod may connect to ``destination`` without us now."""
        return bool(self._filed) and self._key(netns_cookie, destination) in self._filed

    def _key(self, netns_cookie: int, destination: OriginalDestination) -> bytes:
        return self._structs["lane_key"].pack(
            netns_cookie=netns_cookie, ip_be=address_bytes(destination.ip), port_be=socket.htons(destination.port)
        )

    # -- what has taken it ------------------------------------------------------------

    def connections(self) -> Iterator[LaneConnection]:
        """Those that are open and whose SYN was sent."""
        map_, layout = self._maps["lane_connections"], self._structs["lane_connection"]
        is_sent = abi().constants["LANE_SYN_SENT"]
        for key in list(map_):
            raw = map_.get(key)
            if raw is not None and layout.number(raw, "flags") & is_sent:
                yield _connection(layout, raw, cookie=_COOKIE.unpack(key)[0])

    def ends(self) -> Iterator[list[RawEnd]]:
        """How connections have ended since the last time, each told once, a few milliseconds' work at a time."""
        for read in self._ring.read(_END, most=_ENDS_AT_ONCE):
            yield [RawEnd._make(each) for each in read]
        spill = self._maps["lane_spill"]
        before = self._collected
        for key in list(spill):
            found = spill.take(key)
            if found is not None:
                self._collected += 1
                yield [RawEnd._make(_END.unpack(found))]
        if self._collected != before:
            self._write_control(valid_until_ns=self._valid_until_ns)

    @staticmethod
    def told(end: RawEnd) -> LaneEnd:
        """What it means."""
        return _end(_END.pack(*end))

    def cut(self, namespace: NetworkNamespace, connection: LaneConnection) -> None:
        """End one, whose client is in ``namespace``; its end is told as ever.  Raises OSError."""
        destroy(
            namespace,
            connection.cookie,
            local=(address_bytes(connection.client.ip), connection.client.port),
            remote=(address_bytes(connection.server.ip), connection.server.port),
        )

    def counters(self) -> dict[str, int]:
        """By name, since the programs were loaded."""
        layout = self._structs["lane_counters"]
        raw = self._maps["lane_counters"].get(_FIRST) or b""
        return {name: layout.number(raw, name) for name in layout.members}


def _connection(layout: Layout, raw: bytes, *, cookie: int) -> LaneConnection:
    """Of a ``lane_connection`` or a ``lane_end``, whose common members have the same names."""
    established_ns = layout.number(raw, "established_ns")
    return LaneConnection(
        cookie=cookie,
        grant=layout.number(raw, "grant"),
        netns_cookie=layout.number(raw, "netns_cookie"),
        original=OriginalDestination(
            address_text(layout.bytes_of(raw, "original_ip_be")),
            socket.ntohs(layout.number(raw, "original_port_be") & 0xFFFF),
        ),
        client=PeerAddress(address_text(layout.bytes_of(raw, "client_ip_be")), layout.number(raw, "client_port")),
        server=EndpointAddress(address_text(layout.bytes_of(raw, "server_ip_be")), layout.number(raw, "server_port")),
        began_at=layout.number(raw, "began_ns") * _NS,
        established_at=established_ns * _NS if established_ns else None,
    )


def _end(raw: bytes) -> LaneEnd:
    layout, flag = abi().structs["lane_end"], abi().constants
    flags = layout.number(raw, "flags")
    is_established = bool(flags & flag["LANE_ESTABLISHED"])
    is_fin_acked = bool(flags & flag["LANE_FIN_ACKED"])
    from_client, to_client = count(
        acked_bytes=layout.number(raw, "acked_bytes"),
        received_bytes=layout.number(raw, "received_bytes"),
        is_established=is_established,
        is_fin_acked=is_fin_acked,
        has_fin_come=bool(flags & flag["LANE_FIN_CAME"]),
    )
    return LaneEnd(
        connection=_connection(layout, raw, cookie=layout.number(raw, "cookie")),
        ended_at=layout.number(raw, "ended_ns") * _NS,
        sent_bytes=to_client,
        received_bytes=from_client,
        fate=fate(
            error=layout.number(raw, "error"),
            is_established=is_established,
            is_fin_acked=is_fin_acked,
            is_grant_gone=bool(flags & flag["LANE_REFUSED"]),
        ),
    )
