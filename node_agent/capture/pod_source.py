"""No pod sends with the address of another: bpf/pod_source.c at the node's end of every pod's veth.

Every pod of the node, in the mesh or not: the lane believes addresses.  Links
are pinned as ``links/veth-INODE-INDEX/pod_source`` and go with their veth.
"""

import os
import struct
from collections.abc import Iterable
from typing import Final

from bpf import syscalls
from bpf.abi import abi
from bpf.pins import Pins, remove_tree
from bpf.plan import hook
from bpf.syscalls import Map
from node_agent.capture.interfaces import node_ends
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.pinned import address_bytes
from node_agent.capture.pod_links import link_hook

_VETH: Final = "veth-"
_HOOK: Final = "pod_source"
_INDEX: Final = struct.Struct("=I")


class PodSources:
    """Which interface each pod's addresses are behind.  ``addresses`` stays the caller's."""

    def __init__(self, pins: Pins, addresses: Map) -> None:
        self._pins = pins
        self._addresses = addresses

    def guard(self, namespace: NetworkNamespace, addresses: Iterable[str]) -> None:
        """Believe ``addresses`` only of this pod, and let it have no other pod's; again does nothing.

        Raises:
            OSError: the pod's interfaces are not of a kind that can be guarded, or the kernel refused.
        """
        ends = node_ends(namespace)
        if len(ends) != 1:
            raise OSError(0, f"it has {len(ends)} interfaces, and its addresses can not be told apart by them")
        where = f"{_VETH}{namespace.inode}-{ends[0]}"
        if self._is_gone(self._pins.links / where / _HOOK):
            remove_tree(self._pins.links / where)
        link_hook(self._pins, where, hook(_HOOK), ends[0])
        for each in addresses:
            self._addresses.put(_key(each), _INDEX.pack(ends[0]))

    def forget(self, addresses: Iterable[str]) -> None:
        """Those of a pod that is gone."""
        for each in addresses:
            self._addresses.delete(_key(each))

    def tidy_up(self, *, known: Iterable[str]) -> None:
        """Forget what an agent before us knew: interfaces that are gone, and addresses that are not ``known``."""
        for directory in self._pins.links.glob(f"{_VETH}*"):
            if self._is_gone(directory / _HOOK):
                remove_tree(directory)
        keep = {_key(each) for each in known}
        for key in list(self._addresses):
            if key not in keep:
                self._addresses.delete(key)

    def _is_gone(self, path: "os.PathLike[str]") -> bool:
        try:
            link = syscalls.open_pin(path)
        except FileNotFoundError:
            return True
        try:
            return not syscalls.link_info(link).interface
        finally:
            os.close(link)


def _key(address: str) -> bytes:
    return abi().structs["pod_address"].pack(ip_be=address_bytes(address))
