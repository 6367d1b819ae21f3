"""What there is: nodes, processes, pods, cuts."""

from typing import Any

from labkit import agents, faults, layout, pods, processes, state


def collect(lab: state.Lab) -> dict[str, Any]:
    """What `scripts/lab status --json` prints."""
    workloads = {node: _workloads(node) for node in lab.node_numbers if processes.agent(node).pid() is not None}
    return {
        "capture": lab.capture,
        "trust_domain": layout.TRUST_DOMAIN,
        "trust_domains": lab.trust_domains,
        "state_dir": str(layout.STATE_DIR),
        "manifests_dir": str(layout.MANIFESTS_DIR),
        "ca": _ca(0),
        "ca_replicas": [_ca(0, replica) for replica in range(1, lab.ca_replicas)],
        "more_cas": [_ca(index) for index in range(1, len(lab.trust_domains))],
        "nodes": [_node(lab, node) for node in lab.node_numbers],
        "agents": [_agent(node) for node in lab.node_numbers],
        "pods": [_pod(pod, workloads.get(pod.node)) for pod in pods.all_pods()],
        "cuts": faults.cuts(),
    }


def _process(process: processes.Process) -> dict[str, Any]:
    pid = process.pid()
    return {
        "name": process.name,
        "pid": pid,
        "running": pid is not None,
        "exit_code": None if pid is not None else process.exit_code(),
        "log": str(process.log),
    }


def _ca(index: int, replica: int = 0) -> dict[str, Any]:
    address = f"{layout.link_v4(0)}:{layout.ca_port(index, replica)}"
    return _process(processes.ca(index, replica)) | {"address": address}


def _node(lab: state.Lab, node: int) -> dict[str, Any]:
    return {
        "node": node,
        "trust_domain": lab.domain_of(node),
        "name": layout.node_name(node),
        "netns": layout.node_netns(node),
        "ipv4": layout.link_v4(node),
        "ipv6": layout.link_v6(node),
        "pod_networks": [layout.pods_v4(node), layout.pods_v6(node)],
    }


def _agent(node: int) -> dict[str, Any]:
    found = _process(processes.agent(node)) | {"node": node, "socket": str(layout.agent_socket(node))}
    ready, reasons = False, []
    if found["running"]:
        try:
            answer = agents.ask(node, "/status")
            ready, reasons = bool(answer.get("ready")), list(answer.get("reasons") or [])
        except agents.AgentSilentError as exc:
            reasons = [str(exc)]
    return found | {"ready": ready, "reasons": reasons}


def _workloads(node: int) -> dict[tuple[str, str], dict[str, Any]] | None:
    try:
        return {(each["namespace"], each["name"]): each for each in agents.ask(node, "/workloads")}
    except agents.AgentSilentError:
        return None


def _pod(pod: pods.Pod, workloads: dict[tuple[str, str], dict[str, Any]] | None) -> dict[str, Any]:
    known = (workloads or {}).get((pod.namespace, pod.name), {})
    found = pods.describe(pod) | {"netns": pod.netns}
    return found | {"state": known.get("state", "unknown"), "error": known.get("error")}


def table(found: dict[str, Any]) -> str:
    """The same for a person."""
    process_rows = [["PROCESS", "PID", "STATE", "ADDRESS"]]
    for ca in (found["ca"], *found["ca_replicas"], *found["more_cas"]):
        process_rows.append([ca["name"], str(ca["pid"] or "-"), _state(ca), ca["address"]])
    for each, node in zip(found["agents"], found["nodes"], strict=True):
        process_rows.append([each["name"], str(each["pid"] or "-"), _state(each), node["ipv4"]])
    pod_rows = [["POD", "NODE", "IPV4", "IPV6", "STATE", "IDENTITY"]]
    for pod in found["pods"]:
        name = f"{pod['namespace']}/{pod['name']}"
        pod_rows.append([name, str(pod["node"]), pod["ipv4"], pod["ipv6"], pod["state"], pod["identity"] or "-"])
    parts = [_aligned(process_rows), _aligned(pod_rows) if len(pod_rows) > 1 else "no pods\n"]
    parts += [f"cut between node {one} and node {other}\n" for one, other in found["cuts"]]
    return "\n".join(parts)


def _state(process: dict[str, Any]) -> str:
    if not process["running"]:
        code = process["exit_code"]
        return "not running" if code is None else f"ended with exit code {code}"
    if process.get("ready", True):
        return "running"
    return "not ready: " + ("; ".join(map(str, process["reasons"])) or "no reason given")


def pods_table(found: list[dict[str, Any]]) -> str:
    """`scripts/lab pods`."""
    rows = [["POD", "NODE", "IPV4", "IPV6", "IDENTITY"]]
    for pod in found:
        rows.append(
            [f"{pod['namespace']}/{pod['name']}", str(pod["node"]), pod["ipv4"], pod["ipv6"], pod["identity"] or "-"]
        )
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
