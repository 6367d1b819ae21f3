"""Tunnels that an agent with workers accepts are shared, and a stream's own tunnel comes to the worker that has it.

Which worker accepts a connection is chance; a worker that is stopped accepts none, so the other one does.
"""

import os
import secrets
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import ANY

import pytest

from tests.mesh.shared_tunnels.test_a_destination_that_drains import test_it_refuses_what_is_new_and_lets_end_what_runs
from tests.mesh.shared_tunnels.test_moves import (
    own,
    test_a_moved_stream_outlives_the_shared_tunnel,
    test_a_policy_that_changes_cuts_the_stream_where_it_is,
    test_a_stream_has_one_own_tunnel_only,
    test_a_stream_that_moves_loses_nothing,
    test_an_attach_that_belongs_to_nobody_is_refused_and_the_stream_goes_on,
    test_what_was_moved_to_serves_the_next_connection,
)
from tests.mesh_builder import Mesh, wait_for
from tests.mesh_stage import unhurried
from tests.shared_ground import SharedGround, digest, some_bytes
from tests.shared_line import Line
from tests.shared_name import attach_name
from tests.shared_peer import SharedTunnel, attach, attach_payload, exchange
from tests.tunnel_peer import OPEN, TUNNEL_PORT, VERDICT, open_payload

__all__ = [
    "own",
    "test_a_moved_stream_outlives_the_shared_tunnel",
    "test_a_policy_that_changes_cuts_the_stream_where_it_is",
    "test_a_stream_has_one_own_tunnel_only",
    "test_a_stream_that_moves_loses_nothing",
    "test_an_attach_that_belongs_to_nobody_is_refused_and_the_stream_goes_on",
    "test_it_refuses_what_is_new_and_lets_end_what_runs",
    "test_what_was_moved_to_serves_the_next_connection",
]

pytestmark = pytest.mark.mesh

_DESTINATION: Final = 2
_BULK: Final = 400_000


@pytest.fixture(scope="module")
def set_ground(session_mesh: Mesh) -> Iterator[SharedGround]:
    with unhurried(session_mesh) as stage:
        yield SharedGround(stage)


@pytest.fixture
def ground(set_ground: SharedGround) -> Iterator[SharedGround]:
    set_ground.begin_test()
    yield set_ground
    set_ground.end_test()


@pytest.fixture
def tunnel(ground: SharedGround) -> Iterator[SharedTunnel]:
    """A shared tunnel from the peer to the server's agent."""
    with ground.share() as made:
        yield made


def _handovers(mesh: Mesh) -> dict[str, float]:
    return {
        result: mesh.metric(_DESTINATION, "ringfence_worker_handovers_total", result=result)
        for result in ("passed", "returned", "dropped")
    }


def _grown(mesh: Mesh, before: dict[str, float]) -> dict[str, float]:
    return {result: count - before[result] for result, count in _handovers(mesh).items()}


def _holder(ground: SharedGround) -> int:
    """The process of the worker that has the connections of the peer."""
    mesh = ground.stage.mesh
    (worker,) = {row["worker"] for row in mesh.ringfence(_DESTINATION, "connections")}
    return _pids(mesh)[worker]


def _pids(mesh: Mesh) -> dict[int, int]:
    return {row["worker"]: row["pid"] for row in mesh.ringfence(_DESTINATION, "status")["workers"]}


