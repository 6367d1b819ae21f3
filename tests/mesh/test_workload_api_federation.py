"""The Workload API with a second trust domain: its bundles come and go, and its tokens with them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mesh_builder import Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

PROGRAM: Final = str(Path(__file__).resolve().parents[1] / "spiffe_program.py")
OURS: Final = "cluster.local"
THEIRS: Final = "other.example"


@pytest.fixture
def mesh(session_mesh: Mesh) -> Iterator[Mesh]:
    """A lab whose second node is of another trust domain."""
    session_mesh.up("--trust-domain-of", f"2={THEIRS}")
    session_mesh.lab("federate")
    session_mesh.begin_test()
    yield session_mesh
    session_mesh.reset()
    session_mesh.up()


def spiffe(pod: Pod, *arguments: str) -> dict[str, Any]:
    done = pod.run(sys.executable, PROGRAM, *arguments, check=False)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_federated_bundles_are_pushed_and_redacted_and_tokens_follow_them(mesh: Mesh) -> None:
    web, db = mesh.pod("web", node=1, service_account="web"), mesh.pod("db", node=2, service_account="db")
    assert db.identity == f"spiffe://{THEIRS}/ns/default/sa/db"
    both = {OURS: 1, THEIRS: 1}
    for pod in (web, db):
        wait_for(f"{pod.name} to get both bundles", lambda: spiffe(pod, "svid")["bundles"] == both)  # noqa: B023
    assert {len(keys) for keys in spiffe(db, "bundles")["jwt"].values()} == {1}

    token = spiffe(web, "jwt", "db")["token"]
    assert spiffe(db, "validate", "db", token)["spiffe_id"] == web.identity

    watching = db.spawn(sys.executable, PROGRAM, "watch", "2", stdout=subprocess.PIPE)
    assert line_of(watching)["bundles"] == both
    mesh.lab("ringfence", "ca-2", "federation", "remove", OURS)
    assert line_of(watching)["bundles"] == {THEIRS: 1}
    assert "not in the trust bundle of its subject" in spiffe(db, "validate", "db", token)["error"]
    assert list(spiffe(db, "bundles")["jwt"]) == [THEIRS]
    assert spiffe(web, "validate", "db", token)["spiffe_id"] == web.identity  # each side decides for itself
