"""Peers that name a shared tunnel and do not shake hands are dropped in time; without sharing nobody looks at names."""

import secrets
import socket
import ssl
from pathlib import Path

import pytest

from tests.mesh_builder import Mesh, wait_for
from tests.mesh_stage import unhurried
from tests.shared_ground import SharedGround
from tests.shared_name import attach_name
from tests.shared_peer import exchange
from tests.tunnel_peer import OPEN, TUNNEL_PORT, VERDICT, open_payload
from tests.worker_handovers import DESTINATION, grown, halted, handovers, holder

pytestmark = pytest.mark.mesh


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
            pids = mesh.agent_pids(DESTINATION)
            held = _settled_sockets(pids)
            known, unknown = attach_name(tunnel.token), attach_name(secrets.token_bytes(16))
            for name, result in ((known, "passed"), (unknown, "returned")):
                hello = _hello(ground.context(), name)
                before = handovers(mesh)
                with halted(holder(ground)):
                    silent = [stage.attacker.connect(stage.server.ipv4, TUNNEL_PORT) for _ in range(20)]
                    for each in silent:
                        each.sendall(hello)
                    wait_for("a hop each", lambda: grown(mesh, before)[result] == 20)  # noqa: B023
                for each in silent:
                    with each:
                        assert _ends(each)
                wait_for("all descriptors to be closed", lambda: _sockets(pids) <= held)
            reasons = {record["close_reason"] for record in mesh.records(DESTINATION, source_workload=None)}
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


def test_sharing_that_is_switched_off_is_off_in_every_worker(session_mesh: Mesh) -> None:
    with session_mesh.configured(share_tunnels="false"), unhurried(session_mesh) as stage:
        ground = SharedGround(stage)
        ground.name = attach_name(secrets.token_bytes(16))
        before = handovers(stage.mesh)
        for number in range(4):
            line = ground.dial()
            assert line.protocol == "ringfence/1"
            line.send(OPEN, open_payload(**ground.addresses(number)))
            got = line.read()
            assert got is not None
            assert got.kind == VERDICT
            assert exchange(line, b"an own tunnel's") == b"an own tunnel's"
        assert grown(stage.mesh, before) == {"passed": 0, "returned": 0, "dropped": 0}, "nobody looks"
        stage.good_connection()
        assert stage.mesh.metrics(1)["ringfence_tunnels_shared"] == 0
        ground.end_test()
