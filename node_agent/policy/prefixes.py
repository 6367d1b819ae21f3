"""Addresses in networks, for every connection: numbers and sets instead of ``ipaddress``.

A set of networks is a set of numbers for each prefix length that occurs in it,
which are few: a lookup shifts once for each of them.
"""

import ipaddress
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Address(NamedTuple):
    """An IP address as its version and number."""

    version: int
    number: int


NO_ADDRESS = Address(0, 0)
"""An address that is in no network."""


def read_address(ip: str) -> Address:
    """Return a canonical address, or ``NO_ADDRESS`` for an empty text; fast for IPv4."""
    if not ip:
        return NO_ADDRESS
    if ":" in ip:
        return Address(6, int(ipaddress.IPv6Address(ip)))
    a, b, c, d = ip.split(".")
    return Address(4, int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d))


class Network(NamedTuple):
    """A network: the addresses of this version whose number, without the host bits, is this one."""

    version: int
    host_bits: int
    number: int


def read_network(text: str) -> Network:
    """Return a canonical network."""
    network = ipaddress.ip_network(text)
    host_bits = network.max_prefixlen - network.prefixlen
    return Network(network.version, host_bits, int(network.network_address) >> host_bits)


class NetworkTable(Generic[T]):
    """What is said of networks, found by the addresses in them."""

    __slots__ = ("_by_length",)

    def __init__(self, said: Iterable[tuple[Network, T]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, list[T]]] = {}  # (IP version, host bits): network number
        for (version, host_bits, number), item in said:
            self._by_length.setdefault((version, host_bits), {}).setdefault(number, []).append(item)

    def at(self, address: Address) -> list[T]:
        """Everything that is said of networks with this address, in no order."""
        found: list[T] = []
        for (version, host_bits), items in self._by_length.items():
            if version == address.version:
                found += items.get(address.number >> host_bits, ())
        return found


class NetworkSet:
    """Whether an address is in one of several networks."""

    __slots__ = ("_by_length", "networks")

    def __init__(self, networks: Iterable[str]) -> None:
        self.networks = tuple(map(read_network, networks))
        by_length: dict[tuple[int, int], set[int]] = {}
        for version, host_bits, number in self.networks:
            by_length.setdefault((version, host_bits), set()).add(number)
        self._by_length = tuple((version, bits, frozenset(held)) for (version, bits), held in by_length.items())

    def __contains__(self, address: Address) -> bool:
        for version, host_bits, numbers in self._by_length:
            if version == address.version and address.number >> host_bits in numbers:
                return True
        return False
