"""A pod that is far away: what is sent to it over the link arrives that much later.

The kernels that tests run on need not have netem.  So the pod's node hands the
packets to a tun device, and a thread gives them back when their time has come.
"""

import fcntl
import os
import queue
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.mesh_builder import Mesh, Pod, in_namespace

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_DEVICE: Final = "far"
_TABLE: Final = "100"
_ADDRESS: Final = "192.0.2.1/32"  # nobody's (RFC 5737)
_LONGEST_PACKET: Final = 65536


@contextmanager
def far_away(mesh: Mesh, pod: Pod, *, delay_s: float) -> Iterator[None]:
    """Delay what comes over the link for the pod's IPv4 address, for the length of the block."""
    netns = mesh.node_netns(pod.node)
    fd = in_namespace(netns, _open_tun)
    rule = ["iif", "eth0", "to", f"{pod.ipv4}/32", "lookup", _TABLE]
    try:
        in_namespace(netns, lambda: Path(f"/proc/sys/net/ipv4/conf/{_DEVICE}/rp_filter").write_text("2"))
        # Without an address of its own the kernel takes every source for a spoofed one, also in loose mode.
        _ip(netns, "address", "add", _ADDRESS, "dev", _DEVICE)
        _ip(netns, "link", "set", _DEVICE, "up")
        _ip(netns, "route", "add", f"{pod.ipv4}/32", "dev", _DEVICE, "table", _TABLE)
        _ip(netns, "rule", "add", *rule)
        _delay(fd, delay_s)
        yield
    finally:
        subprocess.run(["ip", "-n", netns.name, "rule", "del", *rule], check=False)
        _ip(netns, "link", "del", _DEVICE)  # ends the threads, too


def _open_tun() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN_NO_PI))
    return fd


def _delay(fd: int, delay_s: float) -> None:
    """Give each packet back when it is due; until the device is gone."""
    waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def take() -> None:
        while True:
            try:
                packet = os.read(fd, _LONGEST_PACKET)
            except OSError:
                waiting.put((0.0, b""))
                return
            waiting.put((time.monotonic() + delay_s, packet))

    def give_back() -> None:
        while (entry := waiting.get())[1]:
            time.sleep(max(0.0, entry[0] - time.monotonic()))
            try:
                os.write(fd, entry[1])
            except OSError:
                break  # the device is gone
        os.close(fd)

    for each in (take, give_back):
        threading.Thread(target=each, daemon=True).start()


def _ip(netns: Path, *arguments: str) -> None:
    subprocess.run(["ip", "-n", netns.name, *arguments], check=True)
