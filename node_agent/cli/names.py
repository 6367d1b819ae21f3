"""What TAB offers besides commands and options: names that the running agent knows.

argcomplete asks a *completer*, an attribute of the argument.  An agent that does
not answer at once offers nothing: who presses TAB does not want to wait, nor an error.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from node_agent.cli.agent_address import AgentUnavailable, default_socket
from node_agent.cli.agent_socket import ask
from node_agent.errors import CloseReason

_ANSWER_S: Final = 1.0
# A name becomes part of somebody's command line: nothing that a shell or a terminal would obey.
_HARMLESS: Final = re.compile(r"[A-Za-z0-9._:/-]+")

Completer = Callable[..., Iterable[str]]


def completes(argument: argparse.Action, completer: Completer) -> None:
    """Let TAB offer what ``completer`` finds for ``argument``."""
    argument.completer = completer  # type: ignore[attr-defined]  # argcomplete looks for it


def service_names(*, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """``[NAMESPACE/]SERVICE`` of all services."""
    return _names("/services", parsed_args)


def workload_names(*, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """``[NAMESPACE/]POD`` of all workloads."""
    return _names("/workloads", parsed_args)


def namespaces(*, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Every namespace with a workload or a service."""
    rows = [row for path in ("/services", "/workloads") for row in _rows(path, parsed_args)]
    return sorted({str(row.get("namespace")) for row in rows if _HARMLESS.fullmatch(str(row.get("namespace")))})


def close_reasons(**_: object) -> list[str]:
    """Why connections end."""
    return list(CloseReason)


def _names(path: str, args: argparse.Namespace) -> list[str]:
    found = set()
    for row in _rows(path, args):
        name, namespace = str(row.get("name")), str(row.get("namespace"))
        found.add(f"{namespace}/{name}")
        if namespace == "default":
            found.add(name)
    return sorted(filter(_HARMLESS.fullmatch, found))


def _rows(path: str, args: argparse.Namespace) -> list[Any]:
    try:
        rows = ask(getattr(args, "agent", None) or default_socket(), path, timeout_s=_ANSWER_S)
    except AgentUnavailable:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
