"""Faults that a mesh test makes with the lab's files, and what the agents say then."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.mesh_builder import Mesh, Pod, in_namespace, read_all

_READINESS_PORT: Final = 15021


@contextmanager
def edited(path: Path, before: str, after: str) -> Iterator[None]:
    """Replace a piece of a configuration file for the length of the block; whoever reads it has to be restarted."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    try:
        yield
    finally:
        path.write_text(text)


def is_reset(pod: Pod, ip: str, port: int) -> bool:
    """Whether a connection of the pod's is reset, not ended, before a byte of an answer; it may be so at once."""
    try:
        with pod.connect(ip, port) as connection:
            connection.recv(1)
    except ConnectionResetError:
        return True
    return False


def readyz(mesh: Mesh, node: int) -> tuple[int, list[str]]:
    """The status code of an agent's readiness probe, and its reasons."""
    code, body = _readiness(mesh, node)
    return code, body["reasons"]


def warnings(mesh: Mesh, node: int) -> list[str]:
    """What the readiness probe of an agent says that does not make it unready."""
    found: list[str] = _readiness(mesh, node)[1]["warnings"]
    return found


def _readiness(mesh: Mesh, node: int) -> tuple[int, dict[str, Any]]:
    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", _READINESS_PORT), 5) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            return read_all(connection)

    head, _, body = in_namespace(mesh.node_netns(node), ask).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
