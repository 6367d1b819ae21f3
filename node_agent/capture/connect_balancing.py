"""Connect-time balancing in the kernel: what its programs are told (bpf/balance.h, docs/bpf.md).

A service's rows are written beside the old ones, and then its one entry is
replaced: whoever connects sees the old set or the new one.  Everything stays
when the agent ends, for as long as it has said; the next agent finds what is
there, and replaces it service by service.
"""

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bpf.abi import abi
from bpf.pins import Pins
from node_agent.capture.alias import alias_rows
from node_agent.capture.pinned import address_bytes, address_text, open_maps
from node_agent.capture.row_space import RowSpace
from node_agent.model import EndpointAddress, OriginalDestination

_MAPS: Final = ("balance_control", "balance_counters", "balanced", "balance_rows", "balance_failed")
_MAX_BALANCED: Final = abi().constants["MAX_BALANCED"]
_MAX_ROWS: Final = abi().constants["MAX_BALANCE_ROWS"]
_FIRST: Final = struct.pack("=I", 0)
_INDEX: Final = struct.Struct("=I")
_NOWHERE: Final = bytes(16)
_REST_S: Final = 1.0  # a hook reads for less than a microsecond, but may be interrupted
_NS: Final = 1_000_000_000

Shares = tuple[tuple[EndpointAddress, float], ...]


class _Filed(NamedTuple):
    """``shares`` is None for what an agent before us has filed."""

    first: int
    rows: int
    shares: Shares | None


class KernelBalancing:
    """The pinned maps of one node; owns their descriptors until ``close``."""

    def __init__(self, root: Path, *, feature: str) -> None:
        """Raises BpfError, or UnsupportedError where ``feature`` is off."""
        self._maps = open_maps(Pins(root), _MAPS, feature=feature)
        self._structs = abi().structs
        self._space = RowSpace(_MAX_ROWS, rest_s=_REST_S)
        self._filed: dict[OriginalDestination, _Filed] = {}
        self._version = time.time_ns()  # also above those of agents before us
        layout = self._structs["balanced"]
        for key in list(self._maps["balanced"]):
            raw = self._maps["balanced"].get(key)
            if raw is None:
                continue
            first, count = layout.number(raw, "first"), layout.number(raw, "count")
            self._version = max(self._version, layout.number(raw, "version"))
            if self._space.reserve(first, count):
                self._filed[self._destination(key)] = _Filed(first, count, None)
            else:
                self._maps["balanced"].delete(key)  # not ours, and nobody's

    def close(self) -> None:
        """Close our descriptors; what is filed stays in force."""
        for each in self._maps.values():
            each.close()

    @property
    def filed(self) -> frozenset[OriginalDestination]:
        """What connections go to without the agent."""
        return frozenset(self._filed)

    def keep(self, *, valid_s: float) -> None:
        """What is filed is in force for so long from now on; an agent that is there says so again and again."""
        packed = self._structs["balance_control"].pack(valid_until_ns=time.monotonic_ns() + int(valid_s * _NS))
        self._maps["balance_control"].put(_FIRST, packed)

    def file(self, service: OriginalDestination, shares: Shares, now: float) -> bool:
        """Let connections to ``service`` go to these, in proportion to their shares; to none: they are refused.

        False if there is no room: then they go to the agent.  All are of the service's IP version.

        Raises:
            OSError: the kernel refused; what was filed before is still in force.
        """
        before = self._filed.get(service)
        if before is not None and before.shares == shares:
            return True
        count = max(1, len(shares))
        first = self._space.take(count, now) if before is not None or len(self._filed) < _MAX_BALANCED else None
        if first is None:
            self.withdraw(service, now)
            return False
        self._version += 1
        key = self._key(service)
        try:
            for number, row in enumerate(self._rows(service, shares)):
                self._maps["balance_rows"].put(_INDEX.pack(first + number), row)
            packed = self._structs["balanced"].pack(version=self._version, first=first, count=count)
            self._maps["balanced"].put(key, packed)
        except OSError:
            self._space.give_back(first, count, now)
            raise
        self._filed[service] = _Filed(first, count, shares)
        if before is not None:
            self._space.give_back(before.first, before.rows, now)
        return True

    def withdraw(self, service: OriginalDestination, now: float) -> None:
        """Let the next connections go to the agent; what is not filed is fine."""
        before = self._filed.pop(service, None)
        if before is not None:
            self._maps["balanced"].delete(self._key(service))
            self._space.give_back(before.first, before.rows, now)

    def failed(self) -> list[EndpointAddress]:
        """Endpoints that could not be connected to since the last time; not all, if they are very many."""
        found, map_ = [], self._maps["balance_failed"]
        for key in list(map_):
            map_.delete(key)
            found.append(EndpointAddress(*self._destination(key)))
        return found

    def counters(self) -> dict[str, int]:
        """By name, of all processors, since the programs were loaded."""
        layout = self._structs["balance_counters"]
        rows = list(self._maps["balance_counters"].of_processors(_FIRST))
        return {name: sum(layout.number(raw, name) for raw in rows) for name in layout.members}

    def _rows(self, service: OriginalDestination, shares: Shares) -> Sequence[bytes]:
        pack = self._structs["balance_row"].pack
        whose: dict[str, int | bytes] = {
            "version": self._version,
            "service_ip_be": address_bytes(service.ip),
            "service_port_be": socket.htons(service.port),
        }
        if not shares:
            return [pack(**whose, ip_be=_NOWHERE)]
        found = []
        for (address, _), row in zip(shares, alias_rows([share for _, share in shares]), strict=True):
            other = shares[row.other][0]
            found.append(
                pack(
                    **whose,
                    keep=row.own - 1,
                    ip_be=address_bytes(address.ip),
                    port_be=socket.htons(address.port),
                    other_ip_be=address_bytes(other.ip),
                    other_port_be=socket.htons(other.port),
                )
            )
        return found

    def _key(self, service: OriginalDestination) -> bytes:
        return self._structs["balanced_key"].pack(ip_be=address_bytes(service.ip), port_be=socket.htons(service.port))

    def _destination(self, key: bytes) -> OriginalDestination:
        layout = self._structs["balanced_key"]
        port = socket.ntohs(layout.number(key, "port_be") & 0xFFFF)
        return OriginalDestination(address_text(layout.bytes_of(key, "ip_be")), port)
