"""Connect-time balancing in the kernel: the programs of both capture modes, real sockets, and no agent."""

import mmap
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Final, TypeVar

import pytest

from bpf import pins, preconditions
from bpf.abi import abi
from bpf.loader import load
from bpf.pins import Pins
from bpf.plan import CAPTURE, FEATURES, INPOD, hook
from bpf.unloader import unload
from node_agent.capture.connect_balancing import KernelBalancing, Shares
from node_agent.capture.pinned import COOKIE, address_bytes, netns_cookie, open_maps
from node_agent.capture.pod_links import link_hook
from node_agent.model import EndpointAddress, OriginalDestination
from tests.cgroup_sockets import in_cgroup
from tests.mesh_builder import LAB_NAME, in_namespace, wait_for

pytestmark = pytest.mark.mesh

T = TypeVar("T")
_PORT: Final = 8080
_OWN: Final = {4: "10.77.0.9", 6: "fd77::9"}
_ENDPOINTS: Final = {
    4: ("10.77.1.1", "10.77.1.2", "10.77.1.3"),
    6: ("fd77::1:1", "fd77::1:2", "fd77::1:3"),
}
_SERVICE: Final = {4: OriginalDestination("10.96.7.7", 80), 6: OriginalDestination("fd96::7", 80)}
_CONNECTS: Final = 600
_LONG_S: Final = 600.0
_HOOKS: Final = {
    "cgroup": ("sock_release", "getpeername4", "getpeername6", "sock_ops", "connect4", "connect6"),
    "inpod-bpf": ("sock_release", "getpeername4", "getpeername6", "sock_ops", "pod_connect4", "pod_connect6"),
}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass(kw_only=True)
class _Ground:
    """A network namespace with endpoints on its loopback, and a workload in it."""

    mode: str
    root: Path
    cgroup: Path
    netns: Path
    balancing: KernelBalancing
    listeners: dict[str, socket.socket]

    def run(self, work: Callable[[], T]) -> T:
        """In a process of the workload."""
        return in_cgroup(self.cgroup, self.netns, work)

    def close(self) -> None:
        for each in self.balancing.filed:
            self.balancing.withdraw(each, 0.0)
        self.balancing.close()

    def file(self, *weights: float, version: int = 4) -> bool:
        return self.balancing.file(_SERVICE[version], _shares(version, *weights), time.monotonic())

    def accepted(self) -> Counter[str]:
        """How many have connected to each endpoint since the last time."""
        found: Counter[str] = Counter()
        for ip, listener in self.listeners.items():
            while True:
                try:
                    connection, (client, *_) = listener.accept()
                except BlockingIOError:
                    break
                connection.close()
                # From the workload's own address; a pod has no other, but this namespace has.
                assert self.mode != "cgroup" or client == _OWN[6 if ":" in ip else 4]
                found[ip] += 1
        return found

    def entries(self, name: str) -> int:
        feature = CAPTURE if self.mode == "cgroup" else INPOD
        (found,) = open_maps(Pins(self.root), (name,), feature=feature).values()
        try:
            return sum(1 for _ in found)
        finally:
            found.close()


def _shares(version: int, *weights: float) -> Shares:
    ips = _ENDPOINTS[version]
    return tuple((EndpointAddress(ip, _PORT), weight) for ip, weight in zip(ips, weights, strict=False) if weight)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Path]:
    root = Path(f"/sys/fs/bpf/rf_{LAB_NAME}_balance")
    for each in (Pins(root).staging, Pins(root).unloading, root):
        pins.remove_tree(each)
    load(root, features=[each for each in FEATURES if each.name in (CAPTURE, INPOD)])
    yield root
    unload(root)
    assert not root.exists()


@pytest.fixture(scope="module")
def netns() -> Iterator[Path]:
    name = f"rf_{LAB_NAME}_balance"
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    _run("ip", "netns", "add", name)
    _run("ip", "-n", name, "link", "set", "lo", "up")
    for version in (4, 6):
        for ip in (_OWN[version], *_ENDPOINTS[version]):
            _run("ip", "-n", name, "addr", "add", f"{ip}/{32 if version == 4 else 128}", "dev", "lo")
        # What is asked for has a way, as in a cluster; nobody is there.
        route = f"{_SERVICE[version].ip}/{32 if version == 4 else 128}"
        _run("ip", "-n", name, f"-{version}", "route", "add", "unreachable", route)
    yield Path("/run/netns") / name
    _run("ip", "netns", "del", name)


