"""How long a node with many workloads takes to start: from the process to readiness, each pod with its own identity.

A real agent and a real authority; each pod is a network namespace in which the
agent opens its sockets and sets its rules, as it does on a node.  The agent has
to join first, and asks then for every SVID.

Runs in a process of its own and prints one line of JSON.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from bench import accounting
from bench.authority import TRUST_DOMAIN, AuthorityProcess, end_in_order, node_name
from bench.namespaces import namespaces
from bench.testbed import ROOT, BenchError

_GIVE_UP_S: Final = 60.0
_LOOK_S: Final = 0.02
_CONFIG: Final = """\
[agent]
node = "{node}"
trust_domain = "{trust_domain}"
runtime_dir = "{directory}/run"
state_dir = "{directory}/agent"
[ca]
address = "127.0.0.1:{port}"
bundle_file = "{bundle}"
join_token_file = "{directory}/token"
node_key_dir = "{directory}/node"
node_key_passphrase_file = "{directory}/node-passphrase"
[registry]
manifests_dir = "{directory}/manifests"
[capture]
netns_path = "/run/netns/{prefix}{{name}}"
[listen]
metrics = "127.0.0.1:{metrics}"
readiness = "127.0.0.1:{readiness}"
"""


def main() -> None:
    """Measure and print."""
    end_in_order()
    parser = argparse.ArgumentParser()
    parser.add_argument("--identities", type=int, default=200)
    options = parser.parse_args()
    prefix = f"rfbench{os.getpid()}-"
    names = [f"app-{number}" for number in range(options.identities)]
    with namespaces([prefix + name for name in names]):
        with AuthorityProcess(nodes=1, pods_a_node=options.identities) as authority:
            json.dump(_start(authority, options.identities, prefix), sys.stdout)


def _start(authority: AuthorityProcess, identities: int, prefix: str) -> dict[str, float]:
    readiness = _free_port()
    config = _configure(authority, prefix=prefix, readiness=readiness)
    cpu_s, before = authority.cpu_s(), authority.journalled()
    log = authority.path / "agent-log"
    began = time.monotonic()
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "node_agent.cli.main", "agent", "--config", str(config)]
        agent = subprocess.Popen(command, cwd=ROOT, stdout=stderr, stderr=stderr)
    try:
        while not _is_ready(readiness):
            if agent.poll() is not None or time.monotonic() - began > _GIVE_UP_S:
                raise BenchError(f"the agent does not get ready: {log.read_text(encoding='utf-8')[-1000:]}")
            time.sleep(_LOOK_S)
        took_s = time.monotonic() - began
        figures = {
            "identities": identities,
            "ready_s": took_s,
            "agent_cpu_s": accounting.cpu_s([agent.pid]),
            "agent_rss_mb": accounting.memory(agent.pid).rss_bytes / 1e6,
            "authority_cpu_s": authority.cpu_s() - cpu_s,
        }
    finally:
        agent.terminate()
        agent.wait()
    if authority.journalled() - before < identities + 1:
        raise BenchError("the agent was ready before it had its certificates")
    return figures


def _configure(authority: AuthorityProcess, *, prefix: str, readiness: int) -> Path:
    directory = authority.path
    (directory / "run").mkdir()
    for name, text in (("token", authority.token(node_name(0))), ("node-passphrase", "a passphrase for this run")):
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(text)
    config = directory / "agent.toml"
    config.write_text(
        _CONFIG.format(
            node=node_name(0),
            trust_domain=TRUST_DOMAIN,
            directory=directory,
            port=authority.port,
            bundle=authority.config.bundle_file,
            prefix=prefix,
            metrics=_free_port(),
            readiness=readiness,
        )
    )
    return config


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
