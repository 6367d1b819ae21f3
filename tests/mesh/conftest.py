"""One lab for the session, one clean sheet for each test."""

from collections.abc import Iterator

import pytest

from tests.mesh_builder import Mesh


@pytest.fixture(scope="session")
def session_mesh() -> Iterator[Mesh]:
    mesh = Mesh()
    mesh.up()
    yield mesh
    mesh.down()


@pytest.fixture
def mesh(session_mesh: Mesh) -> Iterator[Mesh]:
    """The lab, two nodes, without pods; what the test adds is gone after it."""
    session_mesh.begin_test()
    yield session_mesh
    session_mesh.reset()
