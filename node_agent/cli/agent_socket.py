"""Asking the agent on this node, through its unix socket.

Only the standard library, so that a command starts at once; and HTTP only when
something is asked: the agent itself is a command that imports this file.
"""

import json
from typing import Any, Final
from urllib.parse import quote, urlencode

from node_agent.cli.agent_address import AgentUnavailable

_TIMEOUT_S: Final = 10.0
_OK: Final = 200


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
    if status != _OK:
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
    if status != _OK:
        text = answer.get("error") if isinstance(answer, dict) else None
        raise AgentUnavailable(text or f"the agent answered {status} to {method} {target}")
    return answer


def _exchange(socket_path: str, method: str, target: str, body: str | None, *, timeout_s: float) -> tuple[int, bytes]:
    from node_agent.cli.unix_http import exchange  # noqa: PLC0415  (see above)

    return exchange(socket_path, method, target, body, timeout_s=timeout_s)
