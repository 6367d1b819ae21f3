"""The stage, with agents of one process: tests/mesh/workers asks which worker a tunnel comes to."""

from collections.abc import Iterator

import pytest

from tests.lab_authority import lab_signer
from tests.mesh_builder import WORKERS, Mesh
from tests.mesh_stage import unhurried
from tests.shared_ground import SharedGround
from tests.shared_peer import SharedDestination, SharedTunnel
from tests.shared_scene import Scene, claim


@pytest.fixture(scope="module")
def session_mesh(session_mesh: Mesh) -> Iterator[Mesh]:
    if WORKERS == "1":
        yield session_mesh
        return
    session_mesh.up("--workers", "1")
    yield session_mesh
    session_mesh.up()


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


@pytest.fixture(scope="module")
def set_scene(session_mesh: Mesh) -> Iterator[Scene]:
    session_mesh.begin_test()
    try:
        client = session_mesh.pod("caller", node=1, service_account="cart")
        pod = session_mesh.pod("destination", node=2, mesh=False)
        destination = SharedDestination(pod)
        session_mesh.apply(claim("destination"))
        yield Scene(session_mesh, client, destination, pod.ipv4, lab_signer())
        destination.close()
    finally:
        session_mesh.reset()


@pytest.fixture
def scene(set_scene: Scene) -> Iterator[Scene]:
    set_scene.begin_test()
    yield set_scene
    set_scene.end_test()
