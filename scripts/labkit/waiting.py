"""Wait until the agents have what a command changed.

The manifests are read anew at every look: another command may change them
meanwhile, and an agent that has the newest ones has ours.
"""

import time
from collections.abc import Callable
from typing import Final

from labkit import agents, manifests, processes, state
from labkit.errors import LabError

TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.02


def until_loaded(lab: state.Lab, *, deadline: float | None = None) -> None:
    """Every running agent has the manifests.

    Raises:
        LabError: one has not in time; with the reason that it gives.
    """

    def pending() -> str | None:
        digest = manifests.digest()
        for node in processes.running_agents(lab):
            try:
                status = agents.ask(node, "/status")
            except agents.AgentSilentError as exc:
                return f"agent-{node} does not answer: {exc}"
            registry = status.get("registry", {})
            if registry.get("digest") != digest:
                problems = "; ".join(str(each) for each in registry.get("problems") or []) or "it reports no problem"
                return f"agent-{node} has not loaded the manifests: {problems}"
        return None

    _wait(pending, deadline)


def until_served(lab: state.Lab, *, namespace: str, name: str, node: int, deadline: float | None = None) -> None:
    """The pod's agent serves it.

    Raises:
        LabError: not in time; with the agent's reason.
    """

    def pending() -> str | None:
        if processes.agent(node).pid() is None:
            return None
        try:
            found = agents.workload(node, namespace, name)
        except agents.AgentSilentError as exc:
            return f"agent-{node} does not answer: {exc}"
        if found is None:
            return f"agent-{node} does not know the pod"
        if found.get("state") == "serving":
            return None
        return f"agent-{node} says {found.get('state')}: {found.get('error') or 'no error'}"

    _wait(pending, deadline)


def until_let_go(lab: state.Lab, *, namespace: str, name: str, node: int) -> None:
    """The pod's agent has let go of it.

    Raises:
        LabError: not in time.
    """

    def pending() -> str | None:
        if processes.agent(node).pid() is None:
            return None
        try:
            found = agents.workload(node, namespace, name)
        except agents.AgentSilentError as exc:
            return f"agent-{node} does not answer: {exc}"
        return None if found is None else f"agent-{node} still has it: {found.get('state')}"

    _wait(pending, None)


def _wait(pending: Callable[[], str | None], deadline: float | None) -> None:
    begin = time.monotonic()
    limit = begin + TIMEOUT_S if deadline is None else deadline
    while (reason := pending()) is not None:
        if time.monotonic() > limit:
            raise LabError(f"after {time.monotonic() - begin:.0f} s {reason}")
        time.sleep(_POLL_S)
