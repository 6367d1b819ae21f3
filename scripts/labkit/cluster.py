"""Bring the whole lab up, and take it down.

``up`` begins by taking down whatever there is, complete or not, and ends by
writing ``lab.json``.  If it fails on the way, it takes down what it made.  ``down``
needs no record of what exists: it goes by the names of the namespaces and by who
runs in them, so that it also cleans up after commands that were killed.
"""

import json
import secrets
import shutil
import signal
import subprocess
from types import FrameType
from typing import Final

from labkit import cgroups, federation, layout, manifests, netns, pods, postgres, processes, state, topology
from labkit.errors import LabError

_GRACE_S: Final = 3.0
_MAX_WORKERS: Final = 64  # the agent's own bound


def up(
    *,
    nodes: int,
    capture: str,
    with_agents: bool,
    workers: int = 1,
    domains: dict[int, str] | None = None,
    ca_replicas: int = 1,
) -> state.Lab:
    """Make the lab anew; ``domains`` are the trust domains of nodes that are of another.  The caller holds the lock.

    Raises:
        LabError: it could not; nothing of it is left.
    """
    if not 1 <= nodes <= layout.MAX_NODES:
        raise LabError(f"--nodes {nodes}: must be 1 to {layout.MAX_NODES}")
    if not 1 <= workers <= _MAX_WORKERS:
        raise LabError(f"--workers {workers}: must be 1 to {_MAX_WORKERS}")
    if not 1 <= ca_replicas <= layout.MAX_CA_REPLICAS:
        raise LabError(f"--ca-replicas {ca_replicas}: must be 1 to {layout.MAX_CA_REPLICAS}")
    command = processes.ringfence_command() if with_agents else ""
    lab = state.Lab(
        nodes=nodes,
        capture=capture,
        ringfence=command,
        agents=with_agents,
        domains=_domains(nodes, domains or {}),
        ca_replicas=ca_replicas,
    )
    down()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        state.mount_state()
        topology.build(nodes)
        _write_nodes(lab)
        pods.sync(lab)
        if with_agents:
            if capture != "inpod":
                _load_programs(lab)
            _start_cas(lab)
            _start_agents(lab, workers)
        state.save(lab)
    except BaseException:
        down()
        raise
    return lab


def _load_programs(lab: state.Lab) -> None:
    """Each node as if it were a machine of its own: its own programs, maps and links."""
    for node in lab.node_numbers:
        command = [lab.ringfence, "bpf", "load", "--pins", str(layout.pins(node))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LabError(f"the BPF programs of node {node}: {done.stderr.strip()}")


def _domains(nodes: int, domains: dict[int, str]) -> dict[str, str]:
    for node, domain in domains.items():
        layout.require_trust_domain(domain)
        if not 1 <= node <= nodes:
            raise LabError(f"--trust-domain-of {node}={domain}: there are nodes 1 to {nodes}")
    return {str(node): domain for node, domain in domains.items()}


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def down() -> bool:
    """Remove every trace of the lab; False when there was none.  The caller holds the lock."""
    names = netns.existing()
    pinned = list(layout.BPFFS.glob(layout.PINS_GLOB))
    existed = bool(names) or bool(pinned) or layout.STATE_DIR.exists()
    netns.end_processes(names, grace_s=_GRACE_S)
    for name in names:
        netns.delete(name)
    existed = cgroups.remove_all() or existed
    for path in pinned:
        shutil.rmtree(path)
    postgres.remove()
    state.unmount_state()
    return existed


def _write_nodes(lab: state.Lab) -> None:
    for node in lab.node_numbers:
        zone = "zone-a" if node % 2 else "zone-b"
        manifests.write(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": layout.node_name(node),
                    # The manifests are everybody's: with several trust domains each node has to say which is its.
                    "annotations": {pods.TRUST_DOMAIN_ANNOTATION: lab.domain_of(node)} if lab.domains else {},
                    "labels": {
                        "kubernetes.io/hostname": layout.node_name(node),
                        "topology.kubernetes.io/region": "lab",
                        "topology.kubernetes.io/zone": zone,
                    },
                },
                "spec": {
                    "podCIDR": layout.pods_v4(node),
                    "podCIDRs": [layout.pods_v4(node), layout.pods_v6(node)],
                },
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": layout.link_v4(node)},
                        {"type": "InternalIP", "address": layout.link_v6(node)},
                        {"type": "Hostname", "address": layout.node_name(node)},
                    ],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
        )


def _start_cas(lab: state.Lab) -> None:
    database = f'database = "{postgres.start()}"' if lab.ca_replicas > 1 else ""
    for index, replica in lab.cas:
        _configure_ca(lab, index, replica, database if index == 0 else "")
        if replica == 0:
            config = layout.ca_dir(index) / "ca.toml"
            processes.run_ringfence(lab, 0, ["ca", "init", "--config", str(config)])
        processes.start(lab, processes.ca(index, replica))


def _configure_ca(lab: state.Lab, index: int, replica: int, database: str) -> None:
    directory = layout.ca_dir(index, replica)
    directory.mkdir(mode=0o700)
    passphrase = layout.ca_dir(index) / "passphrase"  # the replicas of a CA share it, as they share its keys
    if replica == 0:
        state.write_atomically(passphrase, secrets.token_urlsafe(32) + "\n", mode=0o600)
    config = directory / "ca.toml"
    state.write_atomically(
        config,
        f"""\
[ca]
trust_domain = "{lab.trust_domains[index]}"
address = ":{layout.ca_port(index, replica)}"
metrics_address = ":{layout.ca_metrics_port(index, replica)}"
state_dir = "{directory}/state"
passphrase_file = "{passphrase}"
{database}

[registry]
manifests_dir = "{layout.MANIFESTS_DIR}"
{federation.bundle_endpoint(index) if lab.domains and replica == 0 else ""}""",
    )


def _start_agents(lab: state.Lab, workers: int) -> None:
    for node in lab.node_numbers:
        _configure_agent(lab, node, workers)
        processes.begin(lab, processes.agent(node))
    for node in lab.node_numbers:
        processes.wait_until_ready(processes.agent(node))


def _configure_agent(lab: state.Lab, node: int, workers: int) -> None:
    directory, ca = layout.agent_dir(node), lab.ca_of(node)
    directory.mkdir(mode=0o700)
    ports = [layout.ca_port(index, replica) for index, replica in lab.cas if index == ca]
    addresses = [f"{layout.link_v4(0)}:{port}" for port in ports]
    state.write_atomically(
        directory / "agent.toml",
        f"""\
[agent]
node = "{layout.node_name(node)}"
trust_domain = "{lab.domain_of(node)}"
runtime_dir = "{directory}"
state_dir = "{directory}/state"
workers = {workers}

[ca]
address = {json.dumps(addresses)}
bundle_file = "{layout.ca_dir(ca)}/state/bundle.pem"
join_token_file = "{processes.join_token(node)}"
node_key_dir = "{directory}/node"

[registry]
manifests_dir = "{layout.MANIFESTS_DIR}"

[capture]
mode = "{lab.capture}"
netns_path = "{layout.NETNS_PATH_TEMPLATE}"
pins = "{layout.pins(node)}"

[workload_api]
enabled = true
socket = "{layout.workload_api_socket(node)}"
""",
    )
