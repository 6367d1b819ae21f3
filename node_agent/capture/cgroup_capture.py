"""Capture mode ``cgroup``: a workload is a cgroup of the node, with addresses of its own (docs/bpf.md).

    outbound   BPF at the cgroup sends what it connects to the agent's listener on its address
    inbound    nftables rules on the node send plaintext for its ports there; BPF at the cgroup drops
               whatever else would begin a connection with its programs

Everything stays when the agent ends: links and maps are pinned, and the kernel
takes the listeners out of the map.  So connections are refused until the next
agent listens.  A cgroup that was made again, because its service was restarted,
is another one; it is looked for ten times a second.
"""

import logging
import os
import socket
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from bpf import pins as pinned
from bpf import preconditions
from bpf.abi import abi
from bpf.errors import BpfError
from bpf.pins import Pins
from bpf.plan import CAPTURE
from node_agent.capture import cgroups, node_rules, rules
from node_agent.capture.capture import CaptureJob
from node_agent.capture.cgroup_links import CgroupLinks
from node_agent.capture.netns import NetworkNamespace, open_home
from node_agent.capture.network import WorkloadNetwork
from node_agent.capture.node_network import NodeNetwork
from node_agent.capture.pinned import (
    COOKIE,
    MAPPED,
    SOCKET,
    Origins,
    address_bytes,
    listener_key,
    netns_cookie,
    open_maps,
)
from node_agent.capture.plumbing import PlumbingError, PlumbingJob, plumb
from node_agent.config import OUTBOUND_PORT
from node_agent.model import ObjectName, Workload

_log = logging.getLogger("ringfence.pods")

_LOOK_S: Final = 0.1
_RULES_RETRY_S: Final = 2.0
_VERSION_LOOK_S: Final = 1.0


