"""kube-proxy's part: Services for pods that are not in the mesh, and for the nodes.

What an enrolled pod sends to a cluster IP never gets here: its agent takes it in
the pod.  Everything else is translated in the node's namespace to a random ready
endpoint.  What still has a cluster IP after that has no endpoint (or no such
port) and is reset.
"""

import hashlib
from typing import Any

from labkit import layout, manifests, netns, services, state, topology


def refresh(lab: state.Lab, objects: list[dict[str, Any]] | None = None) -> None:
    """Bring every node's rules up to date with the manifests; nodes that are up to date are left alone."""
    frontends = services.frontends(manifests.read_all() if objects is None else objects)
    rules = _rules(frontends, layout.SERVICE_NETWORK_V4, layout.SERVICE_NETWORK_V6)
    mark = layout.STATE_DIR / "service-rules.sha256"
    digest = hashlib.sha256(rules.encode()).hexdigest()
    if state.read_json(mark, None) == digest:
        return
    for node in range(lab.nodes + 1):
        with netns.inside(layout.node_netns(node)):
            topology.nft(rules)
    state.write_json(mark, digest)


def _rules(frontends: list[services.Frontend], network_v4: object, network_v6: object) -> str:
    chains: list[str] = []
    entries: dict[str, list[str]] = {"ip": [], "ip6": []}
    behind: dict[str, set[str]] = {"ip": set(), "ip6": set()}
    for number, each in enumerate(frontends):
        if not each.endpoints:
            continue
        family = "ip6" if ":" in each.ip else "ip"
        choices = ", ".join(f"{index} : {ip} . {port}" for index, (ip, port) in enumerate(each.endpoints))
        target = f"numgen random mod {len(each.endpoints)} map {{ {choices} }}"
        chains.append(f"  chain service{number} {{\n    meta l4proto {each.protocol} dnat {family} to {target}\n  }}")
        entries[family].append(f"{each.ip} . {each.protocol} . {each.port} : goto service{number}")
        behind[family].update(ip for ip, _ in each.endpoints)
    return f"""\
table inet rf_services
delete table inet rf_services
table inet rf_services {{
{chr(10).join(chains)}
  map frontends_v4 {{ type ipv4_addr . inet_proto . inet_service : verdict
{_elements(entries["ip"])}  }}
  map frontends_v6 {{ type ipv6_addr . inet_proto . inet_service : verdict
{_elements(entries["ip6"])}  }}
  set to_itself_v4 {{ type ipv4_addr . ipv4_addr
{_elements([f"{ip} . {ip}" for ip in sorted(behind["ip"])])}  }}
  set to_itself_v6 {{ type ipv6_addr . ipv6_addr
{_elements([f"{ip} . {ip}" for ip in sorted(behind["ip6"])])}  }}
  chain untracked {{
    type filter hook prerouting priority raw
    tcp dport {layout.TUNNEL_PORT} notrack
    tcp sport {layout.TUNNEL_PORT} notrack
  }}
  chain translate {{
    type nat hook prerouting priority dstnat
    ip daddr . meta l4proto . th dport vmap @frontends_v4
    ip6 daddr . meta l4proto . th dport vmap @frontends_v6
  }}
  chain translate_local {{
    type nat hook output priority -100
    ip daddr . meta l4proto . th dport vmap @frontends_v4
    ip6 daddr . meta l4proto . th dport vmap @frontends_v6
  }}
  chain hairpin {{
    type nat hook postrouting priority srcnat
    ip saddr . ip daddr @to_itself_v4 masquerade
    ip6 saddr . ip6 daddr @to_itself_v6 masquerade
  }}
  chain refuse_forwarded {{
    type filter hook forward priority filter
    ip daddr {network_v4} goto refuse
    ip6 daddr {network_v6} goto refuse
  }}
  chain refuse_local {{
    type filter hook output priority filter
    ip daddr {network_v4} goto refuse
    ip6 daddr {network_v6} goto refuse
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
}}
"""


def _elements(items: list[str]) -> str:
    return f"    elements = {{ {', '.join(items)} }}\n" if items else ""
