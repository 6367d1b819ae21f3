"""Four pods for the whole module: a client and a server inside the mesh, and one of each outside."""

from collections.abc import Iterator

import pytest

from tests.faithful import KINDS, Ground, Way
from tests.mesh_builder import Mesh


@pytest.fixture(scope="module")
def laid_out(session_mesh: Mesh) -> Iterator[Ground]:
    session_mesh.begin_test()
    yield Ground(session_mesh)
    session_mesh.reset()


@pytest.fixture
def ground(laid_out: Ground) -> Iterator[Ground]:
    """The pods and the agents; after the test nothing is left in the agents but idle tunnels."""
    laid_out.begin_test()
    yield laid_out
    laid_out.close_sockets()
    laid_out.assert_nothing_is_left()


@pytest.fixture(params=[f"{kind}-{version}" for kind in KINDS for version in ("ipv4", "ipv6")])
def way(request: pytest.FixtureRequest, ground: Ground) -> Way:
    """Every way that a connection can take through an agent."""
    kind, _, version = request.param.rpartition("-")
    return ground.way(kind, version)