@contextmanager
def _halted(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin ``work`` in a thread; who calls the answer gets what it returns."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(60)
        assert done, "it did not end well"
        return done[0]

    return result


def _serves(ground: SharedGround, line: Line, number: int = 9) -> None:
    """``line`` carries a connection from its beginning to its end."""
    line.send(OPEN, open_payload(**ground.addresses(number)))
    assert line.read() == (VERDICT, 0, ANY)
    assert exchange(line, b"an own tunnel's") == b"an own tunnel's"


# -- whichever worker accepts --------------------------------------------------------------


def test_a_tunnel_that_the_wrong_worker_accepts_comes_to_the_right_one(
    ground: SharedGround, tunnel: SharedTunnel
) -> None:
    mesh = ground.stage.mesh
    streams = [ground.open(tunnel) for _ in range(8)]
    before = _handovers(mesh)
    with _halted(_holder(ground)):
        dialled = [_in_background(ground.dial) for _ in streams]
        wait_for("all of them to be passed on", lambda: _grown(mesh, before)["passed"] == len(streams))
    for number, (stream, line) in enumerate(zip(streams, [each() for each in dialled], strict=True)):
        assert attach(line, attach_payload(tunnel.token, stream.number)) == "ok"
        stream.move()
        stream.wait_until_moved()
        said = some_bytes(_BULK, seed=number)
        assert digest(exchange(line, said)) == digest(said)
        ground.ended(stream, "ok", "-")
    assert _grown(mesh, before) == {"passed": len(streams), "returned": 0, "dropped": 0}
    (worker,) = {record["id"].split(".")[1] for record in mesh.records(_DESTINATION)}
    assert worker, "the same process accounts for all of them"


def test_a_source_that_names_nothing_is_served_by_whoever_accepts(ground: SharedGround, tunnel: SharedTunnel) -> None:
    """As an older one does: ATTACH at the wrong worker is refused, the tunnel is good for connections, no stream harmed."""
    mesh = ground.stage.mesh
    stream = ground.open(tunnel)
    before = _handovers(mesh)
    ground.name = None
    holder = _holder(ground)
    with _halted(holder):
        line = ground.dial()
        assert attach(line, attach_payload(tunnel.token, stream.number)) == "unknown_destination"
        _serves(ground, line)
    other = next(pid for pid in _pids(mesh).values() if pid != holder)
    with _halted(other):
        line = ground.dial()
        assert attach(line, attach_payload(tunnel.token, stream.number)) == "ok"
    ground.echo(stream, b"it has not noticed")
    assert _grown(mesh, before) == {"passed": 0, "returned": 0, "dropped": 0}


def test_a_name_that_nobody_has_is_served_by_whoever_accepts(ground: SharedGround, tunnel: SharedTunnel) -> None:
    mesh = ground.stage.mesh
    before = _handovers(mesh)
    ground.name = attach_name(secrets.token_bytes(16))
    for number in range(6):
        _serves(ground, ground.dial(), number)
    assert _grown(mesh, before) == {"passed": 0, "returned": 6, "dropped": 0}


@pytest.mark.parametrize(
    "name", ["attach.ringfence.internal", f"{'g' * 32}.attach.ringfence.internal", "example.org", "a" * 60 + ".b"]
)
def test_a_name_that_is_none_of_ours_is_not_looked_at(ground: SharedGround, name: str) -> None:
    mesh = ground.stage.mesh
    before = _handovers(mesh)
    ground.name = name
    for number in range(2):
        _serves(ground, ground.dial(), number)
    assert _grown(mesh, before) == {"passed": 0, "returned": 0, "dropped": 0}


def test_a_label_opens_nothing(ground: SharedGround, tunnel: SharedTunnel) -> None:
    """Whoever reads it on the wire comes to the right worker with it, and is asked there what everybody is asked."""
    stream = ground.open(tunnel)
    ground.echo(stream, b"secret")
    for _ in range(4):
        another = ground.dial("another")
        assert attach(another, attach_payload(tunnel.token, stream.number)) == "unknown_destination"
        wrong = ground.dial()
        assert attach(wrong, attach_payload(secrets.token_bytes(16), stream.number)) == "unknown_destination"
    ground.echo(stream, b"untouched")


# -- peers that do not go on, workers that end -------------------------------------------------


def _hello(context: ssl.SSLContext, name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def _sockets(pids: list[int]) -> int:
    """How many sockets these processes have open."""
    found = 0
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found += str(fd.readlink()).startswith("socket:")
            except FileNotFoundError:
                pass  # closed while we looked
    return found


def _settled_sockets(pids: list[int]) -> int:
    """The same, when it has been the same for some looks: what has just ended is closed."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(_sockets(pids))
        return len(seen) > 30 and len(set(seen[-30:])) == 1

    wait_for("nothing to change", look)
    return seen[-1]


def test_who_does_not_go_on_after_the_name_is_dropped_in_time_wherever_it_is(session_mesh: Mesh) -> None:
    with session_mesh.configured(handshake_timeout_s=2.0), unhurried(session_mesh) as stage:
        ground = SharedGround(stage)
        mesh = stage.mesh
        with ground.share() as tunnel:
            stream = ground.open(tunnel)
            ground.echo(stream, b"first")
            pids = mesh.agent_pids(_DESTINATION)
            held = _settled_sockets(pids)
            known, unknown = attach_name(tunnel.token), attach_name(secrets.token_bytes(16))
            for name, result in ((known, "passed"), (unknown, "returned")):
                hello = _hello(ground.context(), name)
                before = _handovers(mesh)
                with _halted(_holder(ground)):
                    silent = [stage.attacker.connect(stage.server.ipv4, TUNNEL_PORT) for _ in range(20)]
                    for each in silent:
                        each.sendall(hello)
                    wait_for("a hop each", lambda: _grown(mesh, before)[result] == 20)  # noqa: B023
                for each in silent:
                    with each:
                        assert _ends(each)
                wait_for("all descriptors to be closed", lambda: _sockets(pids) <= held)
            reasons = {record["close_reason"] for record in mesh.records(_DESTINATION, source_workload=None)}
            assert reasons == {"handshake_timeout"}
            ground.echo(stream, b"and nobody else noticed")


def _ends(connection: socket.socket) -> bool:
    """Reads what the agent says of its handshake, to the end."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_worker_that_is_killed_takes_its_shared_tunnels_along_and_no_name(
    ground: SharedGround, tunnel: SharedTunnel
) -> None:
    mesh = ground.stage.mesh
    ground.echo(ground.open(tunnel), b"first")
    doomed = _holder(ground)
    os.kill(doomed, signal.SIGKILL)
    tunnel.wait_for_the_end()
    before = _handovers(mesh)
    _serves(ground, ground.dial())  # it names a tunnel that is no more
    assert _grown(mesh, before)["passed"] == 0
    with ground.share() as another:
        stream = ground.open(another)
        ground.echo(stream, b"at once")
        line = ground.dial()
        assert attach(line, attach_payload(another.token, stream.number)) == "ok"
    wait_for(
        "another process in its place", lambda: doomed not in _pids(mesh).values() and None not in _pids(mesh).values()
    )
    wait_for("it to be ready", lambda: _states(mesh) == {"ready"})


def _states(mesh: Mesh) -> set[str]:
    return {row["state"] for row in mesh.ringfence(_DESTINATION, "status")["workers"]}


def test_the_end_of_a_shared_tunnel_ends_its_name(ground: SharedGround) -> None:
    mesh = ground.stage.mesh
    with ground.share() as tunnel:
        ground.echo(ground.open(tunnel), b"first")
        holder = _holder(ground)
    wait_for("its connection to end", lambda: not mesh.ringfence(_DESTINATION, "connections"))
    before = _handovers(mesh)
    with _halted(holder):
        _serves(ground, ground.dial())
    assert _grown(mesh, before) == {"passed": 0, "returned": 1, "dropped": 0}
