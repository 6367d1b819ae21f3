"""Is this address a pod's: the union of every node's podCIDRs."""

import ipaddress

from ca.manifests import Node


class PodNetworks:
    """Networks by prefix length: a cluster uses one or two, so a lookup masks once or twice."""

    def __init__(self) -> None:
        # {(ip version, host bits): {network number: how many nodes have it}}
        self._networks: dict[tuple[int, int], dict[int, int]] = {}

    def add(self, node: Node) -> None:
        for version, host_bits, number in map(_split, node.pod_cidrs):
            counts = self._networks.setdefault((version, host_bits), {})
            counts[number] = counts.get(number, 0) + 1

    def remove(self, node: Node) -> None:
        for version, host_bits, number in map(_split, node.pod_cidrs):
            counts = self._networks[version, host_bits]
            counts[number] -= 1
            if not counts[number]:
                del counts[number]
            if not counts:
                del self._networks[version, host_bits]

    def __contains__(self, ip: str) -> bool:
        if not self._networks:
            return False
        version, number = _number(ip)
        return any(
            number >> host_bits in counts
            for (each_version, host_bits), counts in self._networks.items()
            if each_version == version
        )


def _number(ip: str) -> tuple[int, int]:
    """IP version and number of a canonical address; four times as fast as ipaddress for IPv4."""
    if ":" in ip:
        return 6, int(ipaddress.IPv6Address(ip))
    a, b, c, d = ip.split(".")
    return 4, int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)


def _split(cidr: str) -> tuple[int, int, int]:
    network = ipaddress.ip_network(cidr)
    host_bits = network.max_prefixlen - network.prefixlen
    return network.version, host_bits, int(network.network_address) >> host_bits
