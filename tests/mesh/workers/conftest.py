"""The session's lab with two worker processes in each agent, for one module; then it is as it was."""

from collections.abc import Iterator

import pytest

from tests.faithful import Ground, Way
from tests.mesh.faithful_tcp import conftest as faithful_tcp
from tests.mesh_builder import STATE_DIR, Mesh, wait_for

_SECTION = "[agent]\n"


def _restart_all(mesh: Mesh) -> None:
    for path in sorted(STATE_DIR.glob("agent-*/agent.toml")):
        mesh.lab("restart", path.parent.name)


@pytest.fixture(scope="module")
def session_mesh(session_mesh: Mesh) -> Iterator[Mesh]:
    before = {path: path.read_text() for path in STATE_DIR.glob("agent-*/agent.toml")}
    for path, text in before.items():
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith("workers")]
        path.write_text("".join(lines).replace(_SECTION, f"{_SECTION}workers = 2\n"))
    try:
        _restart_all(session_mesh)
        yield session_mesh
    finally:
        for path, text in before.items():
            path.write_text(text)
        _restart_all(session_mesh)
        for node in (1, 2):
            wait_for("an agent that is ready", lambda: session_mesh.ringfence(node, "status")["ready"])  # noqa: B023


@pytest.fixture(scope="module")
def laid_out(session_mesh: Mesh) -> Iterator[Ground]:
    yield from faithful_tcp.laid_out.__wrapped__(session_mesh)  # type: ignore[attr-defined]


@pytest.fixture
def ground(laid_out: Ground) -> Iterator[Ground]:
    yield from faithful_tcp.ground.__wrapped__(laid_out)  # type: ignore[attr-defined]


@pytest.fixture(params=["tunnel-ipv4", "to-outside-ipv6", "from-outside-ipv4"])
def way(request: pytest.FixtureRequest, ground: Ground) -> Way:
    """Each kind of way once: what differs between the IP versions does not know of workers."""
    kind, _, version = request.param.rpartition("-")
    return ground.way(kind, version)
