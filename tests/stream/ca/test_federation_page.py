"""docs/federation.md: its commands as they stand, typed by two operators."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.errors import ConfigError
from ca.manifests import Node, parse_manifests
from tests.authority_builder import Authority, make_authority

_PAGE: Final = (Path(__file__).parents[3] / "docs/federation.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", _PAGE, re.DOTALL)


class _Operator:
    """Types commands on one CA's machine, where ``ringfence`` knows its configuration."""

    def __init__(self, directory: Path, trust_domain: str) -> None:
        directory.mkdir()
        self.authority: Authority = make_authority(directory, trust_domain=trust_domain)
        self._directory = directory
        command = directory / "ringfence"
        config = self.authority.config_file
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m node_agent.cli.main "$@" --config "{config}"\n')
        command.chmod(0o755)

    def types(self, script: str, *, in_directory: Path) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'PATH="{self._directory}:$PATH"; cd "{in_directory}"\n{script}'],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    ours, theirs = _Operator(tmp_path / "ours", "cluster.local"), _Operator(tmp_path / "theirs", "other.example")
    printed, added, ended = _blocks("sh")
    theirs.types(printed, in_directory=tmp_path)
    said = ours.types(added, in_directory=tmp_path)
    assert "other.example is trusted from now on" in said
    assert "1 roots" in said
    said = ours.types(ended, in_directory=tmp_path)
    assert "1 to be fetched now" in said
    assert "other.example is no longer trusted" in said


def test_the_settings_of_the_page_are_accepted(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    (block,) = _blocks("toml")
    authority.config_file.write_text(authority.config_file.read_text() + block)
    settings = AuthorityConfig.load(authority.config_file).bundle_endpoint
    assert settings is not None
    assert (settings.host, settings.port, settings.profile) == (None, 15013, "https_spiffe")


def test_the_node_of_the_page_is_of_the_other_trust_domain() -> None:
    (block,) = _blocks("yaml")
    (node,) = parse_manifests(block, origin="page.yaml").objects
    assert isinstance(node, Node)
    assert node.trust_domain == "other.example"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ('profile = "https"', "must be https_spiffe or https_web"),
        ('profile = "https_web"', "needs certificate_file and key_file"),
        ('certificate_file = "/a.pem"', "remove certificate_file"),
        ("refresh_hint_s = 301", "from 1 to 300"),
        ("refresh_hint_s = 0", "from 1 to 300"),
        ('address = "nonsense"', "host:port"),
        ('path = "/"', "is unknown"),
    ],
)
def test_a_mistake_in_the_section_is_told(tmp_path: Path, section: str, says: str) -> None:
    authority = make_authority(tmp_path)
    authority.config_file.write_text(f"{authority.config_file.read_text()}[bundle_endpoint]\n{section}\n")
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        AuthorityConfig.load(authority.config_file)
    assert "[bundle_endpoint]" in str(caught.value)
