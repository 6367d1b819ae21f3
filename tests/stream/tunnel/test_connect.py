"""connect(2) with a deadline, and its failures in our words."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.tunnel import connect


@contextmanager
def _fresh(family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with socket.socket(family) as sock:
        sock.setblocking(False)
        yield sock


async def _failure(ip: str, port: int, *, timeout_s: float = 5) -> ConnectionFailure:
    with _fresh(socket.AF_INET6 if ":" in ip else socket.AF_INET) as sock:
        with pytest.raises(ConnectionFailure) as caught:
            await connect(sock, ip, port, timeout_s=timeout_s)
    return caught.value


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_accepted_connection_carries_bytes(ip: str) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.create_server((ip, 0), family=family) as listener, _fresh(family) as sock:
        await connect(sock, ip, listener.getsockname()[1], timeout_s=5)
        accepted, _ = listener.accept()
        with accepted:
            sock.send(b"x")
            assert accepted.recv(1) == b"x"


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_closed_port_is_refused(ip: str) -> None:
    with socket.create_server((ip, 0), family=socket.AF_INET6 if ":" in ip else socket.AF_INET) as listener:
        port = listener.getsockname()[1]
    failure = await _failure(ip, port)
    assert failure.reason is CloseReason.CONNECT_REFUSED
    assert failure.detail == f"connect to {ip} port {port}: Connection refused"


async def test_no_answer_is_a_timeout_that_says_how_long() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with _fresh() as one, _fresh() as other:
            for filler in (one, other):
                filler.connect_ex(("127.0.0.1", port))
            failure = await _failure("127.0.0.1", port, timeout_s=0.05)
    assert failure.reason is CloseReason.CONNECT_TIMEOUT
    assert failure.detail == f"no answer from 127.0.0.1 port {port} within 0.05 s"


class _FailingSocket(socket.socket):
    """A socket whose connect fails as a network would have it."""

    number = 0

    def connect_ex(self, address: object) -> int:
        return self.number


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, CloseReason.CONNECT_REFUSED),
        (errno.ECONNRESET, CloseReason.CONNECT_REFUSED),
        (errno.ETIMEDOUT, CloseReason.CONNECT_TIMEOUT),
        (errno.EHOSTUNREACH, CloseReason.CONNECT_UNREACHABLE),
        (errno.ENETUNREACH, CloseReason.CONNECT_UNREACHABLE),
        (errno.EADDRNOTAVAIL, CloseReason.CONNECT_FAILED),
        (errno.EACCES, CloseReason.CONNECT_FAILED),
    ],
)
async def test_errors_of_the_network_have_their_reasons(number: int, reason: CloseReason) -> None:
    with _FailingSocket() as sock:
        sock.number = number
        with pytest.raises(ConnectionFailure) as caught:
            await connect(sock, "192.0.2.1", 80, timeout_s=1)
    assert caught.value.reason is reason


async def test_cancellation_is_not_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with _fresh() as one, _fresh() as other, _fresh() as sock:
            for filler in (one, other):
                filler.connect_ex(("127.0.0.1", port))
            with trio.move_on_after(0.05) as scope:
                await connect(sock, "127.0.0.1", port, timeout_s=60)
            assert scope.cancelled_caught
