"""The measures that are a process of their own: a module of this folder that prints its figures as one object of JSON.

Some print them by peer, with a value a round; the others are Ringfence's alone, one value each.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from bench.testbed import ROOT, BenchError

_IN_A_LAB: Final = "--rounds {rounds} --seconds {seconds:g}"
_MODULES: Final = {
    "registry": ("registry_scale", "10,000 services, 100,000 endpoints, 5,000 policies"),
    "policies": ("policy_scale", "5,000 authorization policies, in five shapes"),
    "issuing": ("issuing", "the authority's certificates a second"),
    "storm": ("storm", "1,000 agents that come back at once, and 2,048 silent connections"),
    "start": ("agent_start", "an agent with 200 identities"),
    "simulator": ("simulator", "each balancing policy while endpoints fail: a model, no network"),
    "capture": ("connects capture --turns {turns}", "a connect with cgroup capture, with iptables REDIRECT, direct"),
    "connectlb": ("connects balancing --turns {turns}", "a connect balanced by the kernel, by iptables DNAT, direct"),
    "lane": (f"lane {_IN_A_LAB}", "the same-node lane, and direct, in a lab of their own"),
    "sockmap": (f"sockmap {_IN_A_LAB}", "plaintext relayed by the kernel, and by the agent, in a lab of their own"),
}
ALONE: Final = tuple(_MODULES)
TAKE_LONG: Final = ("policies", "issuing", "storm", "simulator", "lane", "sockmap")
"""More than 10 s each, however short the loads are: --quick leaves them out."""


def what_is(name: str) -> str:
    """What a measure is about."""
    return _MODULES[name][1]


def measure(name: str, options: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Peer > figure > one value a round.

    Raises:
        BenchError: it failed.
    """
    module, *arguments = _MODULES[name][0].format(**options).split()
    # Terminated it cleans up; of our end it would not hear.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", f"bench.{module}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise BenchError(errors.strip()[-500:])
    found: dict[str, Any] = json.loads(output)
    if all(isinstance(each, dict) for each in found.values()):
        return found
    return {"ringfence": {figure: [value] for figure, value in found.items()}}
