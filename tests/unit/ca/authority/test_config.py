"""ca.toml: every mistake names the file, the key and what to do."""

from pathlib import Path

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.errors import ConfigError


def load(directory: Path, text: str) -> AuthorityConfig:
    path = directory / "ca.toml"
    path.write_text(text)
    return AuthorityConfig.load(path)


def test_an_empty_file_is_the_documented_default(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert (config.trust_domain, config.host, config.port, config.svid_ttl_s) == ("cluster.local", None, 15012, 3600)
    assert config.state_dir == Path("/var/lib/ringfence/ca")
    assert config.manifests_dir == Path("/etc/ringfence/manifests")
    assert config.passphrase_file is None


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":15012", None, 15012),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[fd00::1]:15012", "fd00::1", 15012),
        ("ca.example:15012", "ca.example", 15012),
    ],
)
def test_an_address_is_host_and_port(tmp_path: Path, text: str, host: str | None, port: int) -> None:
    config = load(tmp_path, f'[ca]\naddress = "{text}"')
    assert (config.host, config.port) == (host, port)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[ca", "not valid TOML"),
        ("[cax]", r"unknown section \[cax\]; there are "),
        ("ca = 3", r"write \[ca\]"),
        ("[ca]\nttl = 3", r"\[ca\] ttl: is unknown; \[ca\] has address"),
        ("[ca]\naddress = 15012", r"\[ca\] address: must be text"),
        ('[ca]\naddress = "fd00::1:15012"', r"\[ca\] address: must be host:port"),
        ('[ca]\naddress = "host"', r"\[ca\] address: must be host:port"),
        ('[ca]\naddress = ":70000"', r"\[ca\] address: must be host:port"),
        ('[ca]\nstate_dir = "here"', r"\[ca\] state_dir: must be an absolute path"),
        ('[ca]\ntrust_domain = "Cluster.Local"', r"\[ca\] trust_domain: .*cluster\.local"),
        ("[ca]\nsvid_ttl_s = 5", r"\[ca\] svid_ttl_s: must be a whole number from 10 to 604800"),
        ("[ca]\nsvid_ttl_s = true", r"\[ca\] svid_ttl_s: must be a whole number"),
        (
            "[ca]\nintermediate_lifetime_s = 600",
            r"\[ca\] svid_ttl_s: 3600 is more than 100, a sixth of intermediate_lifetime_s = 600: the rotation",
        ),
        (
            "[ca]\nroot_lifetime_s = 86400000",
            r"\[ca\] intermediate_lifetime_s: 31536000 is more than 14400000, a sixth of root_lifetime_s",
        ),
        ("[ca]\nroot_lifetime_s = 9", r"\[ca\] root_lifetime_s: must be a whole number from 60 to 946080000"),
        ('[registry]\nmanifests_dir = ""', r"\[registry\] manifests_dir: must be text"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_remedy(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "ca.toml") in str(caught.value)


def test_a_missing_file_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        AuthorityConfig.load(tmp_path / "missing.toml")


def test_what_is_signed_may_live_for_exactly_a_sixth_of_what_signs_it(tmp_path: Path) -> None:
    config = load(tmp_path, "[ca]\nsvid_ttl_s = 20\nintermediate_lifetime_s = 120\nroot_lifetime_s = 720")
    assert (config.svid_ttl_s, config.intermediate_lifetime_s, config.root_lifetime_s) == (20, 120, 720)
