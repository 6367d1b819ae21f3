"""docs/ca.md: the operator's runbook, every block of it run as it stands; and the threat model, every test of it there.

Only the directories are other ones.  ``ringfence ca serve`` goes on in the
background, as a service manager would let it; blocks are run with bash, and stop
at the first command that fails.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from ca.authority.records import CertificateRecord
from ca.authority.store import Store

ROOT: Final = Path(__file__).parents[3]
PAGE: Final = (ROOT / "docs/ca.md").read_text()
RUNBOOK: Final = PAGE.split("\n## Runbook\n")[1].split("\n## ", maxsplit=1)[0]
THREATS: Final = PAGE.split("\n## Threat model\n")[1].split("\n## ", maxsplit=1)[0]
_SERVING_S: Final = 60.0

# `serve` in the background, until it serves; the other commands as they are, with the configuration of this machine.
_RINGFENCE: Final = """\
#!/bin/bash
config=({config})
if [ "$*" != "ca serve" ]; then
  exec "{python}" -m node_agent.cli.main "$@" "${{config[@]}}"
fi
"{python}" -m node_agent.cli.main ca serve "${{config[@]}}" 2> "{log}" > /dev/null &
echo $! >> "{pids}"
"""


def sections() -> dict[str, list[str]]:
    """Heading -> its shell blocks."""
    parts = re.split(r"^### (.+)$", RUNBOOK, flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    return {heading: re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for heading, text in texts.items()}


class Machine:
    """The authority's machine, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.etc, self.var, self.offline = directory / "etc", directory / "var", directory / "offline"
        self.backups, self.home, self.log, self.pids = (directory / name for name in ("backups", "home", "log", "pids"))
        for made in (self.etc, self.var, self.offline, self.backups, self.home, self.etc / "manifests"):
            made.mkdir()
        self.pids.touch()
        command = directory / "ringfence"
        script = _RINGFENCE.format(
            config=f"--config {self.etc}/ca.toml", python=sys.executable, log=self.log, pids=self.pids
        )
        command.write_text(script)
        command.chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(self, block: str) -> str:
        """Type a block; returns what it printed."""
        for path, here in {
            "/etc/ringfence": self.etc,
            "/var/lib/ringfence": self.var,
            "/mnt/offline": self.offline,
            "/var/backups": self.backups,
        }.items():
            block = block.replace(path, str(here))
        # The defaults of a machine that is the authority's alone.
        local = (
            f'state_dir = "{self.var}/ca"\naddress = "127.0.0.1:0"\n[registry]\nmanifests_dir = "{self.etc}/manifests"'
        )
        block = block.replace("\nEND\n", f"\n{local}\nEND\n")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def founded(self) -> "Machine":
        """An authority made by the first block, without its server."""
        self.run(sections()["Make an authority"][0].replace("ringfence ca serve", "true"))
        return self

    def configured(self) -> "Machine":
        """ca.toml and the passphrase are there, an authority is not."""
        self.run(re.sub(r"ringfence ca (init|serve)", "true", sections()["Make an authority"][0]))
        return self

    def stop(self) -> None:
        for line in self.pids.read_text().split():
            try:
                os.kill(int(line), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.pids.write_text("")

    def serves(self) -> bool:
        deadline = time.monotonic() + _SERVING_S
        while '"event": "serving"' not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return True

    def status(self) -> str:
        return self.run("ringfence ca status")

    def bundle(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((self.var / "ca/bundle.pem").read_bytes())


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.stop()


def test_every_section_is_run_by_a_test_of_this_file() -> None:
    """Whoever adds a section adds its test here."""
    assert set(sections()) == {
        "Make an authority",
        "Let a node join",
        "Look at it",
        "Keep the root key offline",
        "Make an authority under an existing PKI",
        "Rotate the intermediate",
        "Rotate the root",
        "Revoke",
        "Restore",
        "Replace the root in an emergency",
    }


def test_make_an_authority_let_a_node_join_and_look_at_it(machine: Machine) -> None:
    (make,), (join,), (look,) = (sections()[each] for each in ("Make an authority", "Let a node join", "Look at it"))
    assert "made the authority of cluster.local" in machine.run(make)
    assert machine.serves()
    machine.run(join)
    assert (machine.home / "join-token").read_text().strip()
    printed = machine.run(look)
    assert "JOIN TOKEN FOR" in printed
    assert printed.count("prepare the next intermediate") == 2


def test_keep_the_root_key_offline_from_the_start(machine: Machine) -> None:
    begin, _, rotate = sections()["Keep the root key offline"]
    machine.configured().run(begin)
    assert len(list((machine.var / "ca/keys").iterdir())) == 1
    assert "elsewhere" in machine.status()
    assert "signs from now on" in machine.run(rotate)
    assert len(list((machine.var / "ca/keys").iterdir())) == 2


def test_keep_the_root_key_offline_later(machine: Machine) -> None:
    _, move, rotate = sections()["Keep the root key offline"]
    machine.founded().run(move)
    assert "elsewhere" in machine.status()
    bare = re.sub(r" --root-passphrase-file \S+", "", rotate)  # as the sentence below it says
    assert "signs from now on" in machine.run(bare)


def test_make_an_authority_under_an_existing_pki_and_follow_it(machine: Machine) -> None:
    begin, sign, take_up, again, new_root = sections()["Make an authority under an existing PKI"]
    machine.configured()
    for number in ("", "-2"):
        machine.run(
            f"openssl req -x509 -newkey rsa:2048 -nodes -keyout corporate-root{number}.key -days 3650 "
            f"-out corporate-root{number}.pem -subj '/O=Example/CN=Example Root{number}' "
            "-addext keyUsage=critical,keyCertSign,cRLSign"
        )
    assert "have the request signed" in machine.run(begin)
    machine.run(sign)
    assert "it signs from now on" in machine.run(take_up)
    assert machine.serves()
    assert "it is prepared" in machine.run(again)
    assert "what is issued from now on is signed under it" in machine.run(new_root)
    assert len(machine.bundle()) == 2


def test_rotate_the_intermediate(machine: Machine) -> None:
    (block,) = sections()["Rotate the intermediate"]
    assert "signs from now on" in machine.founded().run(block)


def test_rotate_the_root(machine: Machine) -> None:
    rotate, skip, withdraw = sections()["Rotate the root"]
    assert "every live agent trusts the new root" in machine.founded().run(rotate)
    with pytest.raises(AssertionError, match="--skip-node node-1: no such node is alive"):
        machine.run(skip.replace("rotate root", "rotate root --force"))
    assert "out of the trust bundle again" in machine.run(withdraw)
    assert len(machine.bundle()) == 2


def test_revoke(machine: Machine) -> None:
    node, identity = sections()["Revoke"]
    machine.founded().run(sections()["Let a node join"][0])
    _journal(machine, "spiffe://cluster.local/ns/default/sa/web")
    printed = machine.run(node)
    assert "disk stolen" in printed
    assert (machine.home / "join-token.node-1").read_text().strip()
    machine.run(identity)
    assert "/sa/web" not in machine.run("ringfence ca revoke list")


def _journal(machine: Machine, identity: str) -> None:
    """A certificate that was issued."""
    at = datetime.now(UTC)
    record = CertificateRecord(
        serial=1,
        identity=identity,
        node="node-1",
        not_before=at,
        not_after=at + timedelta(hours=1),
        issued_at=at,
        attestation="node_certificate",
        requester="",
        issuer_key_id="i1",
    )
    with closing(Store.open(machine.var / "ca" / "authority.db")) as store:
        store.journal([record])


def test_restore(machine: Machine) -> None:
    backup, restore = sections()["Restore"]
    machine.founded().run(backup)
    before = machine.bundle()
    (machine.var / "ca").rename(machine.var / "lost")
    assert "restored" in machine.run(restore)
    assert machine.serves()
    assert machine.bundle() == before


def test_replace_the_root_in_an_emergency(machine: Machine) -> None:
    replace, tokens = sections()["Replace the root in an emergency"]
    machine.founded()
    (before,) = machine.bundle()
    machine.run("ringfence ca serve")
    assert machine.serves()
    machine.stop()
    machine.log.write_text("")
    assert "replaced everything at once" in machine.run(replace)
    assert machine.serves()
    (after,) = machine.bundle()
    assert after != before
    machine.run(tokens)
    assert (machine.home / "join-token.node-1").read_text() != (machine.home / "join-token.node-2").read_text()


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", THREATS))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(named) > 20
    assert named <= there


def test_every_row_of_the_threat_model_names_a_test() -> None:
    rows = [line for line in THREATS.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 9
    assert all("`test_" in row.rsplit("|", 2)[1] for row in rows)
