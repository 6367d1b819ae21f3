"""The bundle: whole without an agent, harmless with a hostile one, and readable by its owner only."""

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.cli.main import main
from tests.fake_agent import FakeAgent, fake_agent

_SECRET = "correct-horse-battery-staple"
_EVIL = "../../../etc/\x1b[2Jcron.d"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path) as server:
        server.answers |= {
            "/config": {"capture": {"netns_path": str(tmp_path / "{namespace}" / "{name}")}, "x": {"token": _SECRET}},
            "/log-level": {"level": "info", "modules": {}},
            "/recent": [{"id": "a", "detail": f"postgres://u:{_SECRET}@db refused"}],
            "/traffic": {"edges": []},
            "/debug/stacks": {"processes": []},
            "/debug/memory": {"processes": []},
            "/workloads": [
                {"name": _EVIL, "namespace": "..", "uid": "u", "local": True, "enrolled": True},
                {"name": "far", "namespace": "shop", "uid": "v", "local": False, "enrolled": True},
            ],
        }
        server.answers["/status"] = {"node": "../n\x1b[1", "pid": os.getpid()}
        yield server


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            assert member.isreg()
            assert stat.S_IMODE(member.mode) == 0o600
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read().decode()
        return found


def test_it_is_its_owners_only_and_names_cannot_lead_elsewhere(agent: FakeAgent, tmp_path: Path) -> None:
    output = tmp_path / "b.tar.gz"
    os.umask(0)
    command = ["bundle", "-o", str(output), "--no-profile", "--agent", str(agent.server_address)]
    try:
        assert main(command) == 0
    finally:
        os.umask(0o022)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    found = members(output)
    assert all(name.startswith("ringfence-bundle/") and ".." not in name.split("/") for name in found)
    assert all(name.isprintable() and name.isascii() for name in found)
    index = found["ringfence-bundle/index.txt"]
    assert all(line.isprintable() for line in index.split("\n"))
    assert "agent/status.json: ok" in index
    assert "agent/metrics.txt: ok" in index
    assert "pods/" in index
    assert "is not there" in index
    assert "far" not in index
    assert '"openssl"' in found["ringfence-bundle/versions.json"]
    assert _SECRET not in "".join(found.values())
    assert "(removed)@db refused" in found["ringfence-bundle/agent/recent.json"]


def test_a_part_that_fails_is_noted_and_stops_nothing(agent: FakeAgent, tmp_path: Path) -> None:
    agent.answers["/certs"] = lambda: 1 / 0
    output = tmp_path / "b.tar.gz"
    assert main(["bundle", "-o", str(output), "--no-profile", "--agent", str(agent.server_address)]) == 0
    found = members(output)
    assert "agent/certs.json: the agent on" in found["ringfence-bundle/index.txt"]
    assert "ringfence-bundle/agent/certs.json" not in found
    assert "ringfence-bundle/agent/connections.json" in found


def test_without_an_agent_there_is_still_what_the_machine_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, output = tmp_path / "agent.log", tmp_path / "b.tar.gz"
    log.write_text(f"the last words\nAuthorization: Bearer {_SECRET}\n")
    command = ["bundle", "-o", str(output), "--log", str(log), "--config", str(tmp_path / "agent.toml")]
    assert main([*command, "--agent", str(tmp_path / "missing.sock")]) == 0
    assert "could not be collected (index.txt says why)" in capsys.readouterr().err
    found = members(output)
    assert found["ringfence-bundle/logs/agent.log"].startswith("the last words\n")
    assert "there is no agent socket" in found["ringfence-bundle/index.txt"]
    assert "create it or pass --config" in found["ringfence-bundle/index.txt"]
    assert _SECRET not in "".join(found.values())


def test_no_file_is_written_over_nor_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        assert main(["bundle", "-o", str(tmp_path / name), "--agent", str(tmp_path / "x")]) == 1
        assert "name a new file: -o FILE" in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()
    assert main(["bundle", "-o", str(tmp_path / "no" / "where"), "--agent", str(tmp_path / "x")]) == 1
    assert "No such file or directory; name another file" in capsys.readouterr().err


def test_it_can_be_sent_through_a_pipe(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["bundle", "-o", "-", "--agent", str(tmp_path / "x")]) == 0
    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as archive:
        assert "ringfence-bundle/index.txt" in archive.getnames()
