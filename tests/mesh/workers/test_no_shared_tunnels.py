"""An agent with workers accepts no shared tunnels: an ATTACH could come to another process than the stream is in."""

from contextlib import closing

import pytest

from tests.lab_authority import lab_signer
from tests.mesh_builder import Mesh
from tests.shared_peer import dial_line, exchange, shared_context
from tests.tunnel_peer import OPEN, VERDICT, open_payload

pytestmark = pytest.mark.mesh


def test_the_peer_offers_both_versions_and_gets_the_first(mesh: Mesh) -> None:
    server, peer = mesh.pod("server", node=2), mesh.pod("peer", node=1, mesh=False)
    server.serve_echo(8080)
    signer = lab_signer()
    context = shared_context(signer.leaf(f"spiffe://{signer.trust_domain}/ns/default/sa/peer"), signer.signers[-1])

    for number in range(4):  # of whichever worker
        with closing(dial_line(peer, server.ipv4, context)) as line:
            assert line.protocol == "ringfence/1"
            line.send(OPEN, open_payload(destination=(server.ipv4, 8080), source=(peer.ipv4, 40_000 + number)))
            got = line.read()
            assert got is not None
            assert got.kind == VERDICT
            assert exchange(line, b"an own tunnel's") == b"an own tunnel's"
