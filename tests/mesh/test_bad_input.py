"""Point 9: bad input gets one clear error, and the last good state stays in force."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, LabCommandError, Mesh, wait_for
from tests.mesh_faults import readyz

pytestmark = pytest.mark.mesh

_MANIFESTS: Final = STATE_DIR / "manifests"
_GOOD: Final = """\
apiVersion: v1
kind: Service
metadata: {name: mine, namespace: default}
spec:
  clusterIP: 10.248.77.1
  clusterIPs: [10.248.77.1]
  selector: {app: mine}
  ports: [{port: 80, targetPort: 8080}]
"""


@contextmanager
def _file(name: str, content: str | bytes = _GOOD) -> Iterator[Path]:
    """A file that somebody put beside the lab's manifests, for the length of the block."""
    path = _MANIFESTS / name
    _write(path, content)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, content: str | bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    temporary.replace(path)


def _registry(mesh: Mesh, node: int) -> dict[str, Any]:
    found: dict[str, Any] = mesh.ringfence(node, "status")["registry"]
    return found


def _problem(mesh: Mesh, node: int, file: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        return next((each for each in _registry(mesh, node)["problems"] if each["file"] == file), None)

    return wait_for(f"a problem with {file} at agent-{node}", look)


def _port_of(mesh: Mesh, node: int, service: str) -> int | None:
    """The port of a service as an agent knows it; None if it knows no such service."""
    ports = [row["ports"][0]["port"] for row in mesh.ringfence(node, "services") if row["name"] == service]
    return ports[0] if ports else None


def _wait_for_service(mesh: Mesh, node: int, service: str, *, port: int | None) -> None:
    wait_for(f"{service} with port {port} at agent-{node}", lambda: _port_of(mesh, node, service) == port)


def _wait_for_order(mesh: Mesh, node: int) -> None:
    wait_for(f"the end of the problems of agent-{node}", lambda: _registry(mesh, node)["problems"] == [])


# -- manifests --------------------------------------------------------------------


def test_a_broken_manifest_is_refused_whole_and_what_was_good_goes_on(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    mesh.pod("mine-0", node=2, labels={"app": "mine"}).serve_whoami(8080)
    with _file("mine.yaml") as path:
        for node in (1, 2):
            _wait_for_service(mesh, node, "mine", port=80)
        assert client.ask_whoami("10.248.77.1", 80)[0] == "mine-0"

        # The first document is good and changes the port; the second one is not.  Neither counts.
        _write(path, _GOOD.replace("port: 80,", "port: 81,") + "---\n" + _GOOD.replace("port: 80,", "port: 99999,"))
        for node in (1, 2):
            problem = _problem(mesh, node, "mine.yaml")
            assert (problem["document"], problem["path"]) == (2, "spec.ports[0].port")
            assert problem["line"] is not None
            assert "99999" in problem["reason"]
            assert _port_of(mesh, node, "mine") == 80
        assert client.ask_whoami("10.248.77.1", 80)[0] == "mine-0"
        assert mesh.metric(1, "ringfence_registry_problems") == 1
        shown = mesh.lab("ringfence", "1", "status")
        assert "mine.yaml" in shown
        assert "spec.ports[0].port" in shown

        _write(path, _GOOD.replace("port: 80,", "port: 81,"))
        for node in (1, 2):
            _wait_for_service(mesh, node, "mine", port=81)
            assert _registry(mesh, node)["problems"] == []
        assert client.ask_whoami("10.248.77.1", 81)[0] == "mine-0"
    for node in (1, 2):
        _wait_for_service(mesh, node, "mine", port=None)


def test_apply_refuses_with_the_same_words_and_changes_nothing(mesh: Mesh) -> None:
    before = {path.name: path.read_bytes() for path in _MANIFESTS.iterdir()}
    broken = _GOOD + "---\n" + _GOOD.replace("port: 80,", "port: 99999,")
    with pytest.raises(LabCommandError) as refused:
        mesh.lab("apply", "-", stdin=broken)
    assert {path.name: path.read_bytes() for path in _MANIFESTS.iterdir()} == before

    with _file("mine.yaml", broken):
        problem = _problem(mesh, 1, "mine.yaml")
    for word in ("document 2", f":{problem['line']}: ", problem["path"], problem["reason"], "nothing was changed"):
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("apiVersion: v1\nkind: [\n", "YAML"),
        (b"\x7fELF\x00\x01\x02\xff", "UTF-8"),
        (b"", None),
        ("just a text\n", "map"),
        (_GOOD.replace("kind: Service", "kind: Service\nkind: Pod"), "kind"),
        (_GOOD.replace("metadata: {name: mine", "metadata: {name: ../../etc"), "RFC 1123 label"),
        (_GOOD + "---\n" + _GOOD, "mine"),
        ("a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n", "alias"),
        ("[" * 20_000, None),
        (b"# " + b"x" * (64 << 20), "larger"),
    ],
    ids=[
        *("not-yaml", "binary", "empty", "no-object", "duplicate-key", "bad-name"),
        *("twice-in-a-file", "aliases", "deep", "huge"),
    ],
)
def test_a_file_that_is_no_manifest_harms_nobody(mesh: Mesh, content: str | bytes, says: str | None) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)
    with _file("strange.yaml", content):
        if says is None:
            wait_for("the file to be read", lambda: _has_read(mesh, 1, "strange.yaml"))
        else:
            assert says.lower() in _problem(mesh, 1, "strange.yaml")["reason"].lower()
        assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
        mesh.pod("newcomer", node=1)
    for node in (1, 2):
        _wait_for_order(mesh, node)


