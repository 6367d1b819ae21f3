"""docs/ca.md, storage: its commands as they stand, its settings as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.store.location import PostgresAddress
from node_agent import config as agent_config
from tests.authority_builder import make_authority
from tests.postgres_server import PostgresServer

PAGE: Final = (Path(__file__).parents[3] / "docs/ca.md").read_text()
PASSWORD: Final = "not for production"


def blocks(section: str, language: str) -> list[str]:
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ", maxsplit=1)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """``ringfence`` in the PATH, as after an installation."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    command = binaries / "ringfence"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m node_agent.cli.main "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}


def typed(script: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_backup_and_restore_as_the_page_shows_them(tmp_path: Path, environment: dict[str, str]) -> None:
    authority = make_authority(tmp_path)
    (block,) = blocks("Backup and restore", "sh")
    backup, restore = block.replace("/etc/ringfence", str(tmp_path)).replace("/var/backups", str(tmp_path)).splitlines()
    assert "backed up the authority of cluster.local" in typed(backup, environment)
    authority.config.state_dir.rename(tmp_path / "moved-away")
    assert "restored the authority of cluster.local" in typed(restore, environment)
    assert [each.serial for each in authority.journal()] == []
    assert (authority.config.state_dir / "bundle.pem").read_bytes() == (tmp_path / "moved-away/bundle.pem").read_bytes()


def test_several_replicas_as_the_page_sets_them_up(
    tmp_path: Path, environment: dict[str, str], postgres: PostgresServer
) -> None:
    shell, (authority_toml, agent_toml) = blocks("Several replicas", "sh")[0], blocks("Several replicas", "toml")
    install, *create = shell.splitlines()
    assert install.startswith("pip install 'ringfence[postgres]'")
    host = re.search(r"host=([^&]+)&port=(\d+)", postgres.url("postgres"))
    assert host is not None
    typed("\n".join(create), {**environment, "PGHOST": host[1], "PGPORT": host[2], "PGUSER": "postgres"})
    try:
        postgres.execute(f"ALTER ROLE ringfence PASSWORD '{PASSWORD}'")
        for name, content in {"ca.passphrase": "a passphrase for tests", "ca.database-password": PASSWORD}.items():
            (tmp_path / name).touch(mode=0o600)
            (tmp_path / name).write_text(content + "\n")
        local = authority_toml.replace("/etc/ringfence", str(tmp_path))
        local = re.sub(r"@db\.example\.internal:5432/(\w+)\?[^\"]*", rf"@127.0.0.1:{postgres.port}/\1", local)
        (tmp_path / "ca.toml").write_text(f'{local}\nstate_dir = "{tmp_path}/state"\n')
        config = AuthorityConfig.load(tmp_path / "ca.toml")
        assert isinstance(config.database, PostgresAddress)
        assert "made the authority of" in typed(f"ringfence ca init --config {tmp_path}/ca.toml", environment)
        assert PASSWORD not in typed(f"ringfence ca status --config {tmp_path}/ca.toml", environment)
    finally:
        postgres.execute("DROP DATABASE ringfence")
        postgres.execute("DROP ROLE ringfence")

    (tmp_path / "agent.toml").write_text(f'[agent]\nnode = "node-1"\n{agent_toml}')
    assert [str(each) for each in agent_config.load(tmp_path / "agent.toml").ca.address] == [
        "10.0.0.1:15012",
        "10.0.0.2:15012",
    ]
