"""Point 6: real programs, client and server on different nodes, through a Service where that is how they are used."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests import websocket
from tests.mesh_builder import LAB_NAME, Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

_BIG_BYTES: Final = 64 * 1024 * 1024
_POSTGRES_BIN: Final = max(Path("/usr/lib/postgresql").glob("*/bin"))


class Pair:
    """A client pod and a server pod on different nodes, the second one behind the Service ``server``."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        self.mesh = mesh
        self.client: Pod = mesh.pod("client", node=1, service_account="client")
        self.server: Pod = mesh.pod("server", node=2, service_account="server", labels={"app": "server"})
        self.ipv4, self.ipv6 = mesh.service("server", app="server", port=port, target_port=port)

    def assert_carried(self, least: int, *, reasons: frozenset[str] = frozenset({"ok"})) -> None:
        """At least so many connections, all of them identified at both ends, and no agent complained."""
        for node, direction in ((1, "outbound"), (2, "inbound")):
            records = self._records_of_ended(node, direction, least)
            for record in records:
                assert record["source_identity"] == self.client.identity, record
                assert record["destination_identity"] == self.server.identity, record
                assert record["connection_security_policy"] == "mutual_tls", record
                assert record["close_reason"] in reasons, record
        assert_no_complaints(self.mesh)

    def _records_of_ended(self, node: int, direction: str, least: int) -> list[dict[str, Any]]:
        """All records, once there are ``least`` and no connection is open any more."""

        def look() -> list[dict[str, Any]] | None:
            if self.mesh.ringfence(node, "status")["connections"]["open"]:
                return None
            found = self.mesh.records(node, direction=direction)
            return found if len(found) >= least else None

        return wait_for(f"{least} {direction} connections to end at agent-{node}", look)


