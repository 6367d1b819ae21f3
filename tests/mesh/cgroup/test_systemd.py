"""A Workload that is a unit of systemd, with a real systemd: it starts when it is captured, again and again."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bpf import preconditions
from tests.mesh_builder import LAB_NAME, ROOT, STATE_DIR, Mesh, wait_for

pytestmark = pytest.mark.mesh

_PORT: Final = 8080
_UNIT: Final = f"ringfence-{LAB_NAME}.service"
_STARTS: Final = 4
_RINGFENCE: Final = str(ROOT / ".venv/bin/ringfence")
_CLIENT: Final = """\
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as connection:
        print(connection.recv(100).split()[0].decode(), flush=True)
except OSError as error:
    print(error, flush=True)
"""
# As the first process of a PID namespace systemd believes that the machine is its own: it gets a /run, an /etc and a
# /proc/sys in which it can not change ours, and a cgroup namespace whose root it may manage.
_BOOT: Final = """\
set -e
mount -n --make-rprivate /
mount -n --bind {state} /mnt
mount -n -t tmpfs none /run
mkdir {state}
mount -n --bind /mnt {state}
mount -n --bind /etc /etc
mount -n -o remount,ro,bind /etc
mount -n --bind /proc/sys /proc/sys
mount -n -o remount,ro,bind /proc/sys
umount -n -R /sys/fs/cgroup
mount -n -t cgroup2 none /sys/fs/cgroup
exec env -i PATH="$PATH" container=ringfence SYSTEMD_UNIT_PATH={units} /lib/systemd/systemd --system \
    --unit=test.target --show-status=no --log-target=console --log-level=warning
"""


@pytest.fixture
def slice_() -> Iterator[Path]:
    """Where systemd has its cgroups: as below a machine's root, but not at it."""
    where = preconditions.cgroup_root() / f"ringfence{LAB_NAME}.slice"
    _remove(where)
    where.mkdir()
    yield where
    _remove(where)


def _remove(where: Path) -> None:
    """End what is in there, and wait for it: a killed session may have left it."""
    if not where.exists():
        return
    (where / "cgroup.kill").write_text("1")
    wait_for("its processes to be gone", lambda: "populated 0" in (where / "cgroup.events").read_text(), deadline_s=60)
    for directory, _, _ in os.walk(where, topdown=False):
        os.rmdir(directory)


def _units(directory: Path, drop_in: str, server_ip: str) -> Path:
    """The unit, with the drop-in of docs/bpf.md."""
    units = directory / "units"
    (units / f"{_UNIT}.d").mkdir(parents=True)
    (units / "test.target").write_text(f"[Unit]\nDefaultDependencies=no\nWants={_UNIT}\n")
    (units / f"{_UNIT}.d" / "ringfence.conf").write_text(drop_in)
    (directory / "client.py").write_text(_CLIENT)
    environment = "".join(f"Environment={key}={os.environ[key]}\n" for key in ("PYTHONPATH",) if key in os.environ)
    (units / _UNIT).write_text(
        f"[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\n{environment}"
        f"ExecStart={ROOT}/.venv/bin/python {directory}/client.py {server_ip} {_PORT}\n"
        f"StandardOutput=append:{directory}/said\nRestart=always\nRestartSec=100ms\nTimeoutStartSec=300\n"
    )
    return units


def _documented_drop_in() -> str:
    text = (ROOT / "docs/bpf.md").read_text()
    block = next(each for each in text.split("```ini\n")[1:] if "bpf wait" in each.split("```")[0]).split("```")[0]
    command = "/usr/bin/ringfence bpf wait shop/web"
    assert command in block
    options = f"--pins /sys/fs/bpf/ringfence_lab_{LAB_NAME}_node1 --agent {STATE_DIR}/agent-1/agent.sock --timeout 250"
    return block.replace(command, f"{_RINGFENCE} bpf wait default/web {options}")


def test_a_unit_waits_until_it_is_captured_each_time_that_it_starts(mesh: Mesh, slice_: Path, tmp_path: Path) -> None:
    server = mesh.pod("server", node=2, service_account="server")
    server.serve_whoami(_PORT)
    web = mesh.pod("web", node=1, service_account="web")
    manifest = STATE_DIR / "manifests/workload.default.web.yaml"
    described = json.loads(manifest.read_text())
    del described["spec"]["cgroup"]
    described["spec"]["systemdUnit"] = _UNIT
    manifest.write_text(json.dumps(described))

    boot = _BOOT.format(state=STATE_DIR, units=_units(tmp_path, _documented_drop_in(), server.ipv4))
    enter = f'echo $$ > {slice_}/cgroup.procs; exec "$@"'
    command = ["sh", "-c", enter, "sh", "setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={mesh.node_netns(1)}"]
    command += ["unshare", "--cgroup", "--mount", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "sh", "-c", boot]
    said = tmp_path / "said"

    def starts() -> list[str] | None:
        assert systemd.poll() is None, "systemd has ended"
        lines = said.read_text().splitlines() if said.exists() else []
        return lines if len(lines) >= _STARTS else None

    with (tmp_path / "log").open("wb") as log:
        systemd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            heard = wait_for("the unit to have run some times", starts, deadline_s=120)
        except AssertionError as late:
            raise AssertionError(f"{late}: {(tmp_path / 'log').read_text()}") from late
        finally:
            _remove(slice_)
            systemd.wait(60)
    assert heard == ["server"] * len(heard), "none went in plaintext, none failed"
    records = wait_for(
        "as many records",
        lambda: found if len(found := mesh.records(1, direction="outbound")) >= len(heard) else None,
        deadline_s=60,
    )
    assert {each["source_identity"] for each in records} == {web.identity}
    assert {each["connection_security_policy"] for each in records} == {"mutual_tls"}
