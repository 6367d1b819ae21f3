"""``ringfence ca revoke``, as an operator types it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from ca.authority.records import CertificateRecord
from ca.authority.store import Store
from ca.spiffe import SpiffeId
from node_agent.cli.main import main
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, workload

WEB: Final = str(workload("web"))
SERIAL: Final = f"{0xBEEF:040x}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """With two certificates in its journal: node-1's own, and one for web on it."""
    made = make_authority(tmp_path)
    at = datetime.now(UTC)
    store = Store.open(made.config.database)
    for serial, identity in ((0xBEEF, WEB), (0xCAFE, str(SpiffeId.node(TRUST_DOMAIN, "node-1")))):
        record = CertificateRecord(
            serial=serial,
            identity=identity,
            node="node-1",
            not_before=at,
            not_after=at + timedelta(hours=1),
            issued_at=at,
            attestation="join_token",
            requester="10.0.0.1:4000",
            issuer_key_id="ab",
        )
        store.journal([record])
    store.close()
    return made


class Terminal:
    def __init__(self, authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
        self._config = str(authority.config_file)
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["ca", "revoke", *arguments, "--config", self._config])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err

    def listed(self) -> list[dict[str, Any]]:
        code, out, _ = self.run("list", "--json")
        assert code == 0
        found: list[dict[str, Any]] = json.loads(out)
        return found


@pytest.fixture
def terminal(authority: Authority, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(authority, capsys)


@pytest.mark.parametrize("text", ["beef", "BE:EF", "0xbeef", SERIAL])
def test_a_serial_is_taken_as_it_is_shown_elsewhere(terminal: Terminal, text: str) -> None:
    code, out, _ = terminal.run("serial", text, "--reason", "leaked")
    assert code == 0
    assert out.startswith(f"revoked serial {SERIAL}, 1 certificate of now, until 20")
    (row,) = terminal.listed()
    assert (row["kind"], row["value"], row["reason"], row["certificates"]) == ("serial", SERIAL, "leaked", 1)


def test_an_identity_is_revoked_listed_and_undone(terminal: Terminal) -> None:
    assert terminal.run("identity", WEB, "--reason", "its image was replaced")[0] == 0
    code, out, _ = terminal.run("list")
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["identity", WEB]
    assert "undone" in out
    assert "its image was replaced" in out
    assert terminal.run("identity", WEB, "--undo")[1] == f"identity {WEB} is no longer revoked\n"
    assert terminal.run("list")[1] == "nothing is revoked\n"


def test_a_node_takes_all_its_certificates_along_and_the_way_back_is_said(terminal: Terminal) -> None:
    code, out, err = terminal.run("node", "node-1")
    assert code == 0
    assert "2 certificates of now" in out
    assert "ringfence ca token --node node-1" in err
    assert terminal.listed()[0]["certificates"] == 2


def test_a_token_for_a_node_that_is_revoked_says_what_it_does(
    authority: Authority, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.run("node", "node-1")
    assert main(["ca", "token", "--node", "node-1", "--config", str(authority.config_file)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("rfjoin-")
    assert "node-1 is revoked since" in printed.err
    assert "lets it in again" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serial", "cafe"), "is node node-1's own; run: ringfence ca revoke node node-1"),
        (("serial", "f00d"), "this authority has not issued it"),
        (("serial", "hello"), "'hello' is not a serial number"),
        (("identity", "spiffe://cluster.local/ns/default/sa/wbe"), "is it spelt right?"),
        (("identity", "spiffe://cluster.local/ringfence/ca"), "is not revoked but replaced: ringfence ca rotate"),
        (("identity", "spiffe://cluster.local/ringfence/node/node-1"), "run ringfence ca revoke node node-1"),
        (("identity", "cluster.local/x"), "does not begin with 'spiffe://'"),
        (("identity", WEB, "--undo"), "is not revoked"),
        (("node", "nod-1"), "node nod-1: it was never issued anything"),
    ],
)
def test_what_can_not_be_done_is_one_line_with_the_way_out(
    terminal: Terminal, arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = terminal.run(*arguments)
    assert code == 1
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("ringfence ca revoke: ")
    assert words in err
    assert terminal.listed() == []


@pytest.mark.parametrize("reason", ["x" * 201, "two\nlines", "\x1b[31mred"])
def test_a_reason_is_short_and_harmless(terminal: Terminal, reason: str) -> None:
    with pytest.raises(SystemExit):
        terminal.run("identity", WEB, "--reason", reason)


def test_what_was_typed_is_shown_escaped(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = Terminal(authority, capsys).run("node", "node-1\n\x1b[31mroot#")
    assert code == 1
    assert r"node node-1\n\x1b[31mroot#: it was never issued anything" in said
    assert said.count("\n") == 1
