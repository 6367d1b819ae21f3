"""Asking the agent on this node, through its unix socket.

Only the standard library, so that a command starts at once.
"""

import http.client
import json
import socket
from typing import Any, Final
from urllib.parse import quote

DEFAULT_SOCKET: Final = "/run/ringfence/agent.sock"
_TIMEOUT_S: Final = 10.0


class AgentUnavailable(Exception):
    """The agent did not answer, or said no; the text says what to check."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


def ask(socket_path: str, path: str, *, service: str | None = None) -> Any:
    """The JSON that the agent answers to GET ``path``.

    Raises:
        AgentUnavailable: what went wrong and what to check.
    """
    return _request(socket_path, "GET", path if service is None else f"{path}?service={quote(service, safe='')}")


def tell(socket_path: str, path: str, body: object) -> Any:
    """The JSON that the agent answers to PUT ``path`` with ``body``; raises as :func:`ask`."""
    return _request(socket_path, "PUT", path, json.dumps(body))


def _request(socket_path: str, method: str, target: str, body: str | None = None) -> Any:
    connection = _UnixConnection(socket_path)
    try:
        connection.request(method, target, body=body)
        reply = connection.getresponse()
        status, content = reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise AgentUnavailable(_explain(socket_path, error)) from error
    finally:
        connection.close()
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise AgentUnavailable(f"{socket_path} answers, but not as a Ringfence agent does; check --agent") from error
    if status != http.client.OK:
        text = answer.get("error") if isinstance(answer, dict) else None
        raise AgentUnavailable(text or f"the agent answered {status} to {method} {target}")
    return answer


def _explain(socket_path: str, error: Exception) -> str:
    match error:
        case http.client.RemoteDisconnected() | http.client.IncompleteRead():
            return f"the agent on {socket_path} broke off its answer; see the agent's log"
        case FileNotFoundError():
            return f"there is no agent socket {socket_path}; is the agent running here? (another path: --agent PATH)"
        case ConnectionRefusedError():
            return f"nobody answers on {socket_path}: the agent that made it is gone; start the agent again"
        case PermissionError():
            return f"may not use {socket_path}: it belongs to the agent's user; try as root"
        case TimeoutError():
            return f"the agent on {socket_path} did not answer within {_TIMEOUT_S:.0f} s; see the agent's log"
        case OSError():
            return f"can not reach the agent on {socket_path}: {error.strerror or error}"
        case _:
            return f"{socket_path} answers, but not as a Ringfence agent does ({type(error).__name__}); check --agent"
