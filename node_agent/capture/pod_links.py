"""Links to the dispatchers that ``ringfence bpf load`` has pinned, pinned themselves: they outlive the agent."""

import os
from contextlib import ExitStack
from pathlib import Path

from bpf import syscalls
from bpf.pins import Pins
from bpf.plan import Hook


def link_hook(pins: Pins, where: str, at: Hook, target: Path | int) -> None:
    """Link a hook's dispatcher to a cgroup, a namespace, or an interface by its index; ``links/WHERE/HOOK``.

    What is there stays.

    Raises:
        OSError: the target is gone, or the kernel refused.
    """
    path = pins.links / where / at.name
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        program = syscalls.open_pin(pins.dispatcher(at.name))
        stack.callback(os.close, program)
        if isinstance(target, Path):
            target = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, target)
        link = syscalls.create_link(program=program, target=target, attach_type=at.attach_type)
        stack.callback(os.close, link)
        syscalls.pin(link, path)
