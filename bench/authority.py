"""An authority for the measures: a real ``ringfence ca serve``, its state on disk, and node certificates to ask with.

The state is where temporary files are, so that the journal's fsync is what the
machine's disk makes of it.  On more than one core the server has the first one
to itself, as far as we can say: those who ask move to the others.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cryptography import x509

from bench import accounting
from bench.testbed import ROOT, BenchError
from ca.authority import hierarchy
from ca.authority.config import AuthorityConfig
from ca.authority.signer import Signer
from ca.authority.store import Store
from ca.client import load_chain
from ca.csr import new_key
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain

TRUST_DOMAIN: Final = "bench.local"
_READY_S: Final = 20.0
_POD: Final = """\
---
apiVersion: v1
kind: Pod
metadata: {{name: app-{number}, namespace: default, labels: {{ringfence.io/mesh: enabled}}}}
spec: {{nodeName: {node}, serviceAccountName: app-{number}}}
status: {{phase: Running, podIP: {ip}}}
"""


def end_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what it has made goes with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def node_name(number: int) -> str:
    """The nodes are node-0, node-1, ..."""
    return f"node-{number}"


def workload(number: int) -> SpiffeId:
    """The identity of pod ``number``: each has a service account of its own."""
    return SpiffeId.workload(TRUST_DOMAIN, "default", f"app-{number}")


class AuthorityProcess:
    """``ringfence ca serve`` for the length of a ``with``; pod K is on node K // ``pods_a_node``."""

    def __init__(self, *, nodes: int, pods_a_node: int, settings: str = "", database: str | None = None) -> None:
        """``settings``: more sections of ca.toml; ``database``: the URL of a PostgreSQL instead of the file."""
        self._nodes: Final = nodes
        self._pods_a_node: Final = pods_a_node
        self._settings: Final = settings
        self._database: Final = f'database = "{database}"\n' if database else ""
        self._signer: Signer | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="ringfence-bench-ca-")
        self.path = Path(self._directory.name)
        try:
            self._configure()
            self._start()
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=_READY_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    def cpu_s(self) -> float:
        """What the server has used so far."""
        return accounting.cpu_s([self.pid])

    def rss_mb(self) -> float:
        """What it holds now."""
        return accounting.memory(self.pid).rss_bytes / 1e6

    def peak_rss_mb(self) -> float:
        """The most that it has held since its start."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise BenchError("the authority has gone")

    def node_credentials(self, number: int) -> KeyAndChain:
        """A node certificate, signed with the authority's own key but without its help: thousands in seconds."""
        if self._signer is None:
            self._signer = self._load_signer()
        key = new_key()
        svid = self._signer.sign(SpiffeId.node(TRUST_DOMAIN, node_name(number)), key.public_key(), at=datetime.now(UTC))
        return KeyAndChain(key=key, chain=load_chain(svid.chain_der))

    def token(self, node: str) -> str:
        """A join token."""
        command = [*self._command, "token", "--config", str(self.config_file), "--node", node]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"ringfence ca token failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def roots(self) -> tuple[x509.Certificate, ...]:
        """What to trust."""
        return tuple(x509.load_pem_x509_certificates(self.config.bundle_file.read_bytes()))

    def events(self, event: str) -> int:
        """How often this was logged."""
        text = self._log_file.read_text(encoding="utf-8")
        return sum(1 for line in text.splitlines() if json.loads(line)["event"] == event)

    def journalled(self) -> int:
        """How many certificates are in the journal."""
        store = Store.open(self.config.database)
        try:
            return store.certificate_count()
        finally:
            store.close()

    def _load_signer(self) -> Signer:
        store = Store.open(self.config.database)
        try:
            loaded = hierarchy.load(self.config, store, passphrase=self._passphrase, at=datetime.now(UTC))
        finally:
            store.close()
        return Signer(hierarchy=loaded, ttl=timedelta(hours=1))

    def _configure(self) -> None:
        self._passphrase = secrets.token_hex(32).encode()
        passphrase_file = self.path / "passphrase"
        passphrase_file.touch(mode=0o600)
        passphrase_file.write_bytes(self._passphrase)
        manifests = self.path / "manifests"
        manifests.mkdir()
        for node in range(self._nodes):
            numbers = range(node * self._pods_a_node, (node + 1) * self._pods_a_node)
            (manifests / f"{node_name(node)}.yaml").write_text(_pods(numbers, node=node_name(node)))
        self.config_file = config_file = self.path / "ca.toml"
        config_file.write_text(
            f'[ca]\ntrust_domain = "{TRUST_DOMAIN}"\naddress = "127.0.0.1:0"\nstate_dir = "{self.path}/state"\n'
            f'passphrase_file = "{passphrase_file}"\n{self._database}'
            f'[registry]\nmanifests_dir = "{manifests}"\n{self._settings}'
        )
        self.config = AuthorityConfig.load(config_file)
        self._command = [sys.executable, "-m", "node_agent.cli.main", "ca"]
        done = subprocess.run(
            [*self._command, "init", "--config", str(config_file)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"ringfence ca init failed: {done.stderr.strip()}")
        self._serve = [*self._command, "serve", "--config", str(config_file)]

    def _start(self) -> None:
        self._log_file = self.path / "log"
        self._log = self._log_file.open("wb")
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:1])  # inherited by the server and all its threads
        try:
            # It ends with us, also when we are killed.
            command = ["setpriv", "--pdeathsig", "KILL", *self._serve]
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=self._log)
        finally:
            os.sched_setaffinity(0, cores[1:] or cores)
        give_up = time.monotonic() + _READY_S
        while time.monotonic() < give_up and self._process.poll() is None:
            for line in self._log_file.read_text(encoding="utf-8").splitlines():
                if (found := json.loads(line))["event"] == "serving":
                    self.port = found["port"]
                    return
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        raise BenchError(f"ringfence ca serve does not serve: {self._log_file.read_text(encoding='utf-8')[-500:]}")


def _pods(numbers: Iterable[int], *, node: str) -> str:
    return "".join(_POD.format(number=number, node=node, ip=_ip(number)) for number in numbers)


def _ip(number: int) -> str:
    return f"10.{number // 65_000}.{number // 250 % 250}.{number % 250 + 1}"
