"""Ask the agents through their operator's sockets, and wait for them.

A few lines of HTTP/1.1 over a unix socket: the standard library's client would
cost `lab status` more time than everything else in it.
"""

import json
import socket
from typing import Any, Final

from labkit import layout

_TIMEOUT_S: Final = 2.0
_MAX_REPLY_BYTES: Final = 64 * 1024 * 1024


class AgentSilentError(Exception):
    """The agent does not answer, or not with JSON; the text says why."""


def ask(node: int, path: str) -> Any:
    """GET ``path`` from agent K.

    Raises:
        AgentSilentError: no answer.
    """
    address = layout.agent_socket(node)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(address))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
            reply = bytearray()
            while chunk := connection.recv(1 << 16):
                reply += chunk
                if len(reply) > _MAX_REPLY_BYTES:
                    raise AgentSilentError(f"{address}: the answer to {path} is too long")
    except OSError as exc:
        raise AgentSilentError(f"{address}: {exc.strerror or exc}") from exc
    head, _, body = bytes(reply).partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split()
    if len(status) < 2 or not status[0].startswith(b"HTTP/1."):
        raise AgentSilentError(f"{address}: the answer to {path} is not HTTP")
    try:
        if b"transfer-encoding: chunked" in head.lower():
            body = _dechunk(body)
        return json.loads(body)
    except ValueError as exc:
        raise AgentSilentError(f"{address}: the answer to {path} is not JSON (status {status[1].decode()})") from exc


def _dechunk(body: bytes) -> bytes:
    plain = bytearray()
    while body:
        size_text, _, body = body.partition(b"\r\n")
        size = int(size_text.split(b";")[0] or b"0", 16)
        if size == 0:
            break
        plain += body[:size]
        body = body[size + 2 :]
    return bytes(plain)


def workload(node: int, namespace: str, name: str) -> dict[str, Any] | None:
    """What agent K says of a pod; None if it does not know it."""
    for each in ask(node, "/workloads"):
        if each.get("namespace") == namespace and each.get("name") == name:
            found: dict[str, Any] = each
            return found
    return None
