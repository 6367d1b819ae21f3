"""Root and intermediate make way for the next while connections come and go, and nobody notices."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest
from cryptography import x509

from tests.mesh_builder import LAB_NAME, ROOT, STATE_DIR, Mesh, Pod, wait_for
from tests.mesh_faults import edited

pytestmark = pytest.mark.mesh

_CA: Final = STATE_DIR / "ca"
_CONFIG: Final = _CA / "ca.toml"
_LIVES: Final = "[ca]\nsvid_ttl_s = 10\nintermediate_lifetime_s = 60\nroot_lifetime_s = 360\n"
_ROTATE: Final = [str(ROOT / "scripts" / "lab"), "ringfence", "ca", "rotate"]
_ENVIRONMENT: Final = {**os.environ, "RINGFENCE_LAB": LAB_NAME}
_PAUSE_S: Final = 0.02
_PORT: Final = 8080


@pytest.fixture
def rotating(mesh: Mesh) -> Iterator[Mesh]:
    """A lab whose keys may be spent; the tests after it get a new one."""
    yield mesh
    mesh.reset()
    mesh.up()


class Load:
    """Short connections without end and long ones that talk all the time, from one pod to another's echo."""

    def __init__(self, client: Pod, server: Pod) -> None:
        self._client, self._server = client, server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._short)]
        self._threads += [threading.Thread(target=self._long, args=(name,)) for name in ("first", "second")]
        self.short = 0
        self.exchanged = 0
        self.failures: list[str] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _short(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            try:
                with self._client.connect(self._server.ipv4, _PORT) as connection:
                    self._echo(connection, b"short")
            except OSError as error:
                self.failures.append(f"short connection {self.short}: {error!r}")
            self.short += 1

    def _long(self, name: str) -> None:
        try:
            with self._client.connect(self._server.ipv6, _PORT) as connection:
                while not self._stop.wait(_PAUSE_S):
                    self._echo(connection, name.encode())
                    self.exchanged += 1
        except OSError as error:
            self.failures.append(f"long connection {name}: {error!r}")

    def _echo(self, connection: socket.socket, text: bytes) -> None:
        connection.sendall(text)
        back = b""
        while len(back) < len(text):
            data = connection.recv(len(text) - len(back))
            if not data:
                raise ConnectionAbortedError(f"ended after {back!r}")
            back += data
        if back != text:
            raise ConnectionAbortedError(f"{back!r} instead of {text!r}")


@contextmanager
def loaded(mesh: Mesh) -> Iterator[list[Load]]:
    """Load in both directions between two nodes."""
    east, west = mesh.pod("east", node=1), mesh.pod("west", node=2)
    for pod in (east, west):
        pod.serve_echo(_PORT)
    with ExitStack() as running:
        yield [running.enter_context(Load(client, server)) for client, server in ((east, west), (west, east))]


def rotate(mesh: Mesh, *arguments: str) -> str:
    return mesh.lab("ringfence", "ca", "rotate", *arguments)


def rotate_fails(*arguments: str) -> str:
    done = subprocess.run(
        [*_ROTATE, *arguments], capture_output=True, text=True, timeout=60, env=_ENVIRONMENT, check=False
    )
    assert done.returncode == 1, done.stdout
    return done.stdout + done.stderr


def ca_status(mesh: Mesh) -> Any:
    return json.loads(mesh.lab("ringfence", "ca", "status", "--json"))


def keys(mesh: Mesh, kind: str) -> dict[str, str]:
    """State -> key identifier, of the keys that are not retired; the newest of several."""
    found = ca_status(mesh)["authorities"]
    return {each["state"]: each["key_id"] for each in found if each["kind"] == kind and each["state"] != "retired"}


def published() -> int:
    return len(x509.load_pem_x509_certificates((_CA / "state" / "bundle.pem").read_bytes()))


def logged(event: str, **fields: str) -> bool:
    """Whether the CA has logged an event with these fields, since the lab is up."""
    lines = [line for line in (_CA / "log").read_text().splitlines() if f'"event": "{event}"' in line]
    return any(json.loads(line).items() >= fields.items() for line in lines)


def test_intermediate_and_root_rotate_under_load_and_no_connection_fails(rotating: Mesh) -> None:
    mesh = rotating
    with edited(_CONFIG, "[ca]\n", _LIVES):
        mesh.lab("restart", "ca")
        with loaded(mesh) as loads:
            rotate(mesh, "intermediate")
            first_root = keys(mesh, "root")["active"]
            _rotate_with_everything_killed(mesh)
            second_root = keys(mesh, "root")["active"]
            assert keys(mesh, "root")["retiring"] == first_root

            # What is under the first root lives for an hour (it is the lab's); under the second one, for seconds.
            rotate(mesh, "root", "--force")
            third_root = keys(mesh, "root")["active"]
            assert len({first_root, second_root, third_root}) == 3

            # Meanwhile the server lets the intermediate of a minute make way for one that it has prepared.
            wait_for("the server's own rotation", lambda: logged("intermediate_activated"), deadline_s=90)
            wait_for("the end of the second root", lambda: logged("key_retired", key_id=second_root), deadline_s=120)
            wait_for("a bundle without it", lambda: published() == 2)
            _wait_for_renewals(mesh)

    for load in loads:
        assert load.failures == []
        assert load.short > 100
        assert load.exchanged > 100
    wait_for("the last record", lambda: not mesh.ringfence(1, "status")["connections"]["open"])
    assert {each["close_reason"] for node in (1, 2) for each in mesh.records(node)} == {"ok"}


def _rotate_with_everything_killed(mesh: Mesh) -> None:
    """Kill the command as soon as the new root is published, and the CA too; then do it again."""
    command = subprocess.Popen([*_ROTATE, "root"], stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT)
    assert command.stdout is not None
    with command:
        assert command.stdout.readline().startswith("published the new root")
        command.kill()
    assert command.returncode == -signal.SIGKILL
    mesh.lab("kill", "ca")
    mesh.lab("start", "ca")
    assert "prepared" in keys(mesh, "root")
    printed = rotate(mesh, "root")
    assert printed.startswith("going on with the new root")
    assert "every live agent trusts the new root" in printed
    assert "was rotated at" in rotate(mesh, "root")  # a third time it has nothing to do


def _serials(mesh: Mesh) -> set[Any]:
    return {row["serial"] for node in (1, 2) for row in mesh.ringfence(node, "certs") if "/sa/" in row["identity"]}


def _wait_for_renewals(mesh: Mesh) -> None:
    """Until every workload's certificate was renewed once more, with what is left."""
    before = _serials(mesh)
    wait_for("renewed certificates", lambda: not before & _serials(mesh), deadline_s=30)


def test_a_rotation_waits_for_agents_that_are_down_and_names_them(rotating: Mesh) -> None:
    mesh = rotating
    east, west = mesh.pod("east", node=1), mesh.pod("west", node=2)
    west.serve_whoami(_PORT)
    before = keys(mesh, "root")["active"]
    with mesh.stopped("agent-2", how="kill"):
        said = rotate_fails("root", "--timeout-s", "4")
        assert "waiting for" in said
        assert "  node-2: " in said
        assert "do not trust the new root yet: node-2; it stays published" in said
        assert keys(mesh, "root")["active"] == before
        assert published() == 2
        assert "--skip-node node-9: no such node is alive; there are node-1, node-2" in rotate_fails(
            "root", "--skip-node", "node-9"
        )
    assert "going on with" in rotate(mesh, "root")
    assert keys(mesh, "root")["retiring"] == before
    assert east.ask_whoami(west.ipv4, _PORT)[0] == "west"


def test_an_agent_that_was_skipped_comes_back_to_the_new_root(rotating: Mesh) -> None:
    mesh = rotating
    east, west = mesh.pod("east", node=1), mesh.pod("west", node=2)
    west.serve_whoami(_PORT)
    with mesh.stopped("agent-2", how="kill"):
        rotate(mesh, "root", "--skip-node", "node-2")
        assert "retiring" in keys(mesh, "root")
    assert east.ask_whoami(west.ipv4, _PORT)[0] == "west"


def test_a_prepared_root_is_withdrawn_from_every_agent(rotating: Mesh) -> None:
    mesh = rotating
    with mesh.stopped("agent-2", how="kill"):
        rotate_fails("root", "--timeout-s", "1")
        assert published() == 2
        rotate(mesh, "root", "--withdraw")
        assert published() == 1
    wait_for("agents that know of it", lambda: all(each["acknowledged"] for each in ca_status(mesh)["agents"]))


def test_a_root_that_was_stolen_is_replaced_at_once_and_nodes_prove_themselves_again(rotating: Mesh) -> None:
    mesh = rotating
    east, west = mesh.pod("east", node=1), mesh.pod("west", node=2)
    for pod in (east, west):
        pod.serve_whoami(_PORT)
    assert east.ask_whoami(west.ipv4, _PORT)[0] == "west"
    rotate(mesh, "root", "--emergency")
    assert published() == 1
    for node in (1, 2):
        token = mesh.lab("ringfence", "ca", "token", "--node", f"node-{node}")
        (STATE_DIR / f"agent-{node}" / "join-token").write_text(token)
    began = time.monotonic()
    wait_for("traffic again, both ways", lambda: _talk(east, west) and _talk(west, east), deadline_s=60)
    print(f"traffic again {time.monotonic() - began:.1f} s after the tokens")
    authorities = {row["state"] for row in ca_status(mesh)["authorities"]}
    assert authorities == {"active", "retired"}


def _talk(client: Pod, server: Pod) -> bool:
    try:
        return client.ask_whoami(server.ipv4, _PORT) != []
    except OSError:
        return False
