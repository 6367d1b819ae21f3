"""The hooks at the workloads' cgroups: links to the dispatchers that ``ringfence bpf load`` has pinned.

Pinned themselves (``links/cgroup-NAMESPACE_NAME/HOOK``), so they outlive the
agent, and a workload stays captured while there is none.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bpf import syscalls
from bpf.pins import CGROUP_LINKS, Pins, cgroup_links, remove_tree, replace_pin
from bpf.plan import hook
from node_agent.model import ObjectName

# What only looks on first, what captures last: a connect must find everything else in place.
_HOOKS: Final = ("sock_release", "getpeername4", "getpeername6", "sock_ops", "ingress", "connect4", "connect6")


class CgroupLinks:
    """The links of one node."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins

    def attach(self, name: ObjectName, cgroup: Path) -> int:
        """Hold every hook at ``cgroup``; those that are there stay untouched.  Returns the cgroup's number.

        Raises:
            OSError: it is gone, or the kernel refused.
        """
        directory = self._directory(name)
        directory.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as stack:
            target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, target)
            number = os.fstat(target).st_ino
            for each in _HOOKS:
                path = directory / each
                if self._target(path) == number:
                    continue
                program = syscalls.open_pin(self._pins.dispatcher(each))
                stack.callback(os.close, program)
                link = syscalls.create_link(program=program, target=target, attach_type=hook(each).attach_type)
                stack.callback(os.close, link)
                replace_pin(link, path)
        return number

    def detach(self, name: ObjectName) -> None:
        """Let go, of new connections first; what is not there is fine."""
        directory = self._directory(name)
        for each in reversed(_HOOKS):
            (directory / each).unlink(missing_ok=True)
        remove_tree(directory)

    def names(self) -> Iterator[str]:
        """Every workload that has links, as ``text`` says it."""
        for each in self._pins.links.glob(f"{CGROUP_LINKS}*"):
            yield each.name.removeprefix(CGROUP_LINKS)

    def numbers(self) -> set[int]:
        """Of every cgroup that something is at."""
        return {self._target(each / _HOOKS[-1]) for each in self._pins.links.glob(f"{CGROUP_LINKS}*")}

    def detach_named(self, text: str) -> None:
        """The same by what ``names`` says."""
        namespace, _, name = text.replace("%2e", ".").partition("_")
        self.detach(ObjectName(namespace, name))

    @staticmethod
    def text(name: ObjectName) -> str:
        """What ``names`` says of a workload."""
        return cgroup_links(*name).removeprefix(CGROUP_LINKS)

    def _directory(self, name: ObjectName) -> Path:
        return self._pins.links / cgroup_links(*name)

    @staticmethod
    def _target(path: Path) -> int:
        """The number of the cgroup that a pinned link is at; 0 if it is gone, or the link is."""
        try:
            fd = syscalls.open_pin(path)
        except FileNotFoundError:
            return 0
        try:
            return syscalls.link_info(fd).cgroup_id
        finally:
            os.close(fd)
