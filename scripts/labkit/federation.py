"""Several trust domains in one lab: each has a CA, and they can be told to believe each other."""

import json

from labkit import layout, processes, state
from labkit.errors import LabError

_REFRESH_HINT_S = 1  # a change at one CA reaches the other within seconds


def bundle_endpoint(index: int) -> str:
    """What makes a CA of the lab serve its bundle: the section of ca.toml."""
    return f"""
[bundle_endpoint]
address = ":{layout.bundle_port(index)}"
refresh_hint_s = {_REFRESH_HINT_S}
"""


def federate(lab: state.Lab) -> list[str]:
    """Let every trust domain of the lab believe every other, as their operators would; what was done, in lines.

    Raises:
        LabError: there is only one, or a command failed.
    """
    if len(lab.trust_domains) < 2:
        raise LabError("this lab has one trust domain: scripts/lab up --nodes 2 --trust-domain-of 2=other.example")
    lines = []
    for here in range(len(lab.trust_domains)):
        known = _believed(lab, here)
        for there, domain in enumerate(lab.trust_domains):
            if there != here:
                done = f"{domain} is trusted already" if domain in known else _add(lab, here, there, domain)
                lines.append(f"{lab.trust_domains[here]}: {done}")
    return lines


def _believed(lab: state.Lab, here: int) -> set[str]:
    listed = processes.run_ringfence(lab, 0, ["ca", "federation", "list", "--json", "--config", _config(here)])
    return {each["trust_domain"] for each in json.loads(listed)}


def _add(lab: state.Lab, here: int, there: int, domain: str) -> str:
    first_bundle = layout.ca_dir(here) / f"first-bundle-{there}.json"
    printed = processes.run_ringfence(lab, 0, ["ca", "federation", "bundle", "--config", _config(there)])
    state.write_atomically(first_bundle, printed)
    arguments = ["--endpoint", layout.bundle_url(there), "--bundle", str(first_bundle), "--config", _config(here)]
    return processes.run_ringfence(lab, 0, ["ca", "federation", "add", domain, *arguments]).strip()


def _config(index: int) -> str:
    return str(layout.ca_dir(index) / "ca.toml")
