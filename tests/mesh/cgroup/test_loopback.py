"""The loopback is programs among themselves; to speak *from* it is no way round the agent to a workload's address."""

import socket
import threading
from contextlib import suppress
from typing import Final

import pytest

from tests.mesh_builder import Mesh, Pod
from tests.welcoming import WELCOME, welcome_all

pytestmark = pytest.mark.mesh

_PORT: Final = 8080


def _is_welcomed(node: Pod, to: str, *, source: str, timeout_s: float) -> bool:
    def ask() -> bool:
        with (
            suppress(OSError),
            socket.create_connection((to, _PORT), timeout=timeout_s, source_address=(source, 0)) as connection,
        ):
            return connection.recv(len(WELCOME)) == WELCOME
        return False

    return node.inside(ask)


def test_a_program_of_the_node_that_speaks_from_the_loopback_does_not_get_round_the_agent(mesh: Mesh) -> None:
    server = mesh.pod("server", node=2, service_account="server")
    neighbour = mesh.pod("neighbour", node=2, service_account="neighbour")
    node = mesh.node(2)
    with server.listen(_PORT) as listener:  # on every address of the node
        thread = threading.Thread(target=welcome_all, args=(listener,), daemon=True)
        thread.start()
        for loopback in ("127.0.0.1", "::1"):
            assert _is_welcomed(node, loopback, source=loopback, timeout_s=60), "programs among themselves"
        for loopback, way_round in (("127.0.0.1", node.ipv4), ("127.9.9.9", node.ipv4), ("::1", node.ipv6)):
            assert not _is_welcomed(node, way_round, source=loopback, timeout_s=0.5), "packets are dropped"
        # Judged by the neighbour's policies, so nothing for the server; the agent is sent on with the client's address.
        assert not _is_welcomed(node, neighbour.ipv4, source="127.0.0.1", timeout_s=0.5)
        assert _is_welcomed(node, server.ipv4, source="127.0.0.1", timeout_s=60), "through the agent"
        record = mesh.record(2, direction="inbound", destination_workload="default/server")
        assert record["connection_security_policy"] == "none"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
