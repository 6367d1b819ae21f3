"""The lab's network: a switch, the nodes on it, and routed interfaces for pods.

    rf-link             rf-node1                     rf-pod-default-web
    br0 --- port1 ====== eth0 10.247.0.11
                         pod2 (gateway 10.247.1.1) ==== eth0 10.247.1.2/32

A pod is routed, not bridged: its address is a /32 (/128) behind the node's end of
its veth, so that the node's IP stack sees every packet.  What a pod sends must
come from an address that the node routes back to it: anti-spoofing, by the
forwarding table (research: IPv6 has no rp_filter).
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from labkit import layout, netns
from labkit.errors import LabError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_IFA_F_NODAD: Final = 2

_ANTI_SPOOFING: Final = """\
table inet rf_spoof
delete table inet rf_spoof
table inet rf_spoof {
  chain prerouting {
    type filter hook prerouting priority raw
    iifname "pod*" fib saddr . iif oif missing drop
  }
}
"""

_SYSCTLS: Final = {
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/core/somaxconn": "16384",
    "net/ipv4/tcp_max_syn_backlog": "16384",
    "net/ipv4/ip_local_port_range": "16000 65535",  # above Ringfence's own ports
}
_FORWARDING: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/default/forwarding": "1",
}
# In preference: bbr paces, which on a veth costs half the throughput; cubic may be refused in a namespace.
_CONGESTION_CONTROLS: Final = ("cubic", "reno")


def build(nodes: int) -> None:
    """Make the link and nodes 0 to ``nodes``, routed to each other."""
    netns.create(layout.LINK_NETNS)
    with _links(layout.LINK_NETNS) as link:
        link.link("add", ifname=layout.BRIDGE, kind="bridge", br_stp_state=0)
        _up(link, layout.BRIDGE)
    for node in range(nodes + 1):
        _create_node(node)
    for node in range(nodes + 1):
        _route_to_others(node, nodes)


def _create_node(node: int) -> None:
    name = layout.node_netns(node)
    netns.create(name)
    with netns.inside(name):
        _tune(forwarding=True)
        nft(_ANTI_SPOOFING)
    port = f"port{node}"
    there = os.open(netns.path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _links(layout.LINK_NETNS) as link:
            link.link("add", ifname=port, kind="veth", peer={"ifname": layout.NODE_LINK, "net_ns_fd": there})
            link.link("set", index=_index(link, port), master=_index(link, layout.BRIDGE), state="up")
    finally:
        os.close(there)
    with _links(name) as links:
        _up(links, "lo")
        eth0 = _up(links, layout.NODE_LINK)
        links.addr("add", index=eth0, address=layout.link_v4(node), prefixlen=24)
        links.addr("add", index=eth0, address=layout.link_v6(node), prefixlen=64, flags=_IFA_F_NODAD)


def _route_to_others(node: int, nodes: int) -> None:
    with _links(layout.node_netns(node)) as links:
        eth0 = _index(links, layout.NODE_LINK)
        for other in range(1, nodes + 1):
            if other != node:
                links.route("add", dst=layout.pods_v4(other), gateway=layout.link_v4(other))
                links.route("add", dst=layout.pods_v6(other), gateway=layout.link_v6(other))
        # A connection needs a route before the rules that translate a cluster IP see its first packet.
        links.route("add", dst=str(layout.SERVICE_NETWORK_V4), oif=eth0, scope="link", prefsrc=layout.link_v4(node))
        links.route("add", dst=str(layout.SERVICE_NETWORK_V6), oif=eth0, prefsrc=layout.link_v6(node))


def add_pod(*, netns_name: str, node: int, host: int) -> None:
    """Make a pod's namespace, with its interface routed on the node."""
    netns.create(netns_name)
    with netns.inside(netns_name):
        _tune(forwarding=False)
    interface = layout.pod_interface(host)
    v4, v6 = layout.pod_v4(node, host), layout.pod_v6(node, host)
    gateway_v4, gateway_v6 = layout.pod_v4(node, 1), layout.pod_v6(node, 1)
    there = os.open(netns.path(netns_name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _links(layout.node_netns(node)) as links:
            links.link("add", ifname=interface, kind="veth", peer={"ifname": layout.POD_LINK, "net_ns_fd": there})
            netns.write_sysctls({f"net/ipv4/conf/{interface}/proxy_arp": "1"})
            index = _up(links, interface)
            links.addr("add", index=index, address=gateway_v4, prefixlen=32)
            links.addr("add", index=index, address=gateway_v6, prefixlen=128, flags=_IFA_F_NODAD)
            links.route("add", dst=f"{v4}/32", oif=index, scope="link")
            links.route("add", dst=f"{v6}/128", oif=index)
    finally:
        os.close(there)
    with _links(netns_name) as links:
        _up(links, "lo")
        eth0 = _up(links, layout.POD_LINK)
        links.addr("add", index=eth0, address=v4, prefixlen=32)
        links.addr("add", index=eth0, address=v6, prefixlen=128, flags=_IFA_F_NODAD)
        links.route("add", dst=f"{gateway_v4}/32", oif=eth0, scope="link")
        links.route("add", dst=f"{gateway_v6}/128", oif=eth0)
        links.route("add", dst="0.0.0.0/0", gateway=gateway_v4)
        links.route("add", dst="::/0", gateway=gateway_v6, oif=eth0)


def add_node_addresses(*, node: int, host: int) -> None:
    """Give the node a pod's addresses, for a pod that is a cgroup of it; addresses that are there may stay."""
    with _links(layout.node_netns(node)) as links:
        loopback = _index(links, "lo")
        links.addr("replace", index=loopback, address=layout.pod_v4(node, host), prefixlen=32)
        links.addr("replace", index=loopback, address=layout.pod_v6(node, host), prefixlen=128, flags=_IFA_F_NODAD)


def remove_node_addresses(*, node: int, host: int) -> None:
    """Take a pod's addresses from the node."""
    with _links(layout.node_netns(node)) as links:
        loopback = _index(links, "lo")
        for address, length in ((layout.pod_v4(node, host), 32), (layout.pod_v6(node, host), 128)):
            links.addr("delete", index=loopback, address=address, prefixlen=length)


def remove_pod_interface(*, node: int, host: int) -> None:
    """Delete the node's end of a pod's veth: at once, where the kernel would do it some time later."""
    with _links(layout.node_netns(node)) as links:
        found = links.link_lookup(ifname=layout.pod_interface(host))
        if found:
            links.link("del", index=found[0])


def pod_interfaces(node: int) -> set[int]:
    """The hosts (last part of the address) whose interface exists on the node."""
    with netns.inside(layout.node_netns(node)), open("/proc/net/dev", encoding="ascii") as file:
        names = [line.split(":")[0].strip() for line in file]
    return {int(name[3:]) for name in names if name.startswith("pod") and name[3:].isdigit()}


@contextmanager
def _links(name: str) -> "Iterator[IPRoute]":
    """rtnetlink of a namespace; the caller is inside it for the length of the block."""
    from pyroute2 import IPRoute  # noqa: PLC0415 - 240 ms, and most commands do not need it

    with netns.inside(name), IPRoute() as links:
        yield links


def _index(links: "IPRoute", name: str) -> int:
    found: list[Any] = links.link_lookup(ifname=name)
    return int(found[0])


def _up(links: "IPRoute", name: str) -> int:
    index = _index(links, name)
    links.link("set", index=index, state="up")
    return index


def _tune(*, forwarding: bool) -> None:
    netns.write_sysctls(_SYSCTLS)
    if forwarding:
        netns.write_sysctls(_FORWARDING)
    for name in _CONGESTION_CONTROLS:
        try:
            netns.write_sysctls({"net/ipv4/tcp_congestion_control": name})
        except OSError:
            continue
        return


def nft(rules: str) -> None:
    """Load rules into the namespace the caller is in: all of them or none.

    Raises:
        LabError: what nft said.
    """
    try:
        done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise LabError("nft is not installed; run `scripts/setup`") from exc
    if done.returncode:
        raise LabError(f"nft refused the lab's rules: {done.stderr.strip()}")
