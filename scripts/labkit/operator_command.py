"""`scripts/lab ringfence`: the operator's command against one agent, or the CA."""

import os
from collections.abc import Sequence
from typing import Final, NoReturn

from labkit import execution, layout, netns, processes, state
from labkit.errors import LabError

_FOR_BROWSERS: Final = "dashboard"  # serves on the machine, where the browser is, not on the lab's node
_WITHOUT_AGENT: Final = ("completion", "help")  # ask nobody, and take no --agent


def run(lab: state.Lab, target: str, arguments: Sequence[str]) -> NoReturn:
    """Become the ringfence command, told where the agent's socket or the CA's configuration is.

    Raises:
        LabError: there is no such agent or CA.
    """
    if not arguments:
        raise LabError(f"no command: scripts/lab ringfence {target} COMMAND..., for example status")
    ringfence = lab.ringfence or processes.ringfence_command()
    known = target if target.startswith(("agent-", "ca")) else f"agent-{target}" if target != "0" else "ca"
    process = processes.named(lab, known)
    if process.node == 0:
        node, command = 0, ["ca", *arguments, "--config", str(process.directory / "ca.toml")]
    else:
        node, command = process.node, [*arguments]
        if arguments[0] not in _WITHOUT_AGENT:
            command += ["--agent", str(layout.agent_socket(node))]
        if arguments[0] == "bpf":
            command += ["--pins", str(layout.pins(node))]
    if arguments[0] != _FOR_BROWSERS:
        fd = os.open(netns.path(layout.node_netns(node)), os.O_RDONLY | os.O_CLOEXEC)
        netns.setns(fd)
        os.close(fd)
    execution.become([ringfence, *command])
