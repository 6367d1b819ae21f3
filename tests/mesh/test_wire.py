"""Point 2: what crosses the link between the nodes for an enrolled destination is TLS 1.3 only.

One scenario of several kinds of traffic runs while the link is recorded; each
test then looks at the same recording.
"""

import itertools
import os
import socket
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import pytest

from labkit import pcap
from labkit.pcap import Flow
from tests.certificates import der
from tests.lab_authority import lab_signer
from tests.mesh_builder import Mesh, Pod, read_all

pytestmark = pytest.mark.mesh

_TUNNEL_PORT: Final = 15008
_CA_PORT: Final = 15012
_ECHO_PORT: Final = 8080
_BANNER_PORT: Final = 8081
_EXCHANGE_PORT: Final = 8082
_WEB_PORT: Final = 8083
_CLOSED_PORT: Final = 9999
_PLAIN_PORT: Final = 7777
_BIG_BYTES: Final = 8 << 20
_ROUNDS: Final = 20


class Canaries:
    """Payloads that would be recognised anywhere: each repeats a random word of its own."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def make(self, size: int = 4096) -> bytes:
        word = os.urandom(8).hex().encode()
        self.words.append(word)
        return word * -(-size // len(word))


@dataclass(frozen=True)
class Recording:
    """The scenario's packets and what was in them before they were encrypted."""

    path: Path
    words: list[bytes]
    plain_word: bytes
    names: list[bytes]
    application_ports: set[int]

    @cached_property
    def packets(self) -> list[pcap.Packet]:
        return list(pcap.packets(self.path))

    @cached_property
    def streams(self) -> dict[Flow, bytes]:
        return pcap.streams(self.packets)

    @cached_property
    def tunnels(self) -> list[Flow]:
        return [flow for flow in pcap.connections(self.packets) if flow.destination_port == _TUNNEL_PORT]