def assert_no_complaints(mesh: Mesh) -> None:
    """Nothing above ``info`` in the agents' logs."""
    for node in (1, 2):
        assert [line for line in mesh.log(node) if line.get("level") in {"warning", "error", "critical"}] == []


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that a server's own user may enter, which tmp_path's parent forbids."""
    prefix = f"ringfence-test-{LAB_NAME}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left)  # by a run that was killed
    made = Path(tempfile.mkdtemp(prefix=prefix))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


# -- nginx and curl -------------------------------------------------------------


@pytest.fixture
def web(mesh: Mesh, directory: Path) -> Pair:
    """nginx in the server pod: HTTP/1.1 on 8080, cleartext HTTP/2 on 8081, both with files to get and to put."""
    pair = Pair(mesh, 8080)
    (directory / "files").mkdir()
    _start_nginx(
        pair.server,
        directory,
        f"""
        server {{ listen [::]:8080 ipv6only=off; include {directory}/locations; }}
        server {{ listen [::]:8081 http2 ipv6only=off; include {directory}/locations; }}
        """,
    )
    pair.server.wait_until_open(8080)
    return pair


def _start_nginx(pod: Pod, directory: Path, servers: str) -> None:
    (directory / "locations").write_text(
        f"root {directory}/files; location / {{ dav_methods PUT; client_max_body_size 1g; keepalive_requests 1000; }}\n"
    )
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in _NGINX_TEMPORARY)
    (directory / "nginx.conf").write_text(
        f"""
        user root; daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
        events {{ worker_connections 1024; }}
        http {{ access_log off; {temporary} {servers} }}
        """
    )
    pod.spawn("nginx", "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log"))


_NGINX_TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def test_curl_keeps_one_connection_for_many_requests(web: Pair, directory: Path) -> None:
    (directory / "files" / "page").write_bytes(b"hello\n")

    got = web.client.run(
        "curl", "-sSf", "--max-time", "10", "-w", "%{num_connects}\n", "http://server:8080/page?[1-20]"
    )

    lines = got.stdout.splitlines()
    assert lines[0::2] == [b"hello"] * 20
    assert lines[1::2] == [b"1"] + [b"0"] * 19
    web.assert_carried(1)
    assert len(web.mesh.records(1, direction="outbound")) == 1


def test_curl_http2_with_prior_knowledge(web: Pair, directory: Path) -> None:
    content = os.urandom(8_000_000)
    (directory / "original").write_bytes(content)
    # One transfer a run: curl 7.88 breaks its second one on a connection with prior knowledge, also without us.
    curl = ("curl", "-sSf", "--max-time", "20", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}\n")
    url = f"http://{web.server.ipv4}:8081/file"

    put = web.client.run(*curl, "-T", str(directory / "original"), url)
    got = web.client.run(*curl, "-o", str(directory / "copy"), url)

    assert (put.stdout, got.stdout) == (b"2 201\n", b"2 200\n")
    assert (directory / "copy").read_bytes() == content
    web.assert_carried(2)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_big_upload_and_download_arrive_whole(web: Pair, directory: Path, version: str) -> None:
    original = directory / "original"
    with original.open("wb") as file:
        for _ in range(_BIG_BYTES // (1 << 20)):
            file.write(os.urandom(1 << 20))
    host = f"[{web.ipv6}]" if version == "ipv6" else web.ipv4
    url = f"http://{host}:8080/big"

    web.client.run("curl", "-sSf", "--max-time", "60", "-T", str(original), url)
    web.client.run("curl", "-sSf", "--max-time", "60", "-o", str(directory / "copy"), url)

    digests = [_sha256(path) for path in (original, directory / "files" / "big", directory / "copy")]
    assert digests == [digests[0]] * 3
    web.assert_carried(2)
    upload, download = sorted(web.mesh.records(1, direction="outbound"), key=lambda each: int(each["sent_bytes"]))
    assert upload["received_bytes"] > _BIG_BYTES
    assert download["sent_bytes"] > _BIG_BYTES


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_websocket_behind_nginx(mesh: Mesh, directory: Path) -> None:
    """client (node 1) > nginx (node 2) > backend (node 1): two tunnels, two identities more."""
    pair = Pair(mesh, 8080)
    backend = mesh.pod("backend", node=1, service_account="backend", labels={"app": "backend"})
    backend.serve(9000, lambda connection, _peer: websocket.serve_echo(connection))
    mesh.service("backend", app="backend", port=80, target_port=9000)
    _start_nginx(
        pair.server,
        directory,
        """
        server {
            listen 8080;
            location /chat {
                proxy_pass http://backend:80; proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
            }
        }
        """,
    )
    pair.server.wait_until_open(8080)

    with pair.client.connect(pair.ipv4, 8080) as connection:
        peer = websocket.connect(connection, host="server", path="/chat")
        for opcode, message in (
            (websocket.TEXT, "grüße".encode()),
            (websocket.BINARY, os.urandom(1)),
            (websocket.BINARY, os.urandom(1000)),
            (websocket.BINARY, os.urandom(1_000_000)),
            (websocket.TEXT, b""),
        ):
            peer.send(opcode, message)
            assert peer.receive() == (opcode, message)
        peer.send(websocket.PING, b"still there?")
        assert peer.receive() == (websocket.PONG, b"still there?")
        peer.send(websocket.CLOSE, b"\x03\xe8")
        assert peer.receive() == (websocket.CLOSE, b"\x03\xe8")

    first = mesh.record(1, direction="outbound", source_workload="default/client")
    second = mesh.record(2, direction="outbound", source_workload="default/server")
    for record, source, destination in ((first, pair.client, pair.server), (second, pair.server, backend)):
        assert record["source_identity"] == source.identity
        assert record["destination_identity"] == destination.identity
        assert record["connection_security_policy"] == "mutual_tls"
        assert record["received_bytes"] > 1_000_000
        assert record["sent_bytes"] > 1_000_000
    assert_no_complaints(mesh)


# -- databases --------------------------------------------------------------------


def test_postgresql_under_pgbench(mesh: Mesh, directory: Path) -> None:
    pair = Pair(mesh, 5432)
    data = directory / "data"
    shutil.chown(directory, "postgres", "postgres")
    as_postgres = ("runuser", "-u", "postgres", "--")
    subprocess.run(
        [*as_postgres, _POSTGRES_BIN / "initdb", "-D", data, "--auth=trust", "--no-sync", "--locale=C"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")
    settings = {"listen_addresses": "*", "unix_socket_directories": "", "fsync": "off", "max_connections": "40"}
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    pair.server.spawn(*as_postgres, str(_POSTGRES_BIN / "postgres"), "-D", str(data), *options, cwd="/")

    def accepts() -> bool:
        return pair.client.run("pg_isready", "-q", "-h", "server", "-U", "postgres", check=False).returncode == 0

    wait_for("PostgreSQL to accept connections", accepts)
    database = ("-h", "server", "-U", "postgres", "postgres")

    pair.client.run("pgbench", "-i", "-q", *database)
    ran = pair.client.run("pgbench", "-c", "8", "-j", "2", "-T", "3", *database).stdout.decode()
    asked = pair.client.run("psql", "-Atc", "select count(*) from pgbench_history", *database).stdout

    processed = re.search(r"number of transactions actually processed: (\d+)", ran)
    assert processed is not None, ran
    assert int(processed[1]) == int(asked) > 100
    assert "number of failed transactions: 0 " in ran
    # pg_isready looks and leaves; a connect before the server listens is refused
    pair.assert_carried(10, reasons=frozenset({"ok", "connect_refused"}))


def test_redis_under_benchmark_and_publish_subscribe(mesh: Mesh, directory: Path) -> None:
    pair = Pair(mesh, 6379)
    pair.server.spawn(
        *("redis-server", "--save", "", "--appendonly", "no", "--dir", str(directory)),
        *("--protected-mode", "no", "--bind", "*", "-::*"),
    )
    pair.server.wait_until_open(6379)

    done = pair.client.run("redis-benchmark", "-h", "server", "-c", "50", "-n", "20000", "-q", "-t", "get,set,lpush")
    rates = re.findall(rb"(\w+): ([\d.]+) requests per second", done.stdout)
    assert [name for name, _ in rates] == [b"SET", b"GET", b"LPUSH"]
    assert all(float(rate) > 0 for _, rate in rates)

    listener = pair.client.spawn("redis-cli", "-h", "server", "subscribe", "news", stdout=subprocess.PIPE)
    assert listener.stdout is not None
    assert [listener.stdout.readline() for _ in range(3)] == [b"subscribe\n", b"news\n", b"1\n"]
    told = [f"message {number}".encode() for number in range(20)]
    for message in told:
        assert pair.client.run("redis-cli", "-h", "server", "publish", "news", message.decode()).stdout == b"1\n"
    heard = [[listener.stdout.readline() for _ in range(3)] for _ in told]
    assert heard == [[b"message\n", b"news\n", message + b"\n"] for message in told]
    listener.terminate()
    listener.wait()

    pair.assert_carried(3 * 50 + 1 + len(told))


# -- bulk and shells --------------------------------------------------------------


# Not --bidir: it tells its two data connections apart by the order in which they arrive, which nobody promises.
@pytest.mark.parametrize("ways", [["up"], ["down"], ["up", "down"]], ids=["up", "down", "both"])
def test_iperf3(mesh: Mesh, ways: list[str]) -> None:
    pair = Pair(mesh, 5201)
    hosts = {5201: "server", 5202: pair.server.ipv4}
    ports = dict(zip(ways, hosts, strict=False))
    for port in ports.values():
        pair.server.spawn("iperf3", "-s", "-p", str(port))
    # Looked up, not connected to: iperf3 would take that for a test.
    listening = f"sport = :{' or sport = :'.join(map(str, ports.values()))}"
    wait_for(
        "iperf3 to listen",
        lambda: len(pair.server.run("ss", "-ltnH", listening).stdout.splitlines()) == len(ports),
    )

    loads = {}
    for way, port in ports.items():
        reverse = ["-R"] if way == "down" else []
        loads[way] = pair.client.spawn(
            "iperf3", "-c", hosts[port], "-p", str(port), "-t", "1", "-J", *reverse, stdout=subprocess.PIPE
        )
    for way, load in loads.items():
        output, _ = load.communicate(timeout=60)
        result = json.loads(output)
        assert "error" not in result, (way, result)
        print(f"iperf3 {way}: {result['end']['sum_received']['bits_per_second'] / 1e6:.0f} Mbit/s")
        assert result["end"]["sum_received"]["bytes"] > 1e6
    # At the end of its time iperf3 closes with bytes unread: a reset, at either side.
    resets = frozenset({"ok", "upstream_reset", "downstream_reset"})
    pair.assert_carried(2 * len(ways), reasons=resets)


def test_ssh_runs_a_command_and_scp_copies_a_file(mesh: Mesh, directory: Path) -> None:
    pair = Pair(mesh, 2222)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    host_key = (directory / "host.pub").read_text()
    (directory / "known_hosts").write_text(f"[server]:2222 {host_key}")
    (directory / "sshd_config").write_text(
        f"Port 2222\nHostKey {directory}/host\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
        f"PasswordAuthentication no\nAuthorizedKeysFile {directory}/user.pub\nSubsystem sftp internal-sftp\n"
    )
    pair.server.spawn("/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd_config"))
    pair.server.wait_until_open(2222)
    options = [
        *("-F", "none", "-i", str(directory / "user"), "-o", f"UserKnownHostsFile={directory}/known_hosts"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    ]

    said = pair.client.run(
        "ssh", *options, "-p", "2222", "root@server", "hostname; cat; exit 7", stdin=b"in", check=False
    )
    assert (said.stdout, said.returncode) == (b"server\nin", 7), said.stderr

    (directory / "original").write_bytes(os.urandom(5_000_000))
    pair.client.run("scp", *options, "-q", "-P", "2222", f"{directory}/original", f"root@server:{directory}/copy")
    assert (directory / "copy").read_bytes() == (directory / "original").read_bytes()

    pair.assert_carried(2)
