"""One request over a unix socket, and what to say when there is no answer: each failure is its own sentence."""

import http.client
import os
import socket
import stat

from node_agent.cli.agent_address import DEFAULT_SOCKET, AgentUnavailable


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def exchange(socket_path: str, method: str, target: str, body: str | None, *, timeout_s: float) -> tuple[int, bytes]:
    """The status and the body of an answer.

    Raises:
        AgentUnavailable: there is none; the text says why, and what to do.
    """
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
