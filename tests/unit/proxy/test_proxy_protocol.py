"""The PROXY protocol header, byte by byte."""

from ca.spiffe import SpiffeId
from node_agent.model import OriginalDestination, PeerAddress
from node_agent.proxy.proxy_protocol import LOCAL, header


def test_the_header_of_ipv4_is_the_specifications() -> None:
    made = header(PeerAddress("10.1.2.3", 40000), OriginalDestination("10.9.8.7", 8080), None)
    assert made == bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c 0a010203 0a090807 9c40 1f90")


def test_the_header_of_ipv6_with_an_identity() -> None:
    identity = SpiffeId.workload("example.org", "shop", "cart")
    made = header(PeerAddress("fd00::1", 1), OriginalDestination("fd00::2", 2), identity)
    said = b"spiffe://example.org/ns/shop/sa/cart"
    assert made[12:16] == bytes([0x21, 0x21]) + (36 + 3 + len(said)).to_bytes(2, "big")
    assert made[16:48] == bytes.fromhex("fd00" + "00" * 13 + "01" + "fd00" + "00" * 13 + "02")
    assert made[48:52] == bytes([0, 1, 0, 2])
    assert made[52:] == b"\xd0" + len(said).to_bytes(2, "big") + said


def test_the_header_of_a_health_check_is_the_specifications() -> None:
    assert bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000") == LOCAL
