"""Point 5: many at a time, each with its own way to talk and to end; one record each, and nothing left over."""

import functools
import hashlib
import random
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.background import in_background
from tests.faithful import Ground, Way, read_exactly, reset, was_reset
from tests.mesh_builder import in_namespace, wait_for

pytestmark = pytest.mark.mesh

_THOUSAND = 1000
_WAVE = 200


@contextmanager
def _echoing(listener: socket.socket) -> Iterator[None]:
    """Echo for as many clients as come, in one thread."""
    listener.setblocking(False)
    stop_read, stop_write = socket.socketpair()
    clients: set[socket.socket] = set()

    def serve() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(stop_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is stop_read:
                        return
                    if sock is listener:
                        client, _ = listener.accept()
                        clients.add(client)
                        selector.register(client, selectors.EVENT_READ)
                    elif data := sock.recv(4096):
                        sock.sendall(data)
                    else:
                        selector.unregister(sock)
                        clients.remove(sock)
                        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop_write.close()
        thread.join()
        for sock in (*clients, stop_read):
            sock.close()


def _connect_all(ground: Ground, way: Way, port: int, count: int) -> list[socket.socket]:
    def make() -> list[socket.socket]:
        made = []
        for _ in range(count):
            sock = ground.keep(socket.socket(socket.AF_INET6 if ":" in way.ip else socket.AF_INET))
            sock.settimeout(30)
            sock.connect((way.ip, port))
            made.append(sock)
        return made

    return in_namespace(way.client.netns, make)


def test_a_thousand_connections_at_a_time(ground: Ground) -> None:
    way = ground.way("tunnel", "ipv4")
    listener, port = way.listen(backlog=4096)
    with _echoing(listener):
        clients = _connect_all(ground, way, port, _THOUSAND)
        for round_ in range(3):
            said = [f"{round_} connection {number} says hello".encode() for number in range(_THOUSAND)]
            for client, words in zip(clients, said, strict=True):
                client.sendall(words)
            assert [read_exactly(client, len(words)) for client, words in zip(clients, said, strict=True)] == said
        for node in (1, 2):
            assert ground.mesh.metric(node, "ringfence_connections_open") == _THOUSAND
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        assert all(client.recv(1) == b"" for client in clients)
        for node in (1, 2):
            records = _wait_for_records(way, node, _THOUSAND)
            assert {record["close_reason"] for record in records} == {"ok"}
            assert len({record["source_address"] for record in records}) == _THOUSAND
    wait_for("tunnels to be idle again", lambda: ground.mesh.metric(1, "ringfence_tunnels_idle") >= 10)


# -- two hundred at once, no two alike ---------------------------------------------

_CALM = ("both", "client-half-closes", "server-half-closes", "slow-reader", "nothing")
_ABRUPT = ("client-resets", "server-resets")


class _Conversation:
    """What one connection does is drawn from its seed; both ends know the plan."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.style = rng.choice(_CALM * 2 + _ABRUPT)
        most = 0 if self.style == "nothing" else rng.choice([1, 100, 20_000, 1_000_000])
        self.up = rng.randbytes(rng.randint(0, most))
        self.down = rng.randbytes(rng.randint(0, most))
        self.pieces = rng.choice([100, 1000, 65_536, 1 << 20])
        if self.style == "client-resets":
            self.up = self.up[:4000] or b"x"
        if self.style == "server-resets":
            self.down = self.down[:4000] or b"x"
        self.heard_by_server = b""
        self.heard_by_client = b""

    def _say(self, sock: socket.socket, words: bytes) -> None:
        for at in range(0, len(words), self.pieces):
            sock.sendall(words[at : at + self.pieces])

    def _say_all(self, sock: socket.socket, words: bytes) -> None:
        self._say(sock, words)
        sock.shutdown(socket.SHUT_WR)

    def _hear(self, sock: socket.socket) -> bytes:
        heard = []
        while piece := sock.recv(1000 if self.style == "slow-reader" else 65536):
            heard.append(piece)
        return b"".join(heard)

    def client(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(60)
            match self.style:
                case "client-resets":
                    self._say(sock, self.up)
                    assert sock.recv(1) == b"!"
                    reset(sock)
                case "server-resets":
                    self.heard_by_client = read_exactly(sock, len(self.down))
                    sock.sendall(b"!")
                    assert was_reset(sock)
                case "server-half-closes":
                    self.heard_by_client = self._hear(sock)
                    self._say(sock, self.up)
                case "client-half-closes":
                    self._say(sock, self.up)
                    sock.shutdown(socket.SHUT_WR)
                    self.heard_by_client = self._hear(sock)
                case _:
                    with in_background(lambda: self._say_all(sock, self.up)):
                        self.heard_by_client = self._hear(sock)

    def server(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(60)
            match self.style:
                case "client-resets":
                    self.heard_by_server = read_exactly(sock, len(self.up))
                    sock.sendall(b"!")
                    assert was_reset(sock)
                case "server-resets":
                    self._say(sock, self.down)
                    assert sock.recv(1) == b"!"
                    reset(sock)
                case "server-half-closes":
                    self._say(sock, self.down)
                    sock.shutdown(socket.SHUT_WR)
                    self.heard_by_server = self._hear(sock)
                case "client-half-closes":
                    self.heard_by_server = self._hear(sock)
                    self._say(sock, self.down)
                case _:
                    with in_background(lambda: self._say_all(sock, self.down)):
                        self.heard_by_server = self._hear(sock)

    def expected(self) -> tuple[str, int, int]:
        """Close reason, sent bytes and received bytes of its record."""
        match self.style:
            case "client-resets":
                return "downstream_reset", 1, len(self.up)
            case "server-resets":
                return "upstream_reset", len(self.down), 1
            case _:
                return "ok", len(self.down), len(self.up)

    def assert_heard(self) -> None:
        for heard, said in ((self.heard_by_server, self.up), (self.heard_by_client, self.down)):
            if self.style in _CALM or heard:
                assert hashlib.sha256(heard).digest() == hashlib.sha256(said).digest(), self.style


def test_two_hundred_at_once_of_every_kind(way: Way) -> None:
    plans = [_Conversation(seed) for seed in range(_WAVE)]
    listening = [way.listen() for _ in plans]  # a port each, so that each record has its plan
    before = _counters(way)
    connected = threading.Barrier(2 * _WAVE)

    def call(plan: _Conversation, port: int) -> None:
        sock = way.connect(port, timeout_s=60)
        connected.wait(60)
        plan.client(sock)

    def answer(plan: _Conversation, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        connected.wait(60)
        plan.server(sock)

    talks: list[Callable[[], None]] = []
    for plan, (listener, port) in zip(plans, listening, strict=True):
        talks += [functools.partial(call, plan, port), functools.partial(answer, plan, listener)]
    with in_background(*talks):
        pass

    for plan in plans:
        plan.assert_heard()
    expected = {port: plan.expected() for plan, (_, port) in zip(plans, listening, strict=True)}
    for node in way.recorders:
        records = _wait_for_records(way, node, _WAVE)
        seen = {
            int(record["original_destination"].rpartition(":")[2]): (
                record["close_reason"],
                record["sent_bytes"],
                record["received_bytes"],
            )
            for record in records
        }
        assert seen == expected
        assert {name: value - before[node][name] for name, value in _counters(way)[node].items()} == {
            "connections_opened": _WAVE,
            "connections_closed": _WAVE,
            "sent_bytes": sum(sent for _, sent, _ in expected.values()),
            "received_bytes": sum(received for _, _, received in expected.values()),
        }


def _wait_for_records(way: Way, node: int, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]] | None:
        found = way.mesh.records(node, direction=way.recorders[node])
        return found if len(found) >= count else None

    found = wait_for(f"{count} records at agent-{node}", look)
    assert len(found) == count
    return found


def _counters(way: Way) -> dict[int, dict[str, float]]:
    names = ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")
    return {node: {name: way.mesh.metric(node, f"istio_tcp_{name}_total") for name in names} for node in way.recorders}
