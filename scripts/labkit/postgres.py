"""PostgreSQL for a lab whose CA has several replicas: Debian's, on node 0, in memory.

It listens on a unix socket only, and ends with the other processes of the node.
Its files are on a tmpfs of their own: the server runs as the user ``postgres``,
who may not enter the lab's state directory.
"""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from labkit import layout, netns
from labkit.errors import LabError

_USER: Final = "postgres"  # it refuses to run as root
_READY_S: Final = 60.0
_POLL_S: Final = 0.02
_MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8
_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_directories": str(layout.POSTGRES_DIR),
    "dynamic_shared_memory_type": "mmap",  # a file of its own, gone with the others
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
}


def start() -> str:
    """Make and start a server; returns the URL of its one database, which is empty.

    Raises:
        LabError: PostgreSQL is not installed, or does not start.
    """
    binaries = _binaries()
    directory = layout.POSTGRES_DIR
    directory.mkdir(mode=0o700)
    netns.mount("ringfence-lab", str(directory), "tmpfs", _MS_NOSUID_NODEV_NOEXEC, "mode=0700,size=512m")
    shutil.chown(directory, _USER, _USER)
    with netns.inside(layout.node_netns(0)):  # so that ``down`` finds it, too, when this is interrupted
        made = subprocess.run(
            ["runuser", "-u", _USER, "--", binaries / "initdb", "-D", directory / "data", "-A", "trust", "--no-sync"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
    if made.returncode:
        raise LabError(f"initdb failed with exit code {made.returncode}: {made.stderr.strip()}")
    options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    identity = ["setpriv", "--reuid", _USER, "--regid", _USER, "--init-groups"]
    with (directory / "log").open("wb") as log, netns.inside(layout.node_netns(0)):
        server = subprocess.Popen(
            [*identity, binaries / "postgres", "-D", directory / "data", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    _wait_until_ready(binaries, server, directory)
    server.returncode = 0  # it is to outlive this command: no warning that nobody waits for it
    return f"postgresql://{_USER}@/postgres?host={directory}"


def remove() -> None:
    """Forget its files; its processes have ended with those of node 0."""
    while netns.unmount(str(layout.POSTGRES_DIR)):
        pass
    if layout.POSTGRES_DIR.exists():
        layout.POSTGRES_DIR.rmdir()


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    if not found:
        raise LabError("PostgreSQL is not installed: run `scripts/setup`")
    return found[-1]


def _wait_until_ready(binaries: Path, server: "subprocess.Popen[bytes]", directory: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        asked = subprocess.run([binaries / "pg_isready", "-q", "-h", directory], check=False)
        if asked.returncode == 0:
            return
        if server.poll() is not None or time.monotonic() > deadline:
            log = (directory / "log").read_text(encoding="utf-8", errors="replace")
            raise LabError(f"PostgreSQL does not start: {log[-2000:]}")
        time.sleep(_POLL_S)