def _has_read(mesh: Mesh, node: int, name: str) -> bool:
    """An agent's digest is that of the directory, the file among it."""
    listed = subprocess.run(
        "LC_ALL=C; sha256sum *.yaml | sort -k2 | sha256sum",
        shell=True,
        cwd=_MANIFESTS,
        capture_output=True,
        check=True,
        text=True,
    )
    assert (_MANIFESTS / name).exists()
    return bool(_registry(mesh, node)["digest"] == listed.stdout.split()[0])


def test_unknown_kinds_are_told_and_skipped(mesh: Mesh) -> None:
    other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: default}\ndata: {a: b}\n---\n"
    with _file("mine.yaml", other + _GOOD):
        _wait_for_service(mesh, 1, "mine", port=80)
        registry = _registry(mesh, 1)
        assert registry["problems"] == []
        assert any("ConfigMap" in each and "mine.yaml" in each for each in registry["skipped"])


def test_one_object_in_two_files_is_in_force_from_the_first(mesh: Mesh) -> None:
    with _file("a.yaml"), _file("b.yaml", _GOOD.replace("port: 80,", "port: 81,")):
        problem = _problem(mesh, 1, "b.yaml")
        assert "a.yaml" in problem["reason"]
        assert "mine" in problem["reason"]
        assert _port_of(mesh, 1, "mine") == 80
        (_MANIFESTS / "a.yaml").unlink()
        _wait_for_service(mesh, 1, "mine", port=81)
        assert _registry(mesh, 1)["problems"] == []


# -- commands ---------------------------------------------------------------------


def _refused(mesh: Mesh, *arguments: str) -> str:
    with pytest.raises(LabCommandError) as failed:
        mesh.lab(*arguments)
    return str(failed.value)


def test_a_service_that_is_not_there_is_named(mesh: Mesh) -> None:
    text = _refused(mesh, "ringfence", "1", "endpoints", "nosuch")
    assert "ended with 1: ringfence: no service default/nosuch; `ringfence services` lists them\n" in text
    with _file("elsewhere.yaml", _GOOD.replace("namespace: default", "namespace: elsewhere")):
        wait_for("the service", lambda: _port_of(mesh, 1, "mine"))
        text = _refused(mesh, "ringfence", "1", "endpoints", "mine")
        assert "no service default/mine, but there is elsewhere/mine;" in text


