"""What the TLS handshakes of a peer agreed on, read from its packets, not from its configuration.

A ServerHello is not encrypted (RFC 8446 section 4.1.3): it names the version, the
cipher suite, and whether the session was resumed (extension pre_shared_key).
"""

import re
import signal
import subprocess
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Final, Self

from bench.peers import Peer
from bench.testbed import BenchError, Testbed

_SUITES: Final = {0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384", 0x1303: "TLS_CHACHA20_POLY1305"}
_GROUPS: Final = {0x0017: "P-256", 0x001D: "X25519", 0x11EC: "X25519MLKEM768"}
_PRE_SHARED_KEY: Final = 41
_SUPPORTED_VERSIONS: Final = 43
_KEY_SHARE: Final = 51
_TLS13: Final = bytes.fromhex("0304")
_RETRY_RANDOM: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
# Record header, handshake header, legacy version, random, session id, suite, no compression, length of the extensions.
_SERVER_HELLO: Final = re.compile(
    rb"\x16\x03\x03..\x02\x00..\x03\x03(.{32})(?:\x00|\x20.{32})(\x13.)\x00(..)", re.DOTALL
)


@dataclass(slots=True)
class Handshakes:
    """How many handshakes agreed on what; ``retried``: with a HelloRetryRequest."""

    tls13: int = 0
    other: int = 0
    resumed: int = 0
    retried: int = 0
    suites: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)

    def add(self, suite: bytes, extensions: dict[int, bytes]) -> None:
        """Count one ServerHello."""
        self.suites.add(_name(_SUITES, suite))
        self.groups.add(_name(_GROUPS, extensions.get(_KEY_SHARE, b"")[:2]))
        self.resumed += _PRE_SHARED_KEY in extensions
        if extensions.get(_SUPPORTED_VERSIONS) == _TLS13:
            self.tls13 += 1
        else:
            self.other += 1


def _name(known: dict[int, str], code: bytes) -> str:
    return known.get(int.from_bytes(code, "big"), code.hex())


def _extensions(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(raw):
        kind, size = int.from_bytes(raw[at : at + 2], "big"), int.from_bytes(raw[at + 2 : at + 4], "big")
        found[kind] = raw[at + 4 : at + 4 + size]
        at += 4 + size
    return found


class Tap:
    """Records what the server's end of a peer sends, for the length of a ``with``."""

    def __init__(self, testbed: Testbed, peer: Peer) -> None:
        self._testbed, self._peer = testbed, peer
        self._file = testbed.directory / f"{peer.name}.pcap"

    def __enter__(self) -> Self:
        command = [
            "tcpdump",
            "-i",
            "eth0",
            "-U",
            "--immediate-mode",
            "-s",
            "2000",
            "-B",
            "16384",
            "-w",
            str(self._file),
        ]
        self._process = subprocess.Popen(
            self._testbed.inside(self._peer.server, [*command, f"tcp src port {self._peer.tls_port}"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening on" in line:
                return self
        raise BenchError("tcpdump does not record; is it installed? scripts/setup installs it")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate()

    def handshakes(self) -> dict[str, object]:
        """What was recorded.

        Raises:
            BenchError: no handshake at all, or one that is not TLS 1.3.
        """
        found = Handshakes()
        recorded = self._file.read_bytes()
        for hello in _SERVER_HELLO.finditer(recorded):
            random, suite, size = hello.groups()
            if random == _RETRY_RANDOM:
                found.retried += 1
            else:
                found.add(suite, _extensions(recorded[hello.end() : hello.end() + int.from_bytes(size, "big")]))
        if found.other or not found.tls13:
            raise BenchError(f"{self._peer.name}: not every handshake seen was TLS 1.3: {found}")
        return asdict(found) | {"suites": sorted(found.suites), "groups": sorted(found.groups)}


def refuses_without_certificate(testbed: Testbed, peer: Peer) -> bool:
    """Whether the server's end ends a handshake without client certificate with the alert for that."""
    command = ["openssl", "s_client", "-connect", f"{peer.server.ipv4}:{peer.tls_port}", "-tls1_3", "-quiet"]
    from_where = testbed.pods.get("plain-client", peer.client)
    done = subprocess.run(
        testbed.inside(from_where, [*command, "-alpn", "ringfence/1", "-verify_quiet"]),
        input="GET / HTTP/1.0\r\n\r\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return "HTTP/1" not in done.stdout and "certificate required" in done.stderr
