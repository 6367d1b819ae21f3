"""A tunnel peer of the tests' own: blocking, small, and able to break every rule.

Written from the protocol (docs/tunnel-protocol.md) and not from the agent's
code, so that the two can disagree: a frame is one byte of type, three of length
(big-endian) and the payload; OPEN and VERDICT carry a msgpack map.

    peer = dial(pod, server.ipv4, peer_context(leaf, root))
    assert peer.open(destination=(server.ipv4, 8080), source=(pod.ipv4, 40000)) == "ok"
    peer.send(DATA, b"hello")
    assert peer.read() == Frame(DATA, b"hello")

``FakeAgent`` is the other end: it listens on 15008 inside a pod that no agent
serves, and hands every connection to the test.
"""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgpack
from cryptography import x509

from tests.certificates import Leaf
from tests.handshakes import careless_context, context
from tests.mesh_builder import DEADLINE_S, Pod, in_namespace

TUNNEL_PORT: Final = 15008
OPEN: Final = 1
VERDICT: Final = 2
DATA: Final = 3
EOF: Final = 4
RESET: Final = 5

Address = tuple[str, int]


class Frame(NamedTuple):
    """One frame as it was received."""

    kind: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One frame; ``length`` lies about the payload's."""
    return struct.pack(">I", kind << 24 | (len(payload) if length is None else length)) + payload


def open_payload(*, destination: Address, source: Address, **changes: Any) -> bytes:
    """The payload of an OPEN; ``changes`` replace its fields, None removes one."""
    fields = {"dst": list(destination), "src": list(source), "ns": "default", "name": "peer", "trace": "", **changes}
    packed: bytes = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    return packed


def verdict_payload(reason: str = "ok", detail: str = "") -> bytes:
    """The payload of a VERDICT."""
    packed: bytes = msgpack.packb({"reason": reason, "detail": detail})
    return packed


def peer_context(
    leaf: Leaf | None,
    root: x509.Certificate,
    *,
    server_side: bool = False,
    alpn: str | None = "ringfence/1",
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A context that presents ``leaf``, however wrong, and believes ``root``."""
    if leaf is None:
        made = context(None, root, server_side=server_side)
    else:
        made = careless_context(leaf.own, root, server_side=server_side)
    made.minimum_version = version
    made.maximum_version = version
    if alpn is None:
        # An empty list would still send the extension: start again without one.
        made = _without_alpn(made, leaf, root, server_side=server_side)
    elif alpn != "ringfence/1":
        made.set_alpn_protocols([alpn])
    return made


def _without_alpn(
    model: ssl.SSLContext, leaf: Leaf | None, root: x509.Certificate, *, server_side: bool
) -> ssl.SSLContext:
    from ca.tls import load_key_and_chain
    from tests.certificates import der

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags = model.verify_flags
    made.load_verify_locations(cadata=der(root))
    if leaf is not None:
        load_key_and_chain(made, leaf.own)
    return made


class TunnelPeer:
    """One end of a tunnel; owns its connection."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls

    def send(self, kind: int, payload: bytes = b"", *, length: int | None = None) -> None:
        self.tls.sendall(frame(kind, payload, length=length))

    def send_raw(self, data: bytes) -> None:
        """Send bytes inside TLS, whatever they are."""
        self.tls.sendall(data)

    def read(self) -> Frame | None:
        """The next frame; None when the tunnel has ended between two."""
        header = self._exactly(4)
        if not header:
            return None
        (word,) = struct.unpack(">I", header)
        return Frame(word >> 24, self._exactly(word & 0xFFFFFF))

    def open(self, *, destination: Address, source: Address, **changes: Any) -> str:
        """Ask for a connection and return the verdict's reason."""
        self.send(OPEN, open_payload(destination=destination, source=source, **changes))
        return str(self.verdict()["reason"])

    def verdict(self) -> Mapping[str, Any]:
        received = self.read()
        assert received is not None, "the tunnel ended without a verdict"
        assert received.kind == VERDICT, received
        fields: Mapping[str, Any] = msgpack.unpackb(received.payload)
        return fields

    def is_refused(self) -> bool:
        """Whether the other end closes without a frame: an alert, a RST or EOF, whichever comes first."""
        try:
            return self.tls.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self.tls.close()

    def __enter__(self) -> "TunnelPeer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.tls.recv(size - len(data))
            if not more:
                assert not data, f"the tunnel ended within a frame: {data!r}"
                return b""
            data += more
        return data


def dial(pod: Pod, ip: str, made: ssl.SSLContext) -> TunnelPeer:
    """Open a tunnel from inside ``pod`` to the agent of the pod at ``ip``; raises OSError as ``ssl`` does."""
    plain = pod.connect(ip, TUNNEL_PORT)
    try:
        return TunnelPeer(made.wrap_socket(plain))
    except BaseException:
        plain.close()
        raise


class FakeAgent:
    """Listens on 15008 in a pod, and gives each connection to ``handle`` in a thread of its own."""

    def __init__(self, pod: Pod) -> None:
        self.handle: Callable[[socket.socket], None] = socket.socket.close
        self.failures: list[BaseException] = []
        self._listener = in_namespace(pod.netns, self._listen)
        self._threads: list[threading.Thread] = []
        self._held: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Stop accepting; raises what a handler raised beside OSError."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(DEADLINE_S)
        self._listener.close()
        self.hang_up()
        if self.failures:
            raise self.failures[0]

    def hang_up(self) -> None:
        """End every connection: an idle tunnel would serve the next test."""
        for connection in self._held:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the handler has ended it
        self._held.clear()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._threads.clear()

    @staticmethod
    def _listen() -> socket.socket:
        return socket.create_server(("::", TUNNEL_PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            held = connection.dup()  # what ``ssl`` makes of ``connection`` is the handler's
            self._held.append(held)
            thread = threading.Thread(target=self._serve, args=(connection, held), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, held: socket.socket) -> None:
        connection.settimeout(DEADLINE_S)
        with held, connection:
            try:
                self.handle(connection)
            except OSError:
                pass  # the agent's doing: it is there to refuse us
            except BaseException as error:
                self.failures.append(error)
