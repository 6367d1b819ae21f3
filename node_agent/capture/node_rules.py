"""The nftables rules of mode ``cgroup``: on the node, for the workloads' own addresses and ports and nothing else.

One table, replaced in one transaction whenever a workload comes or goes, also
for workloads whose processes are not there yet.  A listener that is down means
ECONNREFUSED: rules stay when the agent ends.

* Plaintext to a workload's ports goes to the agent's listener on the very same
  address, also from programs of this node.
* The agent's listeners are for the workload and for tunnels: who dials another
  one from outside is answered, and recorded, by the one for plaintext.
* The agent's own sockets carry a mark and pass.
* The answers of the application come back to the agent, which connects with the
  client's address: as inside pods (rules.py), for connections to these addresses.
  What the agent itself sends keeps its mark: the client may be of this node too.
"""

from collections.abc import Iterable

from node_agent.capture.rules import (
    AGENT_MARK,
    HALF_CLOSED_TIMEOUTS,
    MARK_MASK,
    REMOVE,
    RETURN_MARK,
    TABLE,
)
from node_agent.config import CAPTURE_PORTS, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT
from node_agent.model import Workload

_OURS = f"meta mark & {MARK_MASK:#x} == {AGENT_MARK:#x}"
_DIALLED = f"{{ {OUTBOUND_PORT}, {INBOUND_PLAINTEXT_PORT} }}"
_LISTENERS = f"{{ {', '.join(map(str, sorted(CAPTURE_PORTS)))} }}"


def rules(workloads: Iterable[Workload]) -> str:
    """The whole table for these workloads, all of which have a cgroup; without any, its removal."""
    direct: list[str] = []
    steer: list[str] = []
    marks: list[str] = []
    back: list[str] = []
    for workload in sorted(workloads, key=lambda each: each.name):
        assert workload.cgroup is not None
        for address in workload.addresses:
            ip, timeout, listener = (
                ("ip6", "half_closed_ip6", f"[{address}]") if ":" in address else ("ip", "half_closed_ip", address)
            )
            direct.append(
                f'iifname != "lo" {ip} daddr {address} tcp dport {_DIALLED} '
                f"dnat {ip} to {listener}:{INBOUND_PLAINTEXT_PORT}"
            )
            ports = _ports(workload.cgroup.ports)
            if ports:
                steer.append(f"{ip} daddr {address} tcp dport {ports} dnat {ip} to {listener}:{INBOUND_PLAINTEXT_PORT}")
            marks.append(f'{ip} daddr {address} meta l4proto tcp ct state new ct timeout set "{timeout}"')
            marks.append(f"{ip} daddr {address} tcp dport != {_LISTENERS} {_OURS} ct mark set {RETURN_MARK:#x}")
            back.append(f"{ip} saddr {address} ct mark {RETURN_MARK:#x} meta mark set ct mark")
    if not marks:
        return REMOVE
    return f"""\
{REMOVE}table inet {TABLE} {{
{HALF_CLOSED_TIMEOUTS}
    chain prerouting_nat {{
        type nat hook prerouting priority dstnat; policy accept;
        {_OURS} return
        {_lines(direct + steer)}
    }}
    chain output_nat {{
        type nat hook output priority -100; policy accept;
        {_OURS} return
        {_lines(steer)}
    }}
    chain prerouting_mark {{
        type filter hook prerouting priority mangle; policy accept;
        {_lines(marks)}
    }}
    chain output_mark {{
        type route hook output priority mangle; policy accept;
        {_OURS} return
        {_lines(back)}
    }}
}}
"""


def _lines(rows: list[str]) -> str:
    return "\n        ".join(rows)


def _ports(ports: tuple[int, ...] | None) -> str:
    if ports is None:
        return f"!= {_LISTENERS}"
    own = sorted(set(ports) - CAPTURE_PORTS)
    return f"{{ {', '.join(map(str, own))} }}" if own else ""
