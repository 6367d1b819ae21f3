"""What accept() returned, as every comparison wants it: canonical text, never v4-mapped."""

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node_agent.capture import peer_address
from node_agent.model import PeerAddress


def _as_the_kernel_says(ip: ipaddress.IPv6Address) -> str:
    return socket.inet_ntop(socket.AF_INET6, ip.packed)


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_ipv4_on_a_dual_stack_listener_is_ipv4(ip: ipaddress.IPv4Address, port: int) -> None:
    mapped = _as_the_kernel_says(ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed))
    assert peer_address((mapped, port, 0, 0)) == PeerAddress(str(ip), port)
    assert peer_address((str(ip), port)) == PeerAddress(str(ip), port)


@given(st.ip_addresses(v=6), st.integers(1, 65535))
@example(ipaddress.IPv6Address("::ffff:0:1.2.3.4"), 1)  # SIIT's "translated" addresses (RFC 2765) are not mapped ones
@example(ipaddress.IPv6Address("::1.2.3.4"), 1)
@example(ipaddress.IPv6Address("::ffff:1"), 1)
@example(ipaddress.IPv6Address("::"), 1)
def test_ipv6_stays_as_it_is(ip: ipaddress.IPv6Address, port: int) -> None:
    if ip.ipv4_mapped is None:
        assert ipaddress.ip_address(peer_address((_as_the_kernel_says(ip), port, 0, 0)).ip) == ip


@pytest.mark.parametrize("scope", ["eth0", "2"])
def test_scope_of_a_link_local_address_is_left_out(scope: str) -> None:
    assert peer_address((f"fe80::1%{scope}", 80, 0, 2)) == PeerAddress("fe80::1", 80)