def test_wrong_arguments_are_exit_code_2(mesh: Mesh) -> None:
    for arguments in (["nonsense"], ["endpoints", "a", "b"], ["log-level", "loud"], ["status", "--nonsense"]):
        text = _refused(mesh, "ringfence", "1", *arguments)
        assert "ended with 2: usage: ringfence" in text, text


def test_an_agent_that_does_not_run_is_named(mesh: Mesh) -> None:
    with mesh.stopped("agent-1", how="kill"):
        text = _refused(mesh, "ringfence", "1", "status")
        assert (
            f"nobody answers on {STATE_DIR}/agent-1/agent.sock: the agent that made it has ended without removing it"
            in text
        )
    with mesh.stopped("agent-1"):
        text = _refused(mesh, "ringfence", "1", "status")
        assert f"there is no agent socket {STATE_DIR}/agent-1/agent.sock: no agent runs on this machine" in text


def test_a_broken_ca_configuration_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "ca.toml"
    for content, says in (
        ("[ca]\nsvid_ttl_s = 'long'\n", f"{config}:2: [ca] svid_ttl_s: must be a whole number"),
        ("[ca]\nttl = 5\n", f"{config}:2: [ca] ttl: is unknown; "),
        ("[ca\n", f"{config}: is not valid TOML: "),
        (f'[ca]\nstate_dir = "{tmp_path}/nowhere"\n', "passphrase"),
    ):
        config.write_text(content)
        for command in ("serve", "init"):
            done = subprocess.run(
                [_RINGFENCE, "ca", command, "--config", config], capture_output=True, text=True, check=False, timeout=30
            )
            assert done.returncode == 1
            assert done.stderr.startswith(f"ringfence ca {command}: ")
            assert says in done.stderr
            assert done.stderr.count("\n") == 1


_RINGFENCE: Final = Path(__file__).parents[2] / ".venv" / "bin" / "ringfence"


# -- join tokens ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["used", "wrong", "expired", "of-another-node", "missing"])
def test_a_join_token_that_is_no_good_keeps_the_agent_waiting(mesh: Mesh, how: str) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)
    token_file = STATE_DIR / "agent-1" / "join-token"
    used = token_file.read_text()
    mesh.lab("stop", "agent-1")
    (STATE_DIR / "agent-1" / "node" / "node.pem").unlink()  # what the token bought
    try:
        token, says = _bad_token(mesh, how, used=used)
        token_file.write_text(token)
        if how == "expired":
            wait_for("the token's end", lambda: not _pending_tokens(mesh))
        mesh.lab("start", "agent-1", "--no-wait")
        code, reasons = wait_for("a reason", lambda: _reason_that(mesh, says))
        assert code == 503
        assert not any(token.strip() in reason for reason in reasons if token.strip())
        assert mesh.ringfence(1, "status")["pid"]
    finally:
        token_file.write_text(_token(mesh, "node-1"))
    wait_for("readiness", lambda: readyz(mesh, 1)[0] == 200)
    assert client.ask_whoami(server.ipv4, 8080)[0] == "server"


def _bad_token(mesh: Mesh, how: str, *, used: str) -> tuple[str, str]:
    """A token and what the agent has to say of it."""
    match how:
        case "used":
            return used, "used already"
        case "wrong":
            return f"rfjoin-{'0' * 64}\n", "knows no such join token"
        case "expired":
            return _token(mesh, "node-1", ttl_s=1), "expired"
        case "of-another-node":
            return _token(mesh, "node-2"), "for another node"
        case _:
            return "", "join_token_file"


def _token(mesh: Mesh, node: str, *, ttl_s: int = 600) -> str:
    return mesh.lab("ringfence", "ca", "token", "--node", node, "--ttl-s", str(ttl_s))


def _pending_tokens(mesh: Mesh) -> list[Any]:
    found: list[Any] = json.loads(mesh.lab("ringfence", "ca", "status", "--json"))["tokens_pending"]
    return found


def _reason_that(mesh: Mesh, says: str) -> tuple[int, list[str]] | None:
    try:
        code, reasons = readyz(mesh, 1)
    except OSError:
        return None  # it does not listen yet
    return (code, reasons) if any(says in reason for reason in reasons) else None
