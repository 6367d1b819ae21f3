"""Tunnels that an agent with workers accepts are shared, and a stream's own tunnel comes to the worker that has it.

Which worker accepts a connection is chance; a worker that is stopped accepts none, so the other one does.
"""

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest.mock import ANY

import pytest

from tests.mesh.shared_tunnels.conftest import ground, set_ground
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
from tests.shared_ground import ANSWERS, SharedGround, digest, some_bytes
from tests.shared_line import Line
from tests.shared_name import attach_name
from tests.shared_peer import SharedTunnel, attach, attach_payload, exchange
from tests.tunnel_peer import OPEN, VERDICT, open_payload
from tests.worker_handovers import DESTINATION, grown, halted, handovers, holder, pids

__all__ = [
    "ground",
    "own",
    "set_ground",
    "test_a_moved_stream_outlives_the_shared_tunnel",
    "test_a_policy_that_changes_cuts_the_stream_where_it_is",
    "test_a_stream_has_one_own_tunnel_only",
    "test_a_stream_that_moves_loses_nothing",
    "test_an_attach_that_belongs_to_nobody_is_refused_and_the_stream_goes_on",
    "test_it_refuses_what_is_new_and_lets_end_what_runs",
    "test_what_was_moved_to_serves_the_next_connection",
]

pytestmark = pytest.mark.mesh

_BULK: Final = 400_000


@pytest.fixture
def tunnel(ground: SharedGround) -> Iterator[SharedTunnel]:
    """A shared tunnel from the peer to the server's agent."""
    with ground.share() as made:
        # The verdict of a stream says that the worker knows of the tunnel, and the record is a moment later: a
        # source can not ask for an own tunnel before, a test could.
        first = ground.open(made, ANSWERS)
        first.finish()
        first.wait_for_end()
        ground.ended(first, "ok", "-")
        ground.stage.begin_test()
        ground.heard.clear()
        yield made


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
    before = handovers(mesh)
    with halted(holder(ground)):
        dialled = [_in_background(ground.dial) for _ in streams]
        wait_for("all of them to be passed on", lambda: grown(mesh, before)["passed"] == len(streams))
    for number, (stream, line) in enumerate(zip(streams, [each() for each in dialled], strict=True)):
        assert attach(line, attach_payload(tunnel.token, stream.number)) == "ok"
        stream.move()
        stream.wait_until_moved()
        said = some_bytes(_BULK, seed=number)
        assert digest(exchange(line, said)) == digest(said)
        ground.ended(stream, "ok", "-")
    assert grown(mesh, before) == {"passed": len(streams), "returned": 0, "dropped": 0}


def test_a_source_that_names_nothing_is_served_by_whoever_accepts(ground: SharedGround, tunnel: SharedTunnel) -> None:
    """As an older one does: ATTACH at the wrong worker is refused, and neither tunnel nor stream is harmed."""
    mesh = ground.stage.mesh
    stream = ground.open(tunnel)
    before = handovers(mesh)
    ground.name = None
    its_holder = holder(ground)
    with halted(its_holder):
        line = ground.dial()
        assert attach(line, attach_payload(tunnel.token, stream.number)) == "unknown_destination"
        _serves(ground, line)
    other = next(pid for pid in pids(mesh).values() if pid != its_holder)
    with halted(other):
        line = ground.dial()
        assert attach(line, attach_payload(tunnel.token, stream.number)) == "ok"
    ground.echo(stream, b"it has not noticed")
    assert grown(mesh, before) == {"passed": 0, "returned": 0, "dropped": 0}


def test_a_name_that_nobody_has_is_served_by_whoever_accepts(ground: SharedGround, tunnel: SharedTunnel) -> None:
    mesh = ground.stage.mesh
    before = handovers(mesh)
    ground.name = attach_name(secrets.token_bytes(16))
    for number in range(6):
        _serves(ground, ground.dial(), number)
    assert grown(mesh, before) == {"passed": 0, "returned": 6, "dropped": 0}


@pytest.mark.parametrize(
    "name", ["attach.ringfence.internal", f"{'g' * 32}.attach.ringfence.internal", "example.org", "a" * 60 + ".b"]
)
def test_a_name_that_is_none_of_ours_is_not_looked_at(ground: SharedGround, name: str) -> None:
    mesh = ground.stage.mesh
    before = handovers(mesh)
    ground.name = name
    for number in range(2):
        _serves(ground, ground.dial(), number)
    assert grown(mesh, before) == {"passed": 0, "returned": 0, "dropped": 0}


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


def test_a_worker_that_is_killed_takes_its_shared_tunnels_along_and_no_name(
    ground: SharedGround, tunnel: SharedTunnel
) -> None:
    mesh = ground.stage.mesh
    ground.echo(ground.open(tunnel), b"first")
    doomed = holder(ground)
    os.kill(doomed, signal.SIGKILL)
    tunnel.wait_for_the_end()
    before = handovers(mesh)
    _serves(ground, ground.dial())  # it names a tunnel that is no more
    assert grown(mesh, before)["passed"] == 0
    with ground.share() as another:
        stream = ground.open(another)
        ground.echo(stream, b"at once")
        line = ground.dial()
        assert attach(line, attach_payload(another.token, stream.number)) == "ok"
    wait_for(
        "another process in its place", lambda: doomed not in pids(mesh).values() and None not in pids(mesh).values()
    )
    wait_for("it to be ready", lambda: _states(mesh) == {"ready"})


def _states(mesh: Mesh) -> set[str]:
    return {row["state"] for row in mesh.ringfence(DESTINATION, "status")["workers"]}


def test_the_end_of_a_shared_tunnel_ends_its_name(ground: SharedGround) -> None:
    mesh = ground.stage.mesh
    with ground.share() as tunnel:
        ground.echo(ground.open(tunnel), b"first")
        its_holder = holder(ground)
    wait_for("its connection to end", lambda: not mesh.ringfence(DESTINATION, "connections"))
    before = handovers(mesh)
    with halted(its_holder):
        _serves(ground, ground.dial())
    assert grown(mesh, before) == {"passed": 0, "returned": 1, "dropped": 0}
