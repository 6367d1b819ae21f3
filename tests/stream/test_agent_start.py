"""``ringfence agent`` as a process: what keeps it from starting is one line on standard error and exit code 1."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.authority_builder import make_authority

_AGENT = [sys.executable, "-m", "node_agent.cli.main", "agent", "--config"]


@dataclass(slots=True)
class Setting:
    """An agent's surroundings, all in order; a test breaks one thing."""

    directory: Path
    bundle: Path
    node_key_dir: Path
    metrics_port: int
    readiness_port: int
    more: str = ""

    @property
    def config(self) -> Path:
        path = self.directory / "agent.toml"
        path.write_text(
            f'[agent]\nnode = "node-1"\nruntime_dir = "{self.directory}/run"\nstate_dir = "{self.directory}/state"\n'
            f'[ca]\naddress = "127.0.0.1:1"\nbundle_file = "{self.bundle}"\nnode_key_dir = "{self.node_key_dir}"\n'
            f"{self.more}"
            f'[registry]\nmanifests_dir = "{self.directory}/manifests"\n'
            f'[listen]\nsight = "off"\n'
            f'metrics = "127.0.0.1:{self.metrics_port}"\nreadiness = "127.0.0.1:{self.readiness_port}"\n'
        )
        return path


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on a tmpfs, where a key may lie in clear."""
    made = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def setting(tmp_path: Path, in_memory: Path) -> Iterator[Setting]:
    authority = make_authority(tmp_path)
    (tmp_path / "manifests").mkdir(exist_ok=True)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    made = Setting(
        directory=tmp_path,
        bundle=authority.config.bundle_file,
        node_key_dir=in_memory,
        metrics_port=ports[0],
        readiness_port=ports[1],
    )
    yield made
    if made.node_key_dir != in_memory:
        shutil.rmtree(made.node_key_dir)


def _no_bundle(setting: Setting) -> str:
    setting.bundle = setting.directory / "nowhere.pem"
    return f"[ca] bundle_file: cannot read {setting.bundle}: No such file or directory; copy the CA's bundle.pem there"


def _bundle_without_certificates(setting: Setting) -> str:
    setting.bundle = setting.directory / "bundle.pem"
    setting.bundle.write_text("not PEM\n")
    return f"[ca] bundle_file: {setting.bundle}: "


def _key_on_a_disk(setting: Setting) -> str:
    setting.node_key_dir = Path(tempfile.mkdtemp(dir="/var/tmp"))
    return f"[ca] node_key_dir: {setting.node_key_dir} is on a disk, where the node's key would be in clear: "


def _no_passphrase(setting: Setting) -> str:
    setting.more = f'node_key_passphrase_file = "{setting.directory}/nowhere"\n'
    return f"[ca] node_key_passphrase_file: {setting.directory}/nowhere: No such file or directory"


def _stored_key_is_garbage(setting: Setting) -> str:
    (setting.node_key_dir / "node.pem").write_text("garbage\n")
    return f"[ca] node_key_dir: {setting.node_key_dir}/node.pem can not be read: "


def _runtime_dir_is_a_file(setting: Setting) -> str:
    (setting.directory / "run").write_text("")
    return f"can not listen on {setting.directory}/run/agent.sock: "


def _socket_is_a_file(setting: Setting) -> str:
    (setting.directory / "run").mkdir()
    (setting.directory / "run" / "agent.sock").write_text("")
    return f"{setting.directory}/run/agent.sock exists and is not a socket; move it away, "


def _unknown_key(setting: Setting) -> str:
    setting.more = "renew = true\n"
    return f"{setting.directory}/agent.toml: [ca] renew: unknown key; the keys are address, "


@pytest.mark.parametrize(
    "broken",
    [
        _no_bundle,
        _bundle_without_certificates,
        _key_on_a_disk,
        _no_passphrase,
        _stored_key_is_garbage,
        _runtime_dir_is_a_file,
        _socket_is_a_file,
        _unknown_key,
    ],
)
def test_what_is_broken_is_one_line(setting: Setting, broken: Callable[[Setting], str]) -> None:
    _assert_fails(setting, broken(setting))


@pytest.mark.parametrize("which", ["metrics", "readiness"])
def test_a_port_that_is_taken_is_named(setting: Setting, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        setattr(setting, f"{which}_port", port)
        _assert_fails(setting, f"[listen] {which} = 127.0.0.1:{port}: cannot listen: Address already in use")


def test_another_agent_on_the_socket_is_named(setting: Setting) -> None:
    (setting.directory / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(setting.directory / "run" / "agent.sock"))
        other.listen()
        _assert_fails(setting, f"another agent answers on {setting.directory}/run/agent.sock; stop it first")


def _assert_fails(setting: Setting, says: str) -> None:
    done = subprocess.run([*_AGENT, setting.config], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1, done.stderr
    # Lines in JSON are the log's; the command itself says one thing.
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith(f"ringfence: {says}")
    assert "Traceback" not in done.stderr
    assert not any('"level": "error"' in line for line in done.stderr.splitlines())
    if os.path.isdir(setting.directory / "run"):
        assert "agent.sock" not in os.listdir(setting.directory / "run") or "agent.sock" in says
