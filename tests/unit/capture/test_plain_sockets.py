"""What may be joined in the kernel: two plain TCP sockets, and nothing else."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from node_agent.capture.plain_sockets import NotPlaintextError, PlainSockets, protocol_on_top
from tests.relay_builder import TlsPairs, tcp_pair


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def plain(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = tcp_pair()
    stack.enter_context(one)
    stack.enter_context(other)
    return one, other


def test_two_tcp_sockets_are_plain(plain: tuple[socket.socket, socket.socket]) -> None:
    found = PlainSockets(*plain)
    assert (found.first, found.second) == plain
    assert protocol_on_top(plain[0]) == ""


def test_tls_of_our_own_is_refused_on_either_side(plain: tuple[socket.socket, socket.socket], stack: ExitStack) -> None:
    tunnel: ssl.SSLSocket
    for tunnel in TlsPairs().make():
        stack.enter_context(tunnel)
        for pair in ((tunnel, plain[0]), (plain[0], tunnel)):
            with pytest.raises(NotPlaintextError, match="a SSLSocket is not a plain socket"):
                PlainSockets(*pair)


def test_tls_of_the_kernel_is_refused_on_either_side(plain: tuple[socket.socket, socket.socket]) -> None:
    for encrypted in plain:
        with pytest.raises(NotPlaintextError, match="the protocol 'tls' on top of TCP"):
            PlainSockets(*plain, on_top=lambda each, encrypted=encrypted: "tls" if each is encrypted else "")  # type: ignore[misc]


def test_what_is_no_tcp_is_refused(plain: tuple[socket.socket, socket.socket], stack: ExitStack) -> None:
    local, _ = socket.socketpair()
    stack.enter_context(local)
    stack.enter_context(_)
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    for other in (local, datagrams):
        with pytest.raises(NotPlaintextError, match="not a TCP socket"):
            PlainSockets(plain[0], other)


def test_a_socket_is_not_joined_with_itself(plain: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(NotPlaintextError, match="with itself"):
        PlainSockets(plain[0], plain[0])


def test_a_closed_socket_is_an_error_of_the_system(plain: tuple[socket.socket, socket.socket]) -> None:
    plain[1].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        PlainSockets(*plain)
