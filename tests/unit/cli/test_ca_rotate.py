"""``ringfence ca rotate`` and ``status``: what they refuse, whom they name, what they show."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from ca.authority import founding
from ca.authority.records import CertificateRecord
from ca.authority.status import describe
from ca.authority.store import Store
from node_agent.cli.ca.status import render
from node_agent.cli.main import main
from node_agent.cli.terminal import Paint
from tests.authority_builder import PASSPHRASE, Authority, make_authority
from tests.foreign_pki import ForeignPki, pem_of

HOUR: Final = timedelta(hours=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def store(authority: Authority) -> Iterator[Store]:
    with closing(Store.open(authority.config.database)) as opened:
        yield opened


@pytest.fixture
def ca(authority: Authority, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run ``ringfence ca ...``; returns the exit code and all that it said."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["ca", *arguments, "--config", str(authority.config_file)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def join(
    store: Store, node: str, *, version: int | None, ends_in: timedelta = HOUR, seen: timedelta = timedelta()
) -> None:
    """A node that holds a node certificate, and last said that it has ``version``."""
    at = datetime.now(UTC)
    record = CertificateRecord(
        serial=store.certificate_count() + 1,
        identity=f"spiffe://cluster.local/ringfence/node/{node}",
        node=node,
        not_before=at,
        not_after=at + ends_in,
        issued_at=at,
        attestation="join_token",
        requester="10.0.0.1:4000",
        issuer_key_id="i1",
    )
    store.journal([record])
    if version is not None:
        store.trust.acknowledge(node, version, at=at - seen, address="10.0.0.1")


Ca = Callable[..., tuple[int, str]]


# -- what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rotate", "intermediate", "--emergency"], "--emergency is for: ringfence ca rotate root"),
        (["rotate", "intermediate", "--skip-node", "node-1"], "--skip-node is for: ringfence ca rotate root"),
        (["rotate", "root", "--csr", "x.csr"], "--root-cert and --csr belong together"),
        (["rotate", "--force"], "say which: ringfence ca rotate root, or"),
        (["rotate", "root", "--withdraw"], "no root is prepared"),
        (["rotate", "root", "--withdraw", "--emergency"], "--emergency goes alone"),
        (["rotate", "root", "--root-cert", "x.pem", "--csr", "x.csr", "--emergency"], "--emergency goes alone"),
        (["init"], "never overwritten"),
        (["init", "--root-cert", "x.pem"], "--root-cert and --intermediate-csr belong together"),
        (["install-intermediate", "missing.pem"], "missing.pem: can not be read: No such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(ca: Ca, arguments: list[str], says: str) -> None:
    code, said = ca(*arguments)
    assert code == 1
    assert said.startswith(f"ringfence ca {arguments[0]}: ")
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("timeout", ["0", "-1", "1.5", "x", "9999999"])
def test_a_timeout_is_a_whole_number_of_seconds(ca: Ca, timeout: str) -> None:
    with pytest.raises(SystemExit):
        ca("rotate", "root", "--timeout-s", timeout)


def test_the_root_key_of_somebody_else_stays_where_it_is(tmp_path: Path, ca: Ca) -> None:
    (tmp_path / "root.pem").write_bytes(pem_of(ForeignPki().certificate))
    csr = tmp_path / "request.csr"
    arguments = ["--root-cert", str(tmp_path / "root.pem"), "--intermediate-csr", str(csr)]
    code, said = ca("init", *arguments, "--root-key", str(tmp_path / "key.pem"))
    assert (code, csr.exists()) == (1, False)
    assert "--root-key is for a root that is made here" in said


def test_a_request_is_never_written_over_another_file(tmp_path: Path, ca: Ca) -> None:
    (tmp_path / "there").write_text("precious")
    code, said = ca("rotate", "intermediate", "--csr", str(tmp_path / "there"))
    assert code == 1
    assert "is there already; name a new file" in said
    code, said = ca("rotate", "intermediate", "--csr", str(tmp_path / "nowhere" / "x.csr"))
    assert code == 1
    assert "its directory is not there" in said
    assert (tmp_path / "there").read_text() == "precious"


def test_a_root_of_a_pki_is_not_replaced_by_one_of_ours_by_accident(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "ca.toml"
    (tmp_path / "passphrase").touch(mode=0o600)
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    config.write_text(f'[ca]\nstate_dir = "{tmp_path}/state"\npassphrase_file = "{tmp_path}/passphrase"\n')
    (tmp_path / "root.pem").write_bytes(pem_of(ForeignPki().certificate))
    begin = ["ca", "init", "--root-cert", f"{tmp_path}/root.pem", "--intermediate-csr", f"{tmp_path}/request.csr"]
    assert main([*begin, "--config", str(config)]) == 0
    for emergency in ([], ["--emergency"]):
        assert main(["ca", "rotate", "root", *emergency, "--config", str(config)]) == 1
        assert "--root-cert FILE --csr FILE, or leave that PKI with --own-root" in capsys.readouterr().err
    assert main(["ca", "rotate", "root", "--own-root", "--config", str(config)]) == 0


def test_nothing_is_rotated_under_a_passphrase_that_the_server_does_not_have(tmp_path: Path, ca: Ca) -> None:
    other = tmp_path / "other"
    other.touch(mode=0o600)
    other.write_bytes(b"not the passphrase of the keys")
    before = ca("status", "--json")
    for arguments in (["intermediate"], ["root"]):
        code, said = ca("rotate", *arguments, "--passphrase-file", str(other))
        assert code == 1
        assert "wrong passphrase" in said
        assert "nothing was changed" in said
    assert [key["key_id"] for key in json.loads(ca("status", "--json")[1])["authorities"]] == [
        key["key_id"] for key in json.loads(before[1])["authorities"]
    ]
    assert ca("rotate", "root", "--emergency", "--passphrase-file", str(other))[0] == 0


def test_an_offline_root_is_not_followed_by_one_whose_key_lies_here_by_accident(
    tmp_path: Path, authority: Authority, store: Store, ca: Ca
) -> None:
    root = next(name for name in store.keys.names() if name == _root_id(ca))
    medium = tmp_path / "medium.pem"
    (authority.config.keys_dir / f"{root}.pem").rename(medium)
    for emergency in ([], ["--emergency"]):
        code, said = ca("rotate", "root", *emergency)
        assert code == 1
        assert "the key of the root is kept elsewhere: say with --root-key FILE" in said
    code, said = ca("rotate", "root", "--root-key", str(medium))
    assert code == 1
    assert f"{medium}: is there already, and no key is ever written over another; name a new file" in said
    assert ca("rotate", "root", "--root-key", str(tmp_path / "next.pem"))[0] == 0
    assert _root_id(ca) not in store.keys.names()


def _root_id(ca: Ca) -> str:
    keys = json.loads(ca("status", "--json")[1])["authorities"]
    return next(str(key["key_id"]) for key in keys if (key["kind"], key["state"]) == ("root", "active"))


# -- waiting ----------------------------------------------------------------------


def test_agents_that_have_not_acknowledged_are_named_with_what_is_known_of_them(ca: Ca, store: Store) -> None:
    join(store, "ready", version=2)  # what the new root will be published with
    join(store, "behind", version=1)
    join(store, "silent", version=1, seen=timedelta(minutes=5))
    join(store, "new", version=None)
    join(store, "ended", version=1, ends_in=timedelta(seconds=-1))
    assert store.trust.version() == 1
    code, said = ca("rotate", "root", "--timeout-s", "1")
    assert code == 1
    assert "waiting for 3 of 4 live agents" in said
    assert re.search(r"  behind: heard of just now, with version 1; its node certificate ends in 59m", said)
    assert re.search(r"  silent: last heard of 5m0\ds ago, with version 1", said)
    assert "  new: never heard of; its node certificate ends in" in said
    assert "ready:" not in said
    assert "ended" not in said
    assert "do not trust the new root yet: behind, new, silent; it stays published" in said

    code, said = ca("rotate", "root", "--skip-node", "behind", "--skip-node", "new", "--timeout-s", "1")
    assert code == 1
    assert said.startswith("going on with the new root")
    assert "do not trust the new root yet: silent;" in said
    store.trust.acknowledge("silent", store.trust.version(), at=datetime.now(UTC))
    assert ca("rotate", "root", "--skip-node", "behind", "--skip-node", "new")[0] == 0


def test_a_node_that_is_revoked_is_not_waited_for(ca: Ca, store: Store) -> None:
    join(store, "stolen", version=1)
    store.revocations.revoke_node("stolen", at=datetime.now(UTC), why="")
    assert ca("rotate", "root", "--timeout-s", "1")[0] == 0


def test_a_node_that_was_revoked_and_let_in_again_is_waited_for(ca: Ca, store: Store) -> None:
    join(store, "rebuilt", version=1)
    store.revocations.revoke_node("rebuilt", at=datetime.now(UTC), why="")
    assert "revoked " in ca("status")[1]
    join(store, "rebuilt", version=1, ends_in=2 * HOUR)
    code, said = ca("rotate", "root", "--timeout-s", "1")
    assert code == 1
    assert "these agents do not trust the new root yet: rebuilt" in said
    agent = json.loads(ca("status", "--json")[1])["agents"][0]
    assert (agent["node"], agent["live"], agent["shut_out"]) == ("rebuilt", True, False)


def test_an_acknowledgement_of_before_a_restore_does_not_count(ca: Ca, store: Store) -> None:
    join(store, "from-before", version=1000)
    code, said = ca("rotate", "root", "--timeout-s", "1")
    assert code == 1
    assert "from-before" in said


def test_a_rotation_that_is_over_is_not_begun_again_without_force(ca: Ca) -> None:
    assert ca("rotate", "root")[0] == 0
    code, said = ca("rotate", "root")
    assert code == 0
    assert "the root was rotated at" in said
    assert "published the new root" in ca("rotate", "root", "--force")[1]
    assert "the intermediate was rotated at" in ca("rotate", "intermediate")[1]
    assert "signs from now on" in ca("rotate", "intermediate", "--force")[1]


def test_a_published_root_waits_for_its_intermediate(tmp_path: Path, ca: Ca) -> None:
    (tmp_path / "root.pem").write_bytes(pem_of(ForeignPki().certificate))
    assert ca("rotate", "root", "--root-cert", f"{tmp_path}/root.pem", "--csr", f"{tmp_path}/x.csr")[0] == 0
    code, said = ca("rotate", "root")
    assert code == 1
    assert "no intermediate under it is here yet" in said
    assert "ringfence ca install-intermediate FILE" in said


# -- status -----------------------------------------------------------------------


def test_status_shows_keys_agents_revocations_and_what_is_due_at_a_glance(ca: Ca, store: Store) -> None:
    join(store, "node-1", version=1)
    join(store, "node-2", version=None)
    store.revocations.revoke_identity("spiffe://cluster.local/ns/a/sa/b", at=datetime.now(UTC), why="left", unseen=True)
    code, said = ca("status")
    assert code == 0
    assert "authority of cluster.local; SVIDs live 1h00m; 2 certificates issued; trust version 2" in said
    for line in (
        r"^KEY +STATE +ID +AGE +ENDS \(UTC\) +PRIVATE HALF$",
        r"^root +active +[0-9a-f]{16} +\S+ +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +here$",
        r"^node-1 +behind +1 +\S+ ago ",
        r"^node-2 +behind +0 +never ",
        r"^identity spiffe://cluster.local/ns/a/sa/b +\S+ \S+ +undone +0 +left$",
        r"^prepare the next intermediate +in 1\d\dd\d\dh ",
        r"^rotate the root +in \d+d\d\dh .* you$",
    ):
        assert re.search(line, said, re.MULTILINE), line


def test_status_json_is_exact(ca: Ca, store: Store, authority: Authority) -> None:
    join(store, "node-1", version=1)
    found = json.loads(ca("status", "--json")[1])
    assert found.keys() >= {"authorities", "agents", "trust_version", "revocations", "federation", "jwt_keys", "due"}
    root, intermediate = found["authorities"]
    assert (root["kind"], root["state"], root["key_here"]) == ("root", "active", True)
    assert intermediate["issuer_key_id"] == root["key_id"]
    assert intermediate["key_id"] == authority.hierarchy.issuer_key_id
    (agent,) = found["agents"]
    assert (agent["node"], agent["live"], agent["version"], agent["acknowledged"]) == ("node-1", True, 1, True)
    assert found["due_next"] == found["due"][0]
    assert [due["commands"] for due in found["due"] if due["needs_operator"]] == [["ringfence ca rotate root"]]


def test_what_is_overdue_comes_with_its_commands(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=200))
    (authority.config.keys_dir / f"{root_id(authority)}.pem").unlink()
    with closing(Store.open(authority.config.database)) as store:
        found = describe(authority.config, store, at=datetime.now(UTC))
    said = render(found, Paint(argparse.Namespace(isatty=lambda: False)))  # type: ignore[arg-type]
    assert "to prepare the next intermediate:\n  ringfence ca rotate intermediate --root-key FILE" in said
    assert "elsewhere" in said


def test_under_a_pki_the_commands_are_those_of_a_request(tmp_path: Path) -> None:
    at = datetime.now(UTC) - timedelta(days=3000)
    authority = make_authority(tmp_path)
    config = replace(authority.config, state_dir=tmp_path / "under", database=tmp_path / "under" / "authority.db")
    founding.create_under(config, ForeignPki(at=at).certificate, passphrase=PASSPHRASE, at=at)
    with closing(Store.open(config.database)) as store:
        found: dict[str, Any] = describe(config, store, at=datetime.now(UTC))
    assert [each["commands"][0] for each in found["due"] if each["overdue"]] == [
        "ringfence ca install-intermediate FILE",
        "ringfence ca rotate root --root-cert FILE --csr FILE",
    ]


def root_id(authority: Authority) -> str:
    with closing(Store.open(authority.config.database)) as store:
        return store.authorities()[0].key_id
