"""Point 5: what one application does with its socket is what the other one sees: ends, resets, refusals."""

import select
import socket
import subprocess

import pytest

from tests.background import in_background
from tests.faithful import KINDS, Ground, Way, read_exactly, reset, was_reset
from tests.mesh_builder import in_namespace, read_all, wait_for

pytestmark = pytest.mark.mesh


def test_client_that_shuts_its_side_still_receives_the_reply(way: Way) -> None:
    client, server, port = way.open()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"question"
    for number in range(5):
        server.sendall(b"answer %d;" % number)
    server.close()
    assert read_all(client) == b"answer 0;answer 1;answer 2;answer 3;answer 4;"
    client.close()
    way.assert_closed(port, "ok", sent=45, received=8)


def test_server_that_shuts_its_side_still_hears_the_client(way: Way) -> None:
    client, server, port = way.open()
    server.sendall(b"enough of me")
    server.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"enough of me"
    for number in range(5):
        client.sendall(b"more %d;" % number)
    client.close()
    assert read_all(server) == b"more 0;more 1;more 2;more 3;more 4;"
    server.close()
    way.assert_closed(port, "ok", sent=12, received=35)


def test_half_closed_connection_stays_open(way: Way) -> None:
    client, server, port = way.open()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert select.select([client], [], [], 0.3)[0] == []
    server.sendall(b"late")
    assert client.recv(10) == b"late"
    server.close()
    assert client.recv(10) == b""
    client.close()
    way.assert_closed(port, "ok", sent=4, received=0)


def test_server_that_speaks_first_is_heard_without_delay(way: Way) -> None:
    listener, port = way.listen()
    way.connect(port).close()  # the tunnel and the path are warm now
    listener.accept()[0].close()
    client = way.connect(port)
    server, _ = listener.accept()
    with server:
        server.sendall(b"220 ready\r\n")
        assert client.recv(100) == b"220 ready\r\n"  # a proxy that waits for the client's first bytes waits for ever


def test_server_sees_the_address_and_the_end_of_a_client_that_says_nothing(way: Way) -> None:
    listener, port = way.listen()
    client = way.connect(port)
    server, address = listener.accept()
    with server:
        server.settimeout(60)
        assert address[0].removeprefix("::ffff:") == way.client_ip
        client.close()
        assert server.recv(1) == b""
    way.assert_closed(port, "ok", sent=0, received=0)


def test_reset_by_the_client_is_a_reset_at_the_server(way: Way) -> None:
    client, server, port = way.open()
    client.sendall(b"half a requ")
    assert read_exactly(server, 11) == b"half a requ"
    reset(client)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    way.assert_closed(port, "downstream_reset", sent=0, received=11)


def test_reset_by_the_server_is_a_reset_at_the_client(way: Way) -> None:
    client, server, port = way.open()
    server.sendall(b"half a repl")
    assert read_exactly(client, 11) == b"half a repl"
    reset(server)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    way.assert_closed(port, "upstream_reset", sent=11, received=0)


@pytest.mark.parametrize("by_server", [False, True], ids=["by-client", "by-server"])
def test_reset_behind_bytes_is_never_a_clean_end(way: Way, by_server: bool) -> None:
    client, server, port = way.open()
    one, other = (server, client) if by_server else (client, server)
    other.sendall(b"go")
    assert read_exactly(one, 2) == b"go"
    one.sendall(b"x" * 100_000)
    reset(one)
    assert was_reset(other)
    way.assert_closed(port, "upstream_reset" if by_server else "downstream_reset")


@pytest.mark.parametrize("by_server", [False, True], ids=["by-client", "by-server"])
def test_reset_after_a_half_close_is_a_reset(way: Way, by_server: bool) -> None:
    client, server, port = way.open()
    one, other = (server, client) if by_server else (client, server)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    reset(one)
    wait_for("POLLERR", lambda: _is_broken(other))
    way.assert_closed(port, "upstream_reset" if by_server else "downstream_reset")


@pytest.mark.parametrize("by_server", [False, True], ids=["by-client", "by-server"])
def test_reset_against_a_stream_of_bytes_is_named_as_one(way: Way, by_server: bool) -> None:
    """A download that is given up, an upload that is refused: the ordinary resets."""
    client, server, port = way.open()
    one, other = (server, client) if by_server else (client, server)

    def flood() -> None:
        try:
            while True:
                other.sendall(b"x" * 65536)
        except (ConnectionResetError, BrokenPipeError):
            pass

    with in_background(flood):
        read_exactly(one, 4_000_000)
        reset(one)
    way.assert_closed(port, "upstream_reset" if by_server else "downstream_reset")


