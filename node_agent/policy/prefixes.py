"""Addresses in networks, for every connection: numbers and sets instead of ``ipaddress``.

A set of networks is a set of numbers for each prefix length that occurs in it,
which are few: a lookup shifts once for each of them.
"""

import ipaddress
from collections.abc import Iterable, Iterator
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


class NetworkTable(Generic[T]):
    """What is said of networks, found by the addresses in them."""

    __slots__ = ("_by_length",)

    def __init__(self, said: Iterable[tuple[str, T]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, list[T]]] = {}  # (IP version, host bits): network number
        for text, item in said:
            network = ipaddress.ip_network(text)
            host_bits = network.max_prefixlen - network.prefixlen
            of_length = self._by_length.setdefault((network.version, host_bits), {})
            of_length.setdefault(int(network.network_address) >> host_bits, []).append(item)

    def at(self, address: Address) -> Iterator[T]:
        """Everything that is said of networks with this address, in no order."""
        for (version, host_bits), items in self._by_length.items():
            if version == address.version:
                yield from items.get(address.number >> host_bits, ())


class NetworkSet:
    """Whether an address is in one of several networks."""

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[str]) -> None:
        by_length: dict[tuple[int, int], set[int]] = {}
        for text in networks:
            network = ipaddress.ip_network(text)
            host_bits = network.max_prefixlen - network.prefixlen
            by_length.setdefault((network.version, host_bits), set()).add(int(network.network_address) >> host_bits)
        self._by_length = tuple((version, bits, frozenset(held)) for (version, bits), held in by_length.items())

    def __contains__(self, address: Address) -> bool:
        for version, host_bits, numbers in self._by_length:
            if version == address.version and address.number >> host_bits in numbers:
                return True
        return False
