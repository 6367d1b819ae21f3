"""Programs that already speak SPIFFE get their pod's identity from the agent: the ``spiffe`` package as the client."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mesh_builder import LAB_NAME, STATE_DIR, Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

PROGRAM: Final = str(Path(__file__).resolve().parents[1] / "spiffe_program.py")
CERTIFICATE_LOG: Final = "ringfence.workload_api"


def socket_of(node: int) -> Path:
    return Path(f"/run/ringfence-lab-{LAB_NAME}.workload/node-{node}/api.sock")


def spiffe(pod: Pod, *arguments: str, node: int | None = None, user: str | None = None) -> dict[str, Any]:
    """Run the program in a pod and return what it printed last; ``node``: against another node's agent."""
    command = [sys.executable, PROGRAM, *arguments]
    if user is not None:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    if node is not None:
        command = ["env", f"SPIFFE_ENDPOINT_SOCKET=unix://{socket_of(node)}", *command]
    done = pod.run(*command, check=False)
    lines = done.stdout.decode().splitlines()
    assert lines, done.stderr.decode()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def denied(answer: dict[str, Any]) -> bool:
    return "PERMISSION_DENIED" in answer.get("error", "")


@contextmanager
def short_lived_svids(mesh: Mesh, ttl_s: int) -> Iterator[None]:
    """Run the CA with SVIDs of a few seconds for the length of the block."""
    config = STATE_DIR / "ca" / "ca.toml"
    before = config.read_text()
    try:
        config.write_text(before.replace("[ca]\n", f"[ca]\nsvid_ttl_s = {ttl_s}\n", 1))
        mesh.lab("restart", "ca")
        yield
    finally:
        config.write_text(before)
        mesh.lab("restart", "ca")


def started(pod: Pod, *arguments: str) -> subprocess.Popen[bytes]:
    return pod.spawn(sys.executable, PROGRAM, *arguments, stdout=subprocess.PIPE)


def line_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_a_program_gets_the_identity_of_its_pod_and_another_pod_gets_another(mesh: Mesh) -> None:
    web, db = mesh.pod("web", node=1, service_account="web"), mesh.pod("db", node=1, service_account="db")
    of_web, of_db = spiffe(web, "svid"), spiffe(db, "svid")
    assert (of_web["spiffe_id"], of_db["spiffe_id"]) == (web.identity, db.identity)
    serials = {row["identity"]: row["serial"] for row in mesh.ringfence(1, "certs")}
    assert (of_web["serial"], of_db["serial"]) == (serials[web.identity], serials[db.identity])
    assert of_web["bundles"] == {"cluster.local": 1}
    said = [line["message"] for line in mesh.log(1) if line["logger"] == CERTIFICATE_LOG]
    assert any("of pod default/web gets its X.509-SVID" in text for text in said)


def test_a_user_without_privileges_may_ask_as_well(mesh: Mesh) -> None:
    web = mesh.pod("web", node=1, service_account="web")
    assert spiffe(web, "svid", user="65534")["spiffe_id"] == web.identity


def test_a_container_with_pids_of_its_own_is_still_its_pods(mesh: Mesh) -> None:
    """As in Kubernetes: the container's pids mean nothing on the node, the kernel translates."""
    web = mesh.pod("web", node=1, service_account="web")
    done = web.run("unshare", "--pid", "--fork", "--mount-proc", sys.executable, PROGRAM, "svid")
    assert json.loads(done.stdout)["spiffe_id"] == web.identity


def test_a_program_that_left_its_pods_network_is_nobody(mesh: Mesh) -> None:
    web = mesh.pod("web", node=1, service_account="web")
    done = web.run("unshare", "--net", sys.executable, PROGRAM, "svid", check=False)
    assert denied(json.loads(done.stdout))


def test_the_example_of_the_documentation_works(mesh: Mesh) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "workload-api.md").read_text()
    (program,) = re.findall(r"-- \.venv/bin/python -c '\n(.*?)'\n", page, re.DOTALL)
    web = mesh.pod("web", node=1, service_account="web")
    identity, token = web.run(sys.executable, "-c", program).stdout.decode().split()
    assert identity == web.identity
    assert token.count(".") == 2
    assert web.run("sh", "-c", "echo $SPIFFE_ENDPOINT_SOCKET").stdout.decode() == f"unix://{socket_of(1)}\n"


def test_two_programs_prove_themselves_to_each_other_with_what_they_got(mesh: Mesh) -> None:
    """Their own TLS, through our tunnel, with the SVIDs of the Workload API at both ends."""
    web, db = mesh.pod("web", node=1, service_account="web"), mesh.pod("db", node=2, service_account="db")
    server = started(db, "serve", "8443")
    assert line_of(server) == {"serving": db.identity}
    assert spiffe(web, "call", db.ipv4, "8443") == {"server": db.identity, "i_am": web.identity}
    assert line_of(server) == {"called_by": web.identity}


