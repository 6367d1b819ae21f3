"""[relay] sockmap in a real agent: what the kernel relays is recorded, counted, cut and drained like the rest."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.relay.sockmap_flow import CALM_READS
from tests.mesh_builder import STATE_DIR, Mesh, Pod, read_all, wait_for
from tests.relay_builder import reset, was_reset
from tests.sockmap_builder import read_exactly

pytestmark = pytest.mark.mesh

_PORT = 8080
_DEADLINE_S = 60.0
_ROUNDS = 50
_MESSAGE = b"a small message."
_TAKEN = "ringfence_sockmap_taken_total"
_LOST = "ringfence_sockmap_demotions_total"
_DENY = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: default}
spec: {action: DENY, rules: [{}]}
"""
_IDLE = """apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {name: outside}
spec:
  targetRef: {kind: Service, name: outside}
  timeouts: {idle: 3s}  # a busy machine lets no moment of that length pass between two messages
"""


class _Stage:
    """Node 1's agent relays in the kernel; ``inner`` is in the mesh, ``outer`` is not."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.inner = mesh.pod("inner", node=1)
        self.outer = mesh.pod("outer", node=2, mesh=False, labels={"app": "outside"})
        self._sockets: list[socket.socket] = []

    def open(self, client: Pod, server: Pod, *, ip: str | None = None, port: int = _PORT) -> "_Ends":
        """A connection that the kernel relays."""
        with server.listen(_PORT) as listener:
            one = client.connect(server.ipv4 if ip is None else ip, port, timeout_s=_DEADLINE_S)
            listener.settimeout(_DEADLINE_S)
            other, _ = listener.accept()
        other.settimeout(_DEADLINE_S)
        self._sockets += [one, other]
        ends = _Ends(one, other)
        before = self.mesh.metric(1, _TAKEN)

        def is_taken() -> bool:
            ends.talk(CALM_READS)
            return self.mesh.metric(1, _TAKEN) >= before + 2

        wait_for("the kernel to relay", is_taken, deadline_s=_DEADLINE_S)
        return ends

    def entries(self) -> dict[str, int]:
        maps = self.mesh.ringfence(1, "bpf", "status")["maps"]
        return {
            each["name"]: each["entries"]
            for each in maps
            if each["name"] in ("sockmap_sources", "sockmap_sinks", "sockmap_slots")
        }

    def close_sockets(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()


class _Ends:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.rounds = 0

    @property
    def bytes(self) -> int:
        """Each way."""
        return self.rounds * len(_MESSAGE)

    def talk(self, rounds: int) -> None:
        for _ in range(rounds):
            self.client.sendall(_MESSAGE)
            assert read_exactly(self.server, len(_MESSAGE)) == _MESSAGE
            self.server.sendall(_MESSAGE)
            assert read_exactly(self.client, len(_MESSAGE)) == _MESSAGE
        self.rounds += rounds


def _configure(mesh: Mesh, path: Path, text: str) -> None:
    path.write_text(text)
    mesh.lab("restart", "agent-1")


@pytest.fixture(scope="module")
def laid_out(session_mesh: Mesh) -> Iterator[_Stage]:
    path = STATE_DIR / "agent-1" / "agent.toml"
    before = path.read_text()
    wanted = f"{before}\n[relay]\nsockmap = true\n"
    session_mesh.begin_test()
    try:
        _configure(session_mesh, path, re.sub(r"workers = \d+", "workers = 2", wanted))
        (why,) = session_mesh.ringfence(1, "status")["warnings"]
        assert "[relay] sockmap = true can not be had, plaintext is relayed by the agent: it needs" in why
        assert "[agent] workers = 1" in why
        session_mesh.lab("ringfence", "1", "bpf", "load")
        _configure(session_mesh, path, re.sub(r"workers = \d+", "workers = 1", wanted))
        assert session_mesh.ringfence(1, "status")["warnings"] == []
        yield _Stage(session_mesh)
    finally:
        session_mesh.reset()
        _configure(session_mesh, path, before)
        if session_mesh.capture == "inpod":
            session_mesh.lab("ringfence", "1", "bpf", "unload")


@pytest.fixture
def stage(laid_out: _Stage) -> Iterator[_Stage]:
    laid_out.mesh.begin_test()
    yield laid_out
    laid_out.close_sockets()
    wait_for("the maps to be empty", lambda: set(laid_out.entries().values()) == {0}, deadline_s=_DEADLINE_S)


def test_what_comes_and_what_goes_is_relayed_in_the_kernel_and_recorded_to_the_byte(stage: _Stage) -> None:
    for client, server, direction in (
        (stage.inner, stage.outer, "outbound"),
        (stage.outer, stage.inner, "inbound"),
    ):
        ends = stage.open(client, server)
        ends.talk(_ROUNDS)
        (shown,) = stage.mesh.ringfence(1, "connections")
        assert (shown["sent_bytes"], shown["received_bytes"]) == (ends.bytes, ends.bytes)
        assert stage.mesh.metric(1, "ringfence_sockmap_connections") == 1
        assert stage.mesh.metric(1, "ringfence_sockmap_directions") == 2
        ends.client.shutdown(socket.SHUT_WR)
        assert ends.server.recv(1) == b""
        ends.server.sendall(b"the last word")
        ends.server.close()
        assert read_all(ends.client) == b"the last word"
        ends.client.close()
        record = stage.mesh.record(1, direction=direction)
        assert record["close_reason"] == "ok"
        assert record["connection_security_policy"] == "none"
        assert (record["received_bytes"], record["sent_bytes"]) == (ends.bytes, ends.bytes + len(b"the last word"))
    assert stage.mesh.metric(1, _LOST) == 0


def test_resets_are_carried(stage: _Stage) -> None:
    first = stage.open(stage.inner, stage.outer)
    reset(first.client)
    assert was_reset(first.server)
    assert stage.mesh.record(1, close_reason="downstream_reset")["sent_bytes"] == first.bytes
    second = stage.open(stage.inner, stage.outer)
    reset(second.server)
    assert was_reset(second.client)
    assert stage.mesh.record(1, close_reason="upstream_reset")["received_bytes"] == second.bytes


def test_a_policy_cuts_it(stage: _Stage) -> None:
    ends = stage.open(stage.outer, stage.inner)
    with stage.mesh.applied(_DENY):
        assert was_reset(ends.client)
        assert was_reset(ends.server)
        record = stage.mesh.record(1, direction="inbound")
        assert record["close_reason"] == "policy_denied"
        assert (record["received_bytes"], record["sent_bytes"]) == (ends.bytes, ends.bytes)


def test_what_moves_in_the_kernel_is_not_idle_and_what_does_not_is(stage: _Stage) -> None:
    service, _ = stage.mesh.service("outside", app="outside", port=80, target_port=_PORT)
    stage.mesh.apply(_IDLE)
    idle = stage.open(stage.inner, stage.outer, ip=service, port=80)
    busy = stage.open(stage.inner, stage.outer, ip=service, port=80)

    def is_cut() -> bool:
        busy.talk(1)
        return bool(stage.mesh.records(1, close_reason="idle_timeout"))

    wait_for("the idle one to be cut", is_cut, deadline_s=_DEADLINE_S)
    assert was_reset(idle.client)
    assert was_reset(idle.server)
    assert stage.mesh.record(1, close_reason="idle_timeout")["sent_bytes"] == idle.bytes
    busy.talk(1)


def test_an_agent_that_is_told_to_go_lets_it_end_and_one_that_is_killed_leaves_nothing(stage: _Stage) -> None:
    ends = stage.open(stage.inner, stage.outer)
    stopping = _in_thread(lambda: stage.mesh.lab("stop", "agent-1"))
    wait_for("the agent to drain", lambda: _is_closed(stage.inner, stage.outer), deadline_s=_DEADLINE_S)
    ends.talk(_ROUNDS)
    ends.client.close()
    assert read_all(ends.server) == b""
    ends.server.close()
    stopping.join(_DEADLINE_S)
    record = stage.mesh.record(1, original_destination=f"{stage.outer.ipv4}:{_PORT}")
    assert (record["close_reason"], record["received_bytes"]) == ("ok", ends.bytes)
    assert set(stage.entries().values()) == {0}
    stage.mesh.lab("start", "agent-1")

    wait_for("inner to be served", lambda: not _is_closed(stage.inner, stage.outer), deadline_s=_DEADLINE_S)
    ends = stage.open(stage.inner, stage.outer)
    stage.mesh.lab("kill", "agent-1")
    assert was_reset(ends.client)
    assert was_reset(ends.server)
    left = stage.entries()
    assert (left["sockmap_sources"], left["sockmap_sinks"]) == (0, 0)
    stage.mesh.lab("start", "agent-1")


def _in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def _is_closed(client: Pod, server: Pod) -> bool:
    """Whether nobody accepts what ``client`` opens."""
    with server.listen(_PORT + 1):
        try:
            client.connect(server.ipv4, _PORT + 1, timeout_s=_DEADLINE_S).close()
        except ConnectionError:
            return True
    return False
