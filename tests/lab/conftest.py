"""A lab beside the one that people use (``RINGFENCE_LAB``), with a stand-in for the ringfence command."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 180


class LabUnderTest:
    """Runs scripts/lab as a person does."""

    def __init__(self, *, instance: str, command: Path) -> None:
        self.instance = instance
        self.state_dir = Path(f"/run/ringfence-lab-{instance}")
        self.manifests_dir = self.state_dir / "manifests"
        self.environment = {**os.environ, "RINGFENCE_LAB": instance, "RINGFENCE_LAB_COMMAND": str(command)}

    def argv(self, *arguments: str) -> list[str]:
        return [str(_ROOT / "scripts/lab"), *arguments]

    def begin(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.argv(*arguments), env=self.environment, text=True, **options)

    def run(self, *arguments: str, stdin: str = "", **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            **options,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"lab {' '.join(arguments)}: exit code {done.returncode}: {done.stderr}"
        return done.stdout

    def fails(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 1, f"lab {' '.join(arguments)}: exit code {done.returncode}: {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr

    def status(self) -> Any:
        return json.loads(self("status", "--json"))

    def pod(self, name: str, *arguments: str, node: int = 1) -> Any:
        return json.loads(self("pod", name, "--node", str(node), *arguments))

    def namespaces(self) -> set[str]:
        return {name for name in os.listdir("/run/netns") if name.startswith(f"rf_{self.instance}-")}

    def assert_nothing_left(self, *, processes: set[int]) -> None:
        assert self.namespaces() == set()
        assert not self.state_dir.exists()
        assert str(self.state_dir) not in Path("/proc/mounts").read_text()
        assert {pid for pid in processes if Path(f"/proc/{pid}/exe").exists()} == set()


@pytest.fixture(scope="session")
def ringfence_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    command = tmp_path_factory.mktemp("command") / "ringfence"
    fake = Path(__file__).with_name("fake_ringfence.py")
    command.write_text(f'#!/bin/sh\nexport PYTHONPATH="{_ROOT}"\nexec "{sys.executable}" "{fake}" "$@"\n')
    command.chmod(0o755)
    return command


@pytest.fixture
def lab(ringfence_stand_in: Path) -> Iterator[LabUnderTest]:
    """No lab is up yet; whatever the test makes goes."""
    found = LabUnderTest(instance=f"t{os.getpid()}", command=ringfence_stand_in)
    yield found
    found("down")
    Path(f"{found.state_dir}.lock").unlink()


@pytest.fixture
def network(lab: LabUnderTest) -> LabUnderTest:
    """Nodes and their link, without CA and agents: quick."""
    lab("up", "--no-agents")
    return lab


@pytest.fixture(scope="module")
def standing(ringfence_stand_in: Path) -> Iterator[LabUnderTest]:
    """One network with the pod default/web for the tests of a file that leave it as it is."""
    found = LabUnderTest(instance=f"s{os.getpid()}", command=ringfence_stand_in)
    found("up", "--no-agents")
    found.pod("web")
    yield found
    found("down")
    Path(f"{found.state_dir}.lock").unlink()


@pytest.fixture
def cluster(lab: LabUnderTest) -> LabUnderTest:
    """Nodes, link, and stand-ins for the CA and the agents."""
    lab("up")
    return lab
