"""The session's lab with workloads that are cgroups, for this folder; then it is as it was."""

from collections.abc import Iterator

import pytest

from tests.faithful import Ground, Way
from tests.mesh.faithful_tcp import conftest as faithful_tcp
from tests.mesh_builder import CAPTURE, Mesh


@pytest.fixture(scope="package")
def session_mesh(session_mesh: Mesh) -> Iterator[Mesh]:
    if session_mesh.capture == "cgroup":
        yield session_mesh
        return
    session_mesh.up(capture="cgroup")
    yield session_mesh
    session_mesh.up(capture=CAPTURE)


@pytest.fixture(scope="module")
def laid_out(session_mesh: Mesh) -> Iterator[Ground]:
    yield from faithful_tcp.laid_out.__wrapped__(session_mesh)  # type: ignore[attr-defined]


@pytest.fixture
def ground(laid_out: Ground) -> Iterator[Ground]:
    yield from faithful_tcp.ground.__wrapped__(laid_out)  # type: ignore[attr-defined]


@pytest.fixture(params=["tunnel-ipv4", "from-outside-ipv6"])
def way(request: pytest.FixtureRequest, ground: Ground) -> Way:
    """A tunnel, and plaintext that comes in."""
    kind, _, version = request.param.rpartition("-")
    return ground.way(kind, version)
