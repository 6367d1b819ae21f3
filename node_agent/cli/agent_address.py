"""Where the agent of this node is asked, and the error of all that ask it."""

import os
from typing import Final

SOCKET_VARIABLE: Final = "RINGFENCE_AGENT"
DEFAULT_SOCKET: Final = "/run/ringfence/agent.sock"


class AgentUnavailable(Exception):
    """The agent did not answer, or said no; the text says what to check."""


def default_socket() -> str:
    """Where the agent is asked: RINGFENCE_AGENT, else the default."""
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
