"""Secrets of a running mesh: files for their owner only, and nowhere else: no log, no argv, no environment."""

import stat
from itertools import chain
from pathlib import Path

import pytest

from tests.mesh_builder import STATE_DIR, Mesh

pytestmark = pytest.mark.mesh

_KEY_IN_CLEAR = b"BEGIN PRIVATE KEY"


def _processes() -> list[Path]:
    """The agents and the CA, by their pid files, and what they have started."""
    pids = [path.read_text().split()[0] for path in STATE_DIR.glob("*/pid")]
    assert len(pids) == 3
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids]
    return [Path("/proc") / pid for pid in [*pids, *chain.from_iterable(children)]]


def _secrets() -> list[bytes]:
    """The passphrase, the join tokens, and a line of each private key on the file system."""
    found = [path.read_bytes().strip() for path in (STATE_DIR / "ca/passphrase", *STATE_DIR.glob("agent-*/join-token"))]
    for path in STATE_DIR.rglob("*.pem"):
        before, marker, key = path.read_bytes().partition(b"PRIVATE KEY-----\n")
        if marker:
            assert before
            found.append(key.splitlines()[0])
    assert len(found) >= 1 + 2 + 2 + 2  # passphrase, tokens, the nodes' keys, root and intermediate
    assert all(len(secret) >= 16 for secret in found)
    return found


def test_no_secret_is_in_a_log_an_argument_or_an_environment(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)
    assert client.ask_whoami(server.ipv4, 8080) == ["server", client.ipv4]
    mesh.record(1, direction="outbound")

    places = {str(path): path.read_bytes() for path in STATE_DIR.glob("*/log")}
    places |= {str(path / name): (path / name).read_bytes() for path in _processes() for name in ("cmdline", "environ")}
    assert b"close_reason" in places[str(STATE_DIR / "agent-1/log")]
    for secret in _secrets():
        assert [place for place, content in places.items() if secret in content] == []
    assert [place for place, content in places.items() if b"PRIVATE KEY" in content] == []


def test_secret_files_are_their_owners_only_and_the_cas_keys_are_encrypted(mesh: Mesh) -> None:
    assert mesh.ringfence(1, "status")["ready"]
    secrets = _secrets()
    for path in filter(Path.is_file, STATE_DIR.rglob("*")):
        content = path.read_bytes()
        if any(secret in content for secret in secrets):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        if path.is_relative_to(STATE_DIR / "ca"):
            assert _KEY_IN_CLEAR not in content, path