@pytest.fixture(scope="module")
def recording(session_mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("wire") / "link.pcap"
    session_mesh.begin_test()
    canaries = Canaries()
    try:
        with session_mesh.tapped(path):
            plain_word = _scenario(session_mesh, canaries)
    finally:
        session_mesh.reset()
    return Recording(
        path=path,
        words=canaries.words,
        plain_word=plain_word,
        names=[b"spiffe://", b"wire-buyer", b"wire-store"],
        application_ports={_ECHO_PORT, _BANNER_PORT, _EXCHANGE_PORT, _WEB_PORT, _CLOSED_PORT},
    )


def _scenario(mesh: Mesh, canaries: Canaries) -> bytes:
    """Pods come, traffic of several kinds runs in both directions; returns the word that was sent in plaintext."""
    client = mesh.pod("client", node=1, service_account="wire-buyer")
    servers = [
        mesh.pod(f"web-{node}", node=node, service_account="wire-store", labels={"app": "web"}) for node in (1, 2)
    ]
    legacy_client = mesh.pod("legacy-client", node=1, mesh=False)
    legacy = mesh.pod("legacy", node=2, mesh=False)
    for server in servers:
        server.serve_echo(_ECHO_PORT)
        _serve_banner(server, canaries.make())
        _serve_exchange(server, canaries.make(_BIG_BYTES))
        _serve_web(server, canaries.make())
    services = {
        port: mesh.service(f"web-{port}", app="web", port=port + 1000, target_port=port)
        for port in (_ECHO_PORT, _BANNER_PORT, _EXCHANGE_PORT, _WEB_PORT)
    }

    for version, server in itertools.product((0, 1), servers):
        destination = (server.ipv4, server.ipv6)[version]
        _echo(client, destination, _ECHO_PORT, canaries.make())
        _read(client, destination, _BANNER_PORT)
        _exchange(client, destination, _EXCHANGE_PORT, canaries.make(_BIG_BYTES))
        _refused(client, destination, _CLOSED_PORT, canaries.make())
    for version in (0, 1):
        for _ in range(_ROUNDS):
            _echo(client, services[_ECHO_PORT][version], _ECHO_PORT + 1000, canaries.make())
            _read(client, services[_BANNER_PORT][version], _BANNER_PORT + 1000)
        _exchange(client, services[_EXCHANGE_PORT][version], _EXCHANGE_PORT + 1000, canaries.make(1 << 20))
    for _ in range(4):
        word = canaries.make(64).decode()
        url = f"http://web-{_WEB_PORT}:{_WEB_PORT + 1000}/{word}"
        client.run("curl", "-sS", "--fail", "-H", f"Cookie: {word}", "--data", word, "-o", "/dev/null", url)
    # The other way round: a server on node 1, a client on node 2.
    _echo(servers[1], servers[0].ipv4, _ECHO_PORT, canaries.make())
    _echo(servers[1], servers[0].ipv6, _ECHO_PORT, canaries.make())

    # The control: between pods that are not enrolled the tap does see what is sent.
    legacy.serve_echo(_PLAIN_PORT)
    plain = Canaries().make()
    _echo(legacy_client, legacy.ipv4, _PLAIN_PORT, plain)
    return plain[:16]


def _echo(client: Pod, ip: str, port: int, payload: bytes) -> None:
    with client.connect(ip, port) as connection:
        connection.sendall(payload)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == payload


def _read(client: Pod, ip: str, port: int) -> None:
    with client.connect(ip, port) as connection:
        assert len(read_all(connection)) == 4096


def _exchange(client: Pod, ip: str, port: int, payload: bytes) -> None:
    """Send and receive much at the same time."""
    with client.connect(ip, port) as connection:
        sender = threading.Thread(target=_send_and_shut, args=(connection, payload))
        sender.start()
        assert len(read_all(connection)) == _BIG_BYTES
        sender.join()


def _send_and_shut(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(payload)
    connection.shutdown(socket.SHUT_WR)


def _refused(client: Pod, ip: str, port: int, payload: bytes) -> None:
    """A port where nobody listens, and a client that does not wait to hear of it."""
    try:
        with client.connect(ip, port) as connection:
            connection.sendall(payload)
            connection.recv(1)
    except ConnectionError:
        return
    raise AssertionError(f"{ip} port {port} ended without a RST")


def _serve_banner(server: Pod, banner: bytes) -> None:
    server.serve(_BANNER_PORT, lambda connection, _: connection.sendall(banner[:4096]))


def _serve_exchange(server: Pod, payload: bytes) -> None:
    def exchange(connection: socket.socket, _peer: str) -> None:
        sender = threading.Thread(target=_send_and_shut, args=(connection, payload))
        sender.start()
        read_all(connection)
        sender.join()

    server.serve(_EXCHANGE_PORT, exchange)


def _serve_web(server: Pod, body: bytes) -> None:
    def answer(connection: socket.socket, _peer: str) -> None:
        connection.recv(65536)
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)

    server.serve(_WEB_PORT, answer)


def test_the_tap_sees_what_pods_that_are_not_enrolled_say(recording: Recording) -> None:
    assert recording.plain_word in recording.path.read_bytes()
    # client to web-2 and web-2 to web-1, by either IP version: how often each is dialled is the pool's affair.
    assert len({(flow.source, flow.destination) for flow in recording.tunnels}) == 4
    assert sum(map(len, recording.streams.values())) > 4 * _BIG_BYTES


def test_no_byte_of_the_payload_crosses_the_link_in_clear(recording: Recording) -> None:
    everything = recording.path.read_bytes()
    assert len(recording.words) > 60
    assert [word for word in recording.words if word in everything] == []
    # A word might hide where two segments meet.
    joined = list(recording.streams.values())
    assert [word for word in recording.words if any(word in stream for stream in joined)] == []


def test_no_connection_between_nodes_asks_for_an_applications_port(recording: Recording) -> None:
    asked = {flow.destination_port for flow in pcap.connections(recording.packets)}
    assert asked == {_TUNNEL_PORT, _CA_PORT, _PLAIN_PORT}
    touched = {flow.destination_port for flow in (packet.flow for packet in recording.packets)}
    assert not touched & recording.application_ports


def test_tunnels_run_between_pods_on_both_ip_versions_and_in_both_directions(recording: Recording) -> None:
    sources = {flow.source.rpartition("." if "." in flow.source else "::")[0] for flow in recording.tunnels}
    assert sources == {"10.247.1", "10.247.2", "fd52:4647:0:1", "fd52:4647:0:2"}


def test_every_tunnel_offers_and_takes_tls_1_3_only(recording: Recording) -> None:
    for flow in recording.tunnels:
        kind, offered = _hello(recording, flow)
        assert kind == 1
        assert offered[43] == b"\x02\x03\x04", "supported_versions of the ClientHello: TLS 1.3 and nothing else"
        kind, taken = _hello(recording, flow.back)
        assert kind == 2
        assert taken[43] == b"\x03\x04", "supported_versions of the ServerHello"


def test_after_the_hellos_everything_is_encrypted(recording: Recording) -> None:
    for flow in itertools.chain.from_iterable((flow, flow.back) for flow in recording.tunnels):
        kinds = [record.kind for record in pcap.records(recording.streams[flow])]
        assert kinds[0] == pcap.HANDSHAKE
        assert set(kinds[1:]) <= {pcap.CHANGE_CIPHER_SPEC, pcap.APPLICATION_DATA}
        assert kinds.count(pcap.CHANGE_CIPHER_SPEC) <= 1
        assert {record.version for record in pcap.records(recording.streams[flow])[1:]} <= {pcap.TLS_1_2}


def test_nobody_on_the_link_learns_who_talks_to_whom(recording: Recording) -> None:
    """Certificates and the chosen protocol travel encrypted; the offered one is in the ClientHello, as TLS has it."""
    everything = recording.path.read_bytes()
    signer = lab_signer()
    assert [name for name in recording.names if name in everything] == []
    for certificate in signer.signers:
        assert der(certificate)[:64] not in everything
        assert certificate.subject.public_bytes() not in everything
    for flow in recording.tunnels:
        assert b"ringfence" not in recording.streams[flow.back]
        _, extensions = _hello(recording, flow)
        assert 0 not in extensions, "no server name"
        assert recording.streams[flow].count(b"ringfence") == 2, "the offers in the ClientHello"
        assert extensions[16].endswith(b"\x0bringfence/2\x0bringfence/1")


def test_the_ca_is_asked_over_tls_1_3_only(recording: Recording) -> None:
    asked = [flow for flow in pcap.connections(recording.packets) if flow.destination_port == _CA_PORT]
    assert asked, "the pods of the scenario got their identities over the link"
    for flow in asked:
        assert _hello(recording, flow)[1][43] == b"\x02\x03\x04"
        assert _hello(recording, flow.back)[1][43] == b"\x03\x04"


def _hello(recording: Recording, flow: Flow) -> tuple[int, dict[int, bytes]]:
    return pcap.hello(pcap.records(recording.streams[flow])[0])