@pytest.fixture(params=list(_HOOKS))
def ground(request: pytest.FixtureRequest, loaded: Path, netns: Path) -> Iterator[_Ground]:
    mode: str = request.param
    cgroup = preconditions.cgroup_root() / f"rf_{LAB_NAME}_balance"
    cgroup.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stack.callback(cgroup.rmdir)
        stack.callback(wait_for, "the cgroup to be empty", lambda: not (cgroup / "cgroup.procs").read_text())
        feature = CAPTURE if mode == "cgroup" else INPOD
        table = "workloads" if mode == "cgroup" else "pods"
        (workloads,) = open_maps(Pins(loaded), (table,), feature=feature).values()
        stack.callback(workloads.close)
        probe = in_namespace(netns, socket.socket)
        cookie = netns_cookie(probe)
        probe.close()
        structs = abi().structs
        own4, own6 = address_bytes(_OWN[4])[12:], address_bytes(_OWN[6])
        if mode == "cgroup":
            key = COOKIE.pack(cgroup.stat().st_ino)
            packed = structs["workload"].pack(
                listener_ip4_be=own4, listener_ip6_be=own6, listener_port_be=1, netns_cookie=cookie
            )
        else:
            key, packed = COOKIE.pack(cookie), structs["pod"].pack(ip4_be=own4, ip6_be=own6)
        workloads.put(key, packed)
        stack.callback(workloads.delete, key)
        for name in _HOOKS[mode]:
            link_hook(Pins(loaded), "test", hook(name), cgroup)
        stack.callback(pins.remove_tree, Pins(loaded).links / "test")
        balancing = KernelBalancing(loaded, feature=feature)
        balancing.keep(valid_s=_LONG_S)
        listeners = {ip: stack.enter_context(_listener(netns, ip)) for ips in _ENDPOINTS.values() for ip in ips}
        made = _Ground(mode=mode, root=loaded, cgroup=cgroup, netns=netns, balancing=balancing, listeners=listeners)
        stack.callback(made.close)
        yield made


def _listener(netns: Path, ip: str) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ip, _PORT))
        made.listen(4096)
        made.setblocking(False)
        return made

    return in_namespace(netns, make)


