"""Asking the agent on this node, through its unix socket.

Only the standard library, so that a command starts at once.
"""

import http.client
import json
import os
import socket
import stat
from typing import Any, Final
from urllib.parse import quote, urlencode

SOCKET_VARIABLE: Final = "RINGFENCE_AGENT"
DEFAULT_SOCKET: Final = "/run/ringfence/agent.sock"
_TIMEOUT_S: Final = 10.0


class AgentUnavailable(Exception):
    """The agent did not answer, or said no; the text says what to check."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def default_socket() -> str:
    """Where the agent is asked: RINGFENCE_AGENT, else the default."""
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


def ask(
    socket_path: str, path: str, *, service: str | None = None, timeout_s: float = _TIMEOUT_S, **query: str | None
) -> Any:
    """The JSON that the agent answers to GET ``path``, with ``query``; what is None is left out.

    Raises:
        AgentUnavailable: what went wrong and what to check.
    """
    fields = {key: value for key, value in {"service": service, **query}.items() if value is not None}
    target = f"{path}?{urlencode(fields, quote_via=quote, safe='')}" if fields else path
    return _request(socket_path, "GET", target, timeout_s=timeout_s)


def tell(socket_path: str, path: str, body: object) -> Any:
    """The JSON that the agent answers to PUT ``path`` with ``body``; raises as :func:`ask`."""
    return _request(socket_path, "PUT", path, json.dumps(body))


def fetch(socket_path: str, path: str, *, timeout_s: float = _TIMEOUT_S) -> bytes:
    """What the agent answers to GET ``path``, as it is; raises as :func:`ask`."""
    status, content = _exchange(socket_path, "GET", path, None, timeout_s=timeout_s)
    if status != http.client.OK:
        raise AgentUnavailable(f"the agent answered {status} to GET {path}")
    return content


def _request(
    socket_path: str, method: str, target: str, body: str | None = None, *, timeout_s: float = _TIMEOUT_S
) -> Any:
    status, content = _exchange(socket_path, method, target, body, timeout_s=timeout_s)
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise AgentUnavailable(f"{socket_path} answers, but not as a Ringfence agent does; check --agent") from error
    if status != http.client.OK:
        text = answer.get("error") if isinstance(answer, dict) else None
        raise AgentUnavailable(text or f"the agent answered {status} to {method} {target}")
    return answer


def _exchange(socket_path: str, method: str, target: str, body: str | None, *, timeout_s: float) -> tuple[int, bytes]:
    connection = _UnixConnection(socket_path, timeout_s)
    try:
        connection.request(method, target, body=body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise AgentUnavailable(_explain(socket_path, error, timeout_s)) from error
    finally:
        connection.close()


def _explain(socket_path: str, error: Exception, timeout_s: float) -> str:
    match error:
        case http.client.RemoteDisconnected() | http.client.IncompleteRead():
            return f"the agent on {socket_path} broke off its answer; see the agent's log"
        case FileNotFoundError():
            return (
                f"there is no agent socket {socket_path}: no agent runs on this machine, or it has another "
                f"[agent] runtime_dir; start it (ringfence agent --config FILE), or name its socket: --agent PATH"
            )
        case ConnectionRefusedError():
            return _nobody_answers(socket_path)
        case PermissionError():
            return _may_not(socket_path)
        case TimeoutError():
            return (
                f"the agent on {socket_path} is there and did not answer within {timeout_s:.0f} s; "
                f"it may be stopped or overloaded: see its log"
            )
        case OSError():
            return f"can not reach the agent on {socket_path}: {error.strerror or error}"
        case _:
            return f"{socket_path} answers, but not as a Ringfence agent does ({type(error).__name__}); check --agent"


def _nobody_answers(socket_path: str) -> str:
    """A connection is refused also by what is no socket at all."""
    try:
        mode = os.stat(socket_path).st_mode
    except OSError:
        mode = 0
    if stat.S_ISDIR(mode):
        return f"{socket_path} is a directory; name the socket in it: --agent {os.path.join(socket_path, 'agent.sock')}"
    if mode and not stat.S_ISSOCK(mode):
        return f"{socket_path} is not a socket; name the agent's: --agent PATH, default {DEFAULT_SOCKET}"
    return (
        f"nobody answers on {socket_path}: the agent that made it has ended without removing it; "
        f"see the end of its log, and start the agent again"
    )


def _may_not(socket_path: str) -> str:
    if os.geteuid() == 0:
        return (
            f"may not use {socket_path} although this is root: a container, a user namespace or a security module "
            f"forbids it; run this where the agent runs"
        )
    return (
        f"may not use {socket_path}: only the agent's user may, and you are user {os.geteuid()}; "
        f"run this as root (sudo)"
    )
