"""A mistake in ca.toml is found by its line; a misspelt key by what it is like."""

from pathlib import Path

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.config_lines import line_of, meant
from ca.authority.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("# mine\n[ca]\n\ntrust_domian = 'x'", ":4: [ca] trust_domian: is unknown;", "; did you mean trust_domain?"),
        ("[ca]\nsvid_ttl_s = 3600\n[cas]", ":3: unknown section [cas];", "; did you mean ca?"),
        ("ca = 3", ":1: ", "ca must be a section"),
        ("[jwt]\nttl_s = 60\n[ca]\nsvid_ttl_s = '1h'", ":4: [ca] svid_ttl_s: ", "must be"),
        ("[ca]\naddress = ':1'\n'state_dir' = 'here'", ":3: [ca] state_dir: ", "must be an absolute path"),
        ("ca.svid_ttl_s = 1", ": [ca] svid_ttl_s: ", "must be"),  # not where it is looked for: no line is guessed
        ("[attestation]\nplugins = ['join_tokn']", ":2: [attestation] plugins: ", "is unknown"),
        ("[attestation]\n[ attestation.kubernets ]", ":2: [attestation] kubernets: ", "; did you mean kubernetes?"),
        (
            "[attestation]\nplugins = ['kubernetes']\n[attestation.kubernetes]\nservice_account = ['a/b']",
            ":4: [attestation.kubernetes] service_account: is unknown;",
            "; did you mean service_accounts?",
        ),
        ("[bundle_endpoint] # for others\nprofile = 'https_web'", ":1: [bundle_endpoint]: ", "https_web needs"),
        ("[limits]\nconnections = 1 # few", ":2: [limits] connections: ", "must be"),
    ],
)
def test_a_mistake_is_shown_where_it_stands(tmp_path: Path, text: str, place: str, says: str) -> None:
    path = tmp_path / "ca.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        AuthorityConfig.load(path)
    assert str(caught.value).startswith(f"{path}{place}")
    assert says in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_a_key_of_another_section_or_in_a_comment_is_not_the_one() -> None:
    text = "[ca]\n# ttl_s = 1\n[jwt]\nttl_s = 2\nttl_s2 = 3\n[other]\nttl_s = 4\n"
    assert line_of(text, "jwt", "ttl_s") == 4
    assert line_of(text, "ca", "ttl_s") is None
    assert line_of(text, "other", None) == 6
    assert line_of(text, "nothing", None) is None


def test_what_is_like_nothing_is_not_guessed() -> None:
    assert meant("zzz", ["trust_domain", "address"]) == ""