@pytest.mark.parametrize("by_server", [False, True], ids=["client", "server"])
@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_reset_leaves_the_tunnel_for_the_next_connection(ground: Ground, half_closed: bool, by_server: bool) -> None:
    """A client that hangs up in the middle is ordinary; a handshake for each would be dear."""

    def idle_tunnels() -> float:
        wait_for("no tunnel to be busy", lambda: ground.mesh.metric(1, "ringfence_tunnels_busy") == 0)
        return ground.mesh.metric(1, "ringfence_tunnels_idle")

    way = ground.way("tunnel", "ipv4")
    way.open().client.close()
    ground.close_sockets()
    before = idle_tunnels()
    for _ in range(5):
        client, server, port = way.open()
        one, other = (server, client) if by_server else (client, server)
        client.sendall(b"bytes on their way")
        if half_closed:
            one.shutdown(socket.SHUT_WR)
        reset(one)
        assert was_reset(other) or half_closed
        other.close()
        way.records(port)
        assert idle_tunnels() == before


def test_reset_reaches_a_server_that_does_not_read(way: Way) -> None:
    client, server, port = way.open()
    client.settimeout(0.3)
    blocks = bytes(1 << 30)
    with pytest.raises(TimeoutError):
        client.sendall(blocks)
    reset(client)
    wait_for("POLLERR", lambda: _is_broken(server))
    for record in way.records(port):
        # Behind bytes that nobody takes no RESET frame gets through in time; that it was no clean end does.
        assert record["close_reason"] in ("downstream_reset", "tunnel_lost")


def test_closed_port_resets_the_client_and_says_so(way: Way) -> None:
    listener, port = way.listen()
    listener.close()
    with pytest.raises((ConnectionResetError, ConnectionRefusedError)):
        way.connect(port).recv(1)
    way.assert_closed(port, "connect_refused", sent=0, received=0)


def test_application_that_accepts_nothing_ends_in_a_connect_timeout(ground: Ground) -> None:
    """A full backlog: the kernel drops every SYN."""
    ways = [ground.way(kind, version) for kind in KINDS for version in ("ipv4", "ipv6")]
    connections = []
    for way in ways:
        _, port = way.listen(backlog=0)
        in_namespace(way.server.netns, lambda: _fill_backlog(ground, port))  # noqa: B023
        connections.append((way, port, way.connect(port)))
    for way, port, connection in connections:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        way.assert_closed(port, "connect_timeout", sent=0, received=0)


def _fill_backlog(ground: Ground, port: int) -> None:
    for _ in range(4):
        filler = ground.keep(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))


def _is_broken(sock: socket.socket) -> bool:
    watch = select.poll()
    watch.register(sock, 0)
    return bool(watch.poll(0))


def test_netcat_half_closes_and_hears_the_reply(way: Way) -> None:
    listener, port = way.listen()

    def serve() -> None:
        server, _ = listener.accept()
        with server:
            server.sendall(b"%d bytes" % len(read_all(server)))

    with in_background(serve):
        done = way.client.run("nc", "-N", way.ip, str(port), stdin=b"y" * 300_000)
    assert done.stdout == b"300000 bytes"
    way.assert_closed(port, "ok", sent=12, received=300_000)


def test_netcat_as_a_server_half_closes_and_hears_the_rest(way: Way) -> None:
    listener, port = way.listen()
    listener.close()
    server = way.server.spawn(
        "nc", "-N", *(["-6"] if ":" in way.ip else []), "-l", str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(b"banner")
    server.stdin.close()
    listening = ["ss", "-Hltn", f"sport = :{port}"]
    wait_for("netcat to listen", lambda: way.server.run(*listening).stdout)
    client = way.connect(port)
    assert read_all(client) == b"banner"
    client.sendall(b"z" * 300_000)
    client.close()
    assert server.stdout.read() == b"z" * 300_000
    assert server.wait(60) == 0
    way.assert_closed(port, "ok", sent=6, received=300_000)


def test_urgent_byte_stays_in_the_stream(way: Way) -> None:
    client, server, port = way.open()
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    client.close()
    assert read_all(server) == b"before!after"
    server.close()
    way.assert_closed(port, "ok", sent=0, received=12)


def test_urgent_byte_of_the_server_stays_in_the_stream(way: Way) -> None:
    client, server, port = way.open()
    server.sendall(b"before")
    server.send(b"!", socket.MSG_OOB)
    server.sendall(b"after")
    server.close()
    assert read_all(client) == b"before!after"
    client.close()
    way.assert_closed(port, "ok", sent=12, received=0)


@pytest.mark.parametrize("node", [1, 2])
def test_agent_that_is_killed_resets_both_ends_of_what_it_carried(ground: Ground, node: int) -> None:
    """The kernel closes the sockets of a killed process; with FIN, half a stream would look whole."""
    ways = [ground.way(kind, "ipv4") for kind in KINDS]
    carried = [way.open() for way in ways if node in way.recorders]
    for client, server, _ in carried:
        client.sendall(b"half a question")
        assert read_exactly(server, 15) == b"half a question"
        server.sendall(b"half an answer")
        assert read_exactly(client, 14) == b"half an answer"
    with ground.killed(node):
        for client, server, _ in carried:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            with pytest.raises(ConnectionResetError):
                server.recv(1)
