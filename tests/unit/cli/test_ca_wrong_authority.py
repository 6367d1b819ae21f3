"""Commands for an authority that is not the one that ca.toml means, or not ready yet: said, not acted upon."""

import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ca.authority.store import Store
from node_agent.cli.main import main
from tests.authority_builder import Authority, make_authority
from tests.foreign_pki import ForeignPki, pem_of

Ca = Callable[..., tuple[int, str]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def ca(authority: Authority, capsys: pytest.CaptureFixture[str]) -> Ca:
    """Run ``ringfence ca ...``; returns the exit code and all that it said."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["ca", *arguments, "--config", str(authority.config_file)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.mark.parametrize(
    "command",
    ["status", "token --node node-1", "rotate", "rotate intermediate", "instances", "revoke list", "federation bundle"],
)
def test_a_command_that_is_meant_for_another_trust_domain_does_nothing(
    authority: Authority, ca: Ca, command: str
) -> None:
    text = authority.config_file.read_text()
    authority.config_file.write_text(text.replace('"cluster.local"', '"other.example"'))
    code, said = ca(*command.split())
    assert code == 1
    assert "does not fit [ca] trust_domain = 'other.example'" in said
    assert len(said.splitlines()) == 1
    with closing(Store.open(authority.config.database)) as store:
        assert store.pending_tokens(at=datetime.now(UTC)) == []
        assert len(store.authorities()) == 2


def test_a_database_without_an_authority_is_none(authority: Authority, ca: Ca) -> None:
    """A file that lost its content: SQLite takes it for a new database."""
    (authority.config.state_dir / "authority.db").write_bytes(b"")
    code, said = ca("status")
    assert code == 1
    assert "there is no authority here yet" in said


def test_status_says_which_keys_sign_and_which_is_missing(authority: Authority, ca: Ca) -> None:
    found = json.loads(ca("status", "--json")[1])
    (intermediate,) = [each for each in found["authorities"] if each["kind"] == "intermediate"]
    (authority.config.keys_dir / f"{intermediate['key_id']}.pem").unlink()
    with closing(Store.open(authority.config.database)) as store:
        assert store.jwt_keys.add("0123456789abcdef0123", b"public", seen=(), at=datetime.now(UTC))
    by_kind = {line.split()[0]: line for line in ca("status")[1].splitlines() if line}
    assert by_kind["root"].endswith("here")
    assert by_kind["intermediate"].endswith("missing")
    assert "0123456789abcdef" in by_kind["prepared"]


def test_an_authority_that_waits_for_its_intermediate_says_so(authority: Authority, ca: Ca, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(pem_of(ForeignPki().root))
    text = authority.config_file.read_text()
    authority.config_file.write_text(text.replace(str(authority.config.state_dir), str(tmp_path / "under")))
    code, said = ca("init", "--root-cert", f"{tmp_path}/root.pem", "--intermediate-csr", f"{tmp_path}/csr")
    assert code == 0, said
    for command in ("rotate", "status"):
        said = ca(command)[1]
        assert "have the first intermediate signed, and install it" in said
        assert said.splitlines()[-1].strip() == "ringfence ca install-intermediate FILE"


def test_a_nodes_name_that_can_be_none_is_a_wrong_argument(ca: Ca, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a b", "", "..", "a/b"):
        with pytest.raises(SystemExit) as caught:
            ca("token", "--node", name)
        assert caught.value.code == 2
        assert "SPIFFE-ID 2.2" in capsys.readouterr().err


def test_no_token_is_made_where_none_could_be_used(authority: Authority, ca: Ca) -> None:
    machines = authority.config_file.with_name("machines.pem")
    machines.write_bytes(pem_of(ForeignPki().certificate))
    with authority.config_file.open("a") as file:
        file.write(
            '[attestation]\nplugins = ["instance_document"]\n[attestation.instance_document]\n'
            f'certificate_file = "{machines}"\naccounts = ["1"]\nregions = ["r"]\nnode_name = "{{instanceId}}"\n'
        )
    code, said = ca("token", "--node", "node-1")
    assert code == 1
    assert '[attestation] plugins: join tokens are not enabled, and nobody could use one; add "join_token"' in said
    with closing(Store.open(authority.config.database)) as store:
        assert store.pending_tokens(at=datetime.now(UTC)) == []
    assert ca("instances") == (0, "no machine has attested with a document\n")


def test_a_key_that_can_not_be_written_says_where_and_changes_nothing(
    authority: Authority, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ca.authority.keys.write_durably", full)
    code, said = ca("rotate", "intermediate")
    assert code == 1
    assert str(authority.config.keys_dir) in said
    assert "the key can not be written: No space left on device; nothing was changed" in said
    with closing(Store.open(authority.config.database)) as store:
        assert len(store.authorities()) == 2
