"""A real PostgreSQL for tests: Debian's, in a directory of its own, that can be stopped, killed and started again.

It listens on a unix socket (no password) and on 127.0.0.1 (password).  It ends
with the process that started it, also when that is killed.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from tests.mesh_builder import wait_for

_BINARIES: Final = max(Path("/usr/lib/postgresql").glob("*/bin"))
_USER: Final = "postgres"  # PostgreSQL refuses to run as root
_DEADLINE_S: Final = 60.0
_ENOUGH_BYTES: Final = 2 * 1024**3
_HBA: Final = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


class PostgresServer:
    """Made by ``postgres_server``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        as_postgres = ("runuser", "-u", _USER, "--") if os.geteuid() == 0 else ()
        subprocess.run(
            [
                *as_postgres,
                _BINARIES / "initdb",
                "-D",
                self._data,
                "-U",
                _USER,
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
            ],
            check=True,
            capture_output=True,
            cwd="/",
        )
        (self._data / "pg_hba.conf").write_text(_HBA)

    def start(self, *options: str) -> None:
        """Start with more ``name=value`` settings; returns when it accepts connections.

        From the main thread only: the server gets its PR_SET_PDEATHSIG when the thread ends that started it.
        """
        assert threading.current_thread() is threading.main_thread()
        settings = [
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._directory}",
            "max_connections=60",
            "dynamic_shared_memory_type=mmap",  # a file of the data directory: nothing is left when it is killed
            "recovery_init_sync_method=syncfs",  # after a crash it else syncs each of thousands of files
        ]
        arguments = [part for each in [*settings, *options] for part in ("-c", each)]
        change = ("--reuid", _USER, "--regid", _USER, "--init-groups") if os.geteuid() == 0 else ()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # QUIT is the immediate shutdown: it frees the shared memory too.
                ["setpriv", *change, "--pdeathsig", "QUIT", _BINARIES / "postgres", "-D", self._data]
                + ["-p", str(self.port), *arguments],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                ended = self._process.poll() is not None or time.monotonic() > deadline
                assert not ended, (self._directory / "log").read_text()
                time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGQUIT: immediately, as a crash; returns when it has ended.

        AssertionError, with the server's log, for one that does not end in time; it has ended then, too.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # after 5 s it kills its children
            process.wait(timeout=_DEADLINE_S)
            raise AssertionError(f"{number.name} did not end it:\n{(self._directory / 'log').read_text()}") from None

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """Every process of the server is stopped: connections stay, and nobody answers."""
        assert self._process is not None
        postmaster = self._process.pid
        # Who is stopped makes no children and reaps none, so the list holds until it goes on.
        os.kill(postmaster, signal.SIGSTOP)
        wait_for("the postmaster to be stopped", lambda: _is_stopped(postmaster))
        children = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        try:
            for pid in children:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in [*children, postmaster]:
                os.kill(pid, signal.SIGCONT)

    def url(self, database: str) -> str:
        """Through the unix socket, as the superuser."""
        return f"postgresql://{_USER}@/{database}?host={self._directory}&port={self.port}"

    def tcp_url(self, database: str, user: str) -> str:
        """Through TCP, where a password is asked for."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """As the superuser, in a session of its own; returns the rows, if there are any."""
        with psycopg.connect(self.url(database), autocommit=True) as session:
            cursor = session.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """An empty database; returns its name."""
        name = f"ca_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return name


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _free_port() -> int:
    """A port that will still be ours after a restart: no connection of somebody else gets it for its own end."""
    while True:
        port = random.randrange(20_000, 30_000)  # below ip_local_port_range
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; removed afterwards, as are those that killed test runs left behind."""
    scratch = _scratch()
    for stale in scratch.glob("ringfence-pg-*"):
        if not Path("/proc", stale.name.split("-")[2]).exists():
            shutil.rmtree(stale, ignore_errors=True)
    # Not below pytest's directories, which are closed to other users; and a socket's path is at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix=f"ringfence-pg-{os.getpid()}-", dir=scratch))
    if os.geteuid() == 0:
        shutil.chown(directory, _USER, _USER)
    try:
        server = PostgresServer(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # nothing of it is needed any more
    finally:
        shutil.rmtree(directory)


def _scratch() -> Path:
    """Memory where there is enough: creating databases syncs thousands of files."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > _ENOUGH_BYTES:
        return memory
    return Path(tempfile.gettempdir())
