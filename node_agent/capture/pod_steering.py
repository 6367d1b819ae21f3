"""Capture mode ``inpod-bpf``: what the kernel's programs are told of the pods, and asked about connections.

The programs (bpf/pod_connect.c, pod_passes.c, steer.c) are loaded and pinned by
``ringfence bpf load``.  Here they are put to work:

* at the root cgroup, once a node: links ``links/pods/HOOK``.  Which sockets are
  a pod's the programs see by their network namespace;
* in each pod's namespace: the link ``links/netns-COOKIE/pod_sk_lookup``;
* in the maps: the pod's addresses, and the agent's listeners inside the pod.

Links are pinned, so they outlive the agent: without its listeners, which the
kernel takes out of the map when they are closed, every connection from or to
the pod is refused.  What belongs to a namespace that is gone is tidied up when
somebody looks: its link has no namespace any more.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from bpf import preconditions, syscalls
from bpf.abi import abi
from bpf.errors import BpfError
from bpf.pins import Pins, remove_tree
from bpf.pins import use as pinned_use
from bpf.plan import INPOD, hook
from bpf.syscalls import Map
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.network import Listeners
from node_agent.capture.pinned import COOKIE, MAPPED, SOCKET, address_bytes, listener_key, netns_cookie, open_maps
from node_agent.capture.pod_links import link_hook

_ANYWHERE: Final = "pods"
_NAMESPACE: Final = "netns-"
_STEER: Final = "pod_sk_lookup"
# What only looks on first, what captures last: a connect must find everything else in place.
_NODE_HOOKS: Final = (
    "sock_release",
    "getpeername4",
    "getpeername6",
    "sock_ops",
    "pod_sock_ops",
    "pod_connect4",
    "pod_connect6",
)


def cookie_of(namespace: NetworkNamespace) -> int:
    """The same of a namespace."""
    with namespace.tcp_socket(socket.AF_INET) as probe:
        return netns_cookie(probe)


class PodSteering:
    """The pinned programs and maps of one node; owns their descriptors until ``close``."""

    def __init__(self, pins: Pins, maps: dict[str, Map], *, in_use: int) -> None:
        self._pins = pins
        self._in_use = in_use
        self._pods = maps["pods"]
        self._listeners = maps["listeners"]
        self._maps = maps

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open what is pinned in ``root`` and link it to the root cgroup, if it is not yet.

        Raises:
            BpfError: nothing is loaded, or it lacks what pods need; the text says what to do.
        """
        pins = Pins(root)
        preconditions.require_all(root)
        everybody = preconditions.node_cgroup_root()
        maps = open_maps(pins, ("pods", "listeners"), feature=INPOD)
        found = cls(pins, maps, in_use=pinned_use(pins))
        try:
            for name in _NODE_HOOKS:
                found._link(_ANYWHERE, name, everybody)
        except OSError as error:
            found.close()
            raise BpfError(f"{root}: the programs can not be linked to the root cgroup: {error.strerror}") from error
        found.tidy_up()
        return found

    def close(self) -> None:
        """Close our descriptors; what is linked stays in force."""
        for each in self._maps.values():
            each.close()
        os.close(self._in_use)

    def serve(self, namespace: NetworkNamespace, addresses: Iterable[str], listeners: Listeners | None) -> None:
        """Steer a pod's connections to ``listeners``, which are inside it; without any they are refused.

        Called again after a restart.

        Raises:
            OSError: the kernel refused; nothing of the pod leaves or enters it in plaintext then.
        """
        cookie = cookie_of(namespace)
        ours = [address_bytes(each) for each in addresses]
        if listeners is not None:
            self._file(ours, listeners)
        ip4 = next((each[12:] for each in ours if each.startswith(MAPPED)), bytes(4))
        ip6 = next((each for each in ours if not each.startswith(MAPPED)), bytes(16))
        self._pods.put(COOKIE.pack(cookie), abi().structs["pod"].pack(ip4_be=ip4, ip6_be=ip6))
        self._link(f"{_NAMESPACE}{cookie}", _STEER, Path(f"/proc/self/fd/{namespace.fd}"))

    def _file(self, addresses: list[bytes], listeners: Listeners) -> None:
        ports = abi().constants
        kinds = {"outbound": "OUTBOUND_PORT", "inbound_plaintext": "INBOUND_PORT", "tunnel": "TUNNEL_PORT"}
        for kind, listener in listeners.by_kind():
            for address in addresses:
                self._listeners.put(listener_key(address, ports[kinds[kind]]), SOCKET.pack(listener.fileno()))

    def set_free(self, cookie: int) -> None:
        """Capture nothing of a pod any more: it is not in the mesh."""
        self._pods.delete(COOKIE.pack(cookie))
        remove_tree(self._pins.links / f"{_NAMESPACE}{cookie}")

    def tidy_up(self) -> None:
        """Forget the pods whose namespace is gone."""
        for directory in self._pins.links.glob(f"{_NAMESPACE}*"):
            path = directory / _STEER
            try:
                link = syscalls.open_pin(path)
            except FileNotFoundError:
                is_gone = True
            else:
                try:
                    is_gone = syscalls.link_info(link).netns_inode == 0
                finally:
                    os.close(link)
            if is_gone:
                self.set_free(int(directory.name.removeprefix(_NAMESPACE)))

    def _link(self, where: str, name: str, target: Path) -> None:
        link_hook(self._pins, where, hook(name), target)
