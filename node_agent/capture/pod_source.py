"""No pod sends with the address of another: bpf/pod_source.c at the node's end of every pod's veth.

Every pod of the node, in the mesh or not: policies believe the address of who
comes in plaintext, and the lane.  Links are pinned as
``links/veth-INODE-INDEX/pod_source`` and go with their veth.
"""

import os
import struct
from collections.abc import Iterable
from typing import Final

from bpf import syscalls
from bpf.abi import abi
from bpf.pins import Pins, remove_tree
from bpf.plan import SOURCE, hook
from node_agent.capture.interfaces import node_ends
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.pinned import address_bytes, open_maps
from node_agent.capture.pod_links import link_hook

_VETH: Final = "veth-"
_HOOK: Final = "pod_source"
_INDEX: Final = struct.Struct("=I")


class PodSources:
    """Which interface each pod's addresses are behind; owns the descriptor of that map until ``close``."""

    def __init__(self, pins: Pins) -> None:
        """Raises BpfError, or UnsupportedError where the feature is off."""
        self._pins = pins
        self._addresses = open_maps(pins, ("pod_addresses",), feature=SOURCE)["pod_addresses"]

    def close(self) -> None:
        """What is guarded stays so."""
        self._addresses.close()

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
        for each in addresses:  # before the link: another pod may have had them
            self._addresses.put(_key(each), _INDEX.pack(ends[0]))
        link_hook(self._pins, where, hook(_HOOK), ends[0])

    def tidy_up(self) -> None:
        """Forget interfaces that are gone, and addresses behind them; also those of an agent before us."""
        there: set[bytes] = set()
        for directory in self._pins.links.glob(f"{_VETH}*"):
            if self._is_gone(directory / _HOOK):
                remove_tree(directory)
            else:
                there.add(_INDEX.pack(int(directory.name.rpartition("-")[2])))
        for key in list(self._addresses):
            if self._addresses.get(key) not in there:
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