class CgroupCapture:
    """A :class:`Capture` by cgroup.  Owns what it opens until ``close``; ``origins`` stay the caller's."""

    def __init__(self, root: Path, *, origins: Origins) -> None:
        """Open what is pinned in ``root``; raises BpfError."""
        self._origins = origins
        self._root = root
        self._cgroup_root = preconditions.cgroup_root()
        pins = Pins(root)
        maps = open_maps(pins, ("workloads", "listeners"), feature=CAPTURE)
        self._workloads, self._listeners = maps["workloads"], maps["listeners"]
        self._links = CgroupLinks(pins)
        try:
            self._use = pinned.use(pins)
        except OSError as error:
            raise BpfError(f"{root}: cannot be used: {error.strerror}") from error
        self._home = open_home()
        self._wanted: dict[ObjectName, Workload] = {}
        self._attached: dict[ObjectName, tuple[Path, int]] = {}  # and the number of the cgroup
        self._rules: str | None = None
        self._rules_from = 0.0
        self._look_from = 0.0
        self._is_replaced = False
        self._one_at_a_time = trio.Lock()

    def close(self) -> None:
        """Close our descriptors; what is attached stays in force."""
        for each in (self._workloads, self._listeners):
            each.close()
        os.close(self._use)
        os.close(self._home)

    def want(self, enrolled: Collection[Workload], *, is_complete: bool) -> None:
        """Let go of workloads that are gone; of those that we can not read anything about, not."""
        self._wanted = {each.name: each for each in enrolled if each.cgroup is not None}
        if is_complete:
            self._let_go_of_others()

    def _let_go_of_others(self) -> None:
        wanted = {self._links.text(each) for each in self._wanted}
        for each in list(self._links.names()):
            if each not in wanted:
                _log.info("the cgroup of %s is free again", each.replace("_", "/", 1))
                self._links.detach_named(each)
        for name in self._attached.keys() - self._wanted.keys():
            del self._attached[name]
        held = self._links.numbers()
        for key in list(self._workloads):
            if COOKIE.unpack(key)[0] not in held:
                self._workloads.delete(key)

    def open(self, workload: Workload) -> WorkloadNetwork:
        """Look for the cgroup; its network is the node's."""
        if workload.cgroup is None:
            raise OSError(0, 'it is a pod, which needs [capture] mode = "inpod" or "inpod-bpf"')
        cgroups.find(self._cgroup_root, workload.cgroup)
        namespace = NetworkNamespace(os.dup(self._home), home=self._home)
        return NodeNetwork(namespace, addresses=workload.addresses, origins=self._origins)

    def holder(self, said: str) -> ObjectName | None:
        """Whose process it is, by its /proc/PID/cgroup; None if it is nobody's."""
        held = {number: name for name, (_, number) in self._attached.items()}
        for directory in cgroups.around(self._cgroup_root, said):
            try:
                name = held.get(cgroups.identifier(directory))
            except OSError:
                return None  # it is gone: whatever is there in its place is another
            if name is not None:
                return name
        return None

    async def apply(self, jobs: Sequence[CaptureJob]) -> list[PlumbingError | None]:
        """Serve first, then close the ways around us, then capture."""
        error = await self._refresh_rules()
        return [error or self._do(job) for job in jobs]

    def _do(self, job: CaptureJob) -> PlumbingError | None:
        name, cgroup = job.workload.name, job.workload.cgroup
        if cgroup is None:
            return None
        try:
            if not job.install:
                self._set_free(name)
                return None
            path = cgroups.find(self._cgroup_root, cgroup)
            number = cgroups.identifier(path)
            if job.listeners is not None:
                self._file(job.workload, number, job.listeners.outbound)
            self._attached[name] = path, self._links.attach(name, path)
        except OSError as error:
            return PlumbingError(f"its cgroup can not be captured: {error.strerror}")
        return None

    def _file(self, workload: Workload, number: int, listeners: Iterable[socket.socket]) -> None:
        cookie = 0
        for listener in listeners:
            cookie = netns_cookie(listener)
            ip = listener.getsockname()[0]
            self._listeners.put(listener_key(address_bytes(ip), OUTBOUND_PORT), SOCKET.pack(listener.fileno()))
        addresses = [address_bytes(each) for each in workload.addresses]
        packed = (
            abi()
            .structs["workload"]
            .pack(
                listener_ip4_be=next((each[12:] for each in addresses if each.startswith(MAPPED)), bytes(4)),
                listener_ip6_be=next((each for each in addresses if not each.startswith(MAPPED)), bytes(16)),
                listener_port_be=socket.htons(OUTBOUND_PORT),
                netns_cookie=cookie,
            )
        )
        self._workloads.put(COOKIE.pack(number), packed)

    def _set_free(self, name: ObjectName) -> None:
        self._links.detach(name)
        if name in self._attached:
            self._workloads.delete(COOKIE.pack(self._attached.pop(name)[1]))

    async def run(self) -> None:
        """Follow cgroups that are made again, and keep the rules those of the wanted workloads."""
        while True:
            self._look_at_version()
            for name in list(self._attached):
                self._follow(name)
            if trio.current_time() >= self._rules_from and (error := await self._refresh_rules()) is not None:
                _log.warning("the node's rules: %s", error)
                self._rules_from = trio.current_time() + _RULES_RETRY_S
            await trio.sleep(_LOOK_S)

    def _look_at_version(self) -> None:
        """Say it once when other maps are in force than ours, in which the programs find nothing, or none."""
        if self._is_replaced or trio.current_time() < self._look_from:
            return
        self._look_from = trio.current_time() + _VERSION_LOOK_S
        try:
            maps = open_maps(Pins(self._root), ("workloads",), feature=CAPTURE)
            self._is_replaced = maps["workloads"].info.id != self._workloads.info.id
            maps["workloads"].close()
            why = (
                "they were replaced by a version that uses other maps; until then connections of workloads are refused"
            )
        except BpfError as error:
            self._is_replaced, why = True, str(error)
        if self._is_replaced:
            _log.error("the BPF programs are not those that this agent opened, restart the agent: %s", why)

    def _follow(self, name: ObjectName) -> None:
        path, number = self._attached[name]
        workload = self._wanted.get(name)
        if workload is None or workload.cgroup is None:
            return
        try:
            if path.stat().st_ino == number:
                return
        except OSError:
            pass  # gone; it may be in another place now
        try:
            found = cgroups.find(self._cgroup_root, workload.cgroup)
            packed = self._workloads.get(COOKIE.pack(number))
            if packed is not None:
                self._workloads.put(COOKIE.pack(cgroups.identifier(found)), packed)
            self._attached[name] = found, self._links.attach(name, found)
        except OSError:
            return  # not there again yet, or gone again
        self._workloads.delete(COOKIE.pack(number))
        _log.info("the cgroup of %s was made again and is captured", name)

    async def _refresh_rules(self) -> PlumbingError | None:
        """Bring the node's rules up to date with what is wanted; one at a time, or an older text might come last."""
        async with self._one_at_a_time:
            text = node_rules.rules(self._wanted.values())
            if text == self._rules:
                return None
            has_some = text != rules.REMOVE
            (error,) = await plumb([PlumbingJob(fd=self._home, install=has_some, rules=text)])
            self._rules = text if error is None else None
            return error