def test_each_rotation_is_pushed_to_who_listens(mesh: Mesh) -> None:
    with short_lived_svids(mesh, 10):
        web = mesh.pod("web", node=1, service_account="web")
        watching = started(web, "watch", "3")
        seen = [line_of(watching) for _ in range(3)]
    assert len({each["serial"] for each in seen}) == 3
    assert [each["not_after"] for each in seen] == sorted({each["not_after"] for each in seen})
    assert {each["spiffe_id"] for each in seen} == {web.identity}


def test_a_jwt_svid_is_validated_by_the_api_and_by_the_clients_own_library_and_only_for_its_audience(
    mesh: Mesh,
) -> None:
    web, db = mesh.pod("web", node=1, service_account="web"), mesh.pod("db", node=2, service_account="db")
    issued = spiffe(web, "jwt", "db", "cache")
    assert (issued["spiffe_id"], issued["audience"]) == (web.identity, ["cache", "db"])
    token = issued["token"]

    assert spiffe(db, "validate", "db", token)["spiffe_id"] == web.identity
    assert spiffe(db, "verify", "cache", token)["spiffe_id"] == web.identity
    assert "another audience" in spiffe(db, "validate", "web", token)["error"]
    assert "error" in spiffe(db, "verify", "web", token)
    forged = token[:-8] + ("A" * 8 if token[-8:] != "A" * 8 else "B" * 8)
    assert "INVALID_ARGUMENT" in spiffe(db, "validate", "db", forged)["error"]

    bundles = spiffe(db, "bundles")
    assert bundles["x509"] == {"cluster.local": 1}
    assert len(bundles["jwt"]["cluster.local"]) == 1


def test_a_process_outside_of_any_pod_is_refused_and_the_log_says_so(mesh: Mesh) -> None:
    mesh.pod("web", node=1, service_account="web")
    there = f"SPIFFE_ENDPOINT_SOCKET=unix://{socket_of(1)}"
    for command in ("svid", "bundles"):
        on_the_node = mesh.lab("exec", "node-1", "--", "env", there, sys.executable, PROGRAM, command, check=False)
        assert denied(json.loads(on_the_node))
    on_the_machine = subprocess.run(
        ["env", there, sys.executable, PROGRAM, "jwt", "db"], capture_output=True, timeout=60, check=False
    )
    assert denied(json.loads(on_the_machine.stdout))
    said = [line["message"] for line in mesh.log(1) if line["logger"] == CERTIFICATE_LOG]
    assert any("is denied: it is not, or no longer, of a pod that is served here" in text for text in said)


def test_a_pod_that_is_not_enrolled_and_a_pod_of_another_node_are_refused(mesh: Mesh) -> None:
    plain = mesh.pod("plain", node=1, mesh=False)
    other = mesh.pod("other", node=2, service_account="web")
    assert denied(spiffe(plain, "svid"))
    assert denied(spiffe(other, "svid", node=1))
    assert spiffe(other, "svid")["spiffe_id"] == other.identity


def test_the_stream_of_a_pod_ends_with_the_pod(mesh: Mesh) -> None:
    web = mesh.pod("web", node=1, service_account="web")
    watching = started(web, "watch", "2")
    assert line_of(watching)["spiffe_id"] == web.identity
    # Its manifest goes; the process itself lives on, as one in its grace period would.
    (STATE_DIR / "manifests" / "pod.default.web.yaml").unlink()
    answer = line_of(watching)
    assert denied(answer)


def test_a_revoked_identity_is_told_to_stop_and_gets_nothing_more(mesh: Mesh) -> None:
    thief, other = (
        mesh.pod("thief", node=1, service_account="thief"),
        mesh.pod("other", node=1, service_account="other"),
    )
    token = spiffe(thief, "jwt", "db")["token"]
    watching = started(thief, "watch", "2")
    assert line_of(watching)["spiffe_id"] == thief.identity
    revocation = ("ringfence", "ca", "revoke", "identity", str(thief.identity))
    mesh.lab(*revocation, "--reason", "test")
    try:
        assert denied(line_of(watching))
        assert denied(spiffe(thief, "svid"))
        assert denied(spiffe(thief, "jwt", "db"))
        assert "revoked" in spiffe(other, "validate", "db", token)["error"]
        assert spiffe(other, "svid")["spiffe_id"] == other.identity
    finally:
        mesh.lab(*revocation, "--undo")


def test_programs_find_the_api_again_after_a_restart_of_the_agent(mesh: Mesh) -> None:
    web = mesh.pod("web", node=1, service_account="web")
    assert spiffe(web, "svid")["spiffe_id"] == web.identity
    mesh.lab("kill", "agent-1")
    mesh.lab("start", "agent-1")
    wait_for("the agent to serve the pod", lambda: spiffe(web, "svid").get("spiffe_id") == web.identity)