def _connect(ip: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    made.settimeout(30.0)
    try:
        made.connect((ip, port))
    except BaseException:
        made.close()
        raise
    return made


def test_each_endpoint_gets_its_share_and_the_program_sees_the_cluster_ip(ground: _Ground) -> None:
    weights = (1.0, 3.0, 6.0)
    before = ground.balancing.counters()
    for version in (4, 6):
        assert ground.file(*weights, version=version)
    asked = {
        _SERVICE[4].ip: 4,
        _SERVICE[6].ip: 6,
        f"::ffff:{_SERVICE[4].ip}": 4,
    }
    for ip, version in asked.items():

        def work(ip: str = ip) -> Counter[str]:
            seen: Counter[str] = Counter()
            for _ in range(_CONNECTS):
                with _connect(ip, 80) as connection:
                    name, port, *_ = connection.getpeername()
                    seen[f"{name} {port}"] += 1
            return seen

        assert ground.run(work) == {f"{ip} 80": _CONNECTS}
        got = ground.accepted()
        assert sum(got.values()) == _CONNECTS
        for endpoint, weight in zip(_ENDPOINTS[version], weights, strict=True):
            share = weight / sum(weights)
            # Seven standard deviations: once in 10^11 times.
            assert abs(got[endpoint] - _CONNECTS * share) < 7 * sqrt(_CONNECTS * share * (1 - share)), got
    after = ground.balancing.counters()
    assert {name: after[name] - before[name] for name in after} == {
        "balanced": len(asked) * _CONNECTS,
        "refused": 0,
        "missed": 0,
    }
    wait_for("nothing to be remembered", lambda: ground.entries("originals") == ground.entries("flows") == 0)


def test_nobody_there_is_refused_at_once_and_what_is_not_filed_goes_to_the_agent(ground: _Ground) -> None:
    for version in (4, 6):
        assert ground.file(version=version)
    asked = [_SERVICE[4].ip, _SERVICE[6].ip, f"::ffff:{_SERVICE[4].ip}"]

    def errors() -> list[str]:
        """Of TCP to each, to a port that is no service, and of UDP, which nobody refuses."""
        found = []
        for ip in asked:
            for port in (80, 81):
                try:
                    _connect(ip, port).close()
                except OSError as error:
                    found.append(type(error).__name__)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect((_ENDPOINTS[4][0], 80))
            found.append(str(udp.getpeername()))
        return found

    before = ground.balancing.counters()["refused"]
    # There is no agent in this test: what goes to it is refused, too, but not counted.
    assert ground.run(errors) == ["ConnectionRefusedError"] * 6 + [str((_ENDPOINTS[4][0], 80))]
    assert ground.balancing.counters()["refused"] == before + 3
    assert not ground.accepted()
    for version in (4, 6):
        assert ground.file(1.0, version=version)
    assert ground.run(errors) == ["ConnectionRefusedError"] * 3 + [str((_ENDPOINTS[4][0], 80))]
    assert not ground.balancing.failed()
    assert ground.accepted() == {_ENDPOINTS[4][0]: 2, _ENDPOINTS[6][0]: 1}


def test_an_endpoint_that_does_not_answer_is_told_to_the_agent(ground: _Ground) -> None:
    closed = {version: EndpointAddress(_ENDPOINTS[version][0], _PORT + 1) for version in (4, 6)}
    for version, address in closed.items():
        assert ground.balancing.file(_SERVICE[version], ((address, 1.0),), time.monotonic())

    def refused(ip: str) -> str:
        try:
            _connect(ip, 80).close()
        except OSError as error:
            return type(error).__name__
        return ""

    for ip, version in ((_SERVICE[4].ip, 4), (f"::ffff:{_SERVICE[4].ip}", 4), (_SERVICE[6].ip, 6)):
        for _ in range(2):
            assert ground.run(lambda: refused(ip)) == "ConnectionRefusedError"  # noqa: B023
        assert ground.balancing.failed() == [closed[version]]
        assert not ground.balancing.failed()
    wait_for("nothing to be remembered", lambda: ground.entries("originals") == 0)


def test_a_change_under_load_fails_no_connect(ground: _Ground) -> None:
    """Each connect finds the old endpoints or the new ones, never half of each, and never another service's."""
    other = OriginalDestination("10.96.7.8", 80)  # whose rows are in the places of the service's old ones
    nobody: Shares = ()
    is_over = mmap.mmap(-1, 1)  # which the other process sees, too
    least_changes, least_connects = 100, 1000

    def work() -> tuple[int, int]:
        good = bad = 0
        limit = time.monotonic() + 120  # also if nobody is left who says so
        while not is_over[0] and time.monotonic() < limit:
            try:
                with _connect(_SERVICE[4].ip, 80):
                    good += 1
            except OSError:
                bad += 1
        return good, bad

    assert ground.file(1.0)
    results: list[tuple[int, int]] = []
    before = ground.balancing.counters()
    client = threading.Thread(target=lambda: results.append(ground.run(work)))
    client.start()
    changes = 0
    try:
        while changes < least_changes or ground.balancing.counters()["balanced"] < before["balanced"] + least_connects:
            changes += 1
            weights = [1.0 if (changes + place) % 3 else 0.0 for place in range(3)]
            assert ground.file(*weights)
            assert ground.balancing.file(other, nobody if changes % 2 else _shares(4, 1.0), time.monotonic())
            ground.accepted()
            time.sleep(0.001)  # what is given back rests for a second
            assert client.is_alive()
    finally:
        is_over[0] = 1
        client.join()
    ((good, bad),) = results
    assert not bad
    after = ground.balancing.counters()
    assert after["balanced"] - before["balanced"] == good
    assert after["refused"] == before["refused"]


def test_an_agent_finds_what_the_one_before_it_has_filed(ground: _Ground) -> None:
    for version in (4, 6):
        assert ground.file(1.0, 2.0, version=version)
    before = ground.balancing.filed
    ground.balancing.close()
    feature = CAPTURE if ground.mode == "cgroup" else INPOD

    def ask() -> str:
        with _connect(_SERVICE[4].ip, 80) as connection:
            return str(connection.getpeername())

    assert ground.run(ask)
    ground.balancing = KernelBalancing(ground.root, feature=feature)
    assert ground.balancing.filed == before == frozenset(_SERVICE.values())
    assert ground.run(ask)
    assert ground.file(0.0, 0.0, 1.0)
    ground.accepted()
    assert ground.run(ask)
    assert ground.accepted() == {_ENDPOINTS[4][2]: 1}
    ground.balancing.withdraw(_SERVICE[6], time.monotonic())
    assert ground.entries("balanced") == 1

    # What nobody looks after is not believed for ever.
    counted = ground.balancing.counters()["missed"]
    ground.balancing.keep(valid_s=0.0)
    with pytest.raises(ConnectionRefusedError):  # by the way to the agent, which is not there
        ground.run(ask)
    assert ground.balancing.counters()["missed"] == counted + 1
    ground.balancing.keep(valid_s=_LONG_S)
    assert ground.run(ask)


def test_a_service_that_finds_no_room_is_left_to_the_agent(ground: _Ground) -> None:
    rows = abi().constants["MAX_BALANCE_ROWS"]
    many = tuple((EndpointAddress(_ENDPOINTS[4][0], 1 + number), 1.0) for number in range(rows))
    assert ground.file(1.0)
    assert not ground.balancing.file(OriginalDestination("10.96.8.8", 80), many, time.monotonic())
    assert not ground.balancing.file(_SERVICE[4], many, time.monotonic())
    assert ground.balancing.filed == frozenset()
    assert ground.entries("balanced") == 0
