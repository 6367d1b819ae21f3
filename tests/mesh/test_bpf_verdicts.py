"""Every program that the kernel runs on request (BPF_PROG_RUN), over what it may meet.

Programs of connect(2), TCP events and closes can not be run so: they are tested in namespaces (cgroup, inpod_bpf,
test_lane.py).
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from bpf import preconditions, syscalls
from bpf.abi import abi
from bpf.compiler import compile_sources, relocate
from bpf.plan import CAPTURE, HOOKS, INPOD, SOURCE, Hook, hook
from bpf.syscalls import MapType, ProgramType
from node_agent.capture.pinned import address_bytes, listener_key
from tests.cgroup_sockets import in_cgroup
from tests.mesh_builder import LAB_NAME, wait_for
from tests.program_run import Programs, cookie_of, ip_packet, link_header, run

pytestmark = pytest.mark.mesh

_NOBODY: Final = "203.0.113.9", "2001:db8::9"
_POD: Final = "10.0.1.5", "fd00:1::5"
_CLIENT: Final = "10.0.2.7", "fd00:2::7"
_VERSIONS: Final = pytest.mark.parametrize("version", [0, 1], ids=["ipv4", "ipv6"])
_DROP, _PASS = 0, 1  # of sk_lookup
_NEXT, _TCX_DROP = -1, 2
_CLOSED: Final = 7  # TCP_CLOSE: the state of the socket that BPF_PROG_RUN gives a packet
_LOOPBACK: Final = 1  # the interface


# -- steer.c: who gets what arrives in a pod ---------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steered:
    programs: Programs
    inbound: int  # cookies of the agent's listeners
    tunnel: int

    def __call__(self, local: tuple[str, int], remote: tuple[str, int], *, protocol: int = socket.IPPROTO_TCP) -> str:
        verdict, cookie = self.programs.on_lookup("pod_steer", local=local, remote=remote, protocol=protocol)
        if cookie:
            assert verdict == _PASS
            return {self.inbound: "inbound", self.tunnel: "tunnel"}[cookie]
        return "drop" if verdict == _DROP else "as always"

    def file(self, name: str, local: tuple[str, int], remote: tuple[str, int]) -> bytes:
        """In ``passes`` or ``refusals``: a connection from ``remote`` to ``local``."""
        key = (
            abi()
            .structs["pass_key"]
            .pack(
                client_ip_be=address_bytes(remote[0]),
                server_ip_be=address_bytes(local[0]),
                client_port=remote[1],
                server_port=local[1],
            )
        )
        self.programs.maps[name].put(key, (1).to_bytes(8, "little"))
        return key


@pytest.fixture(scope="module")
def inpod_programs() -> Iterator[Programs]:
    with ExitStack() as stack:
        yield Programs([INPOD], stack)


@pytest.fixture
def steered(inpod_programs: Programs) -> Iterator[_Steered]:
    """An agent that listens at both addresses of a pod."""
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as inbound,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as tunnel,
    ):
        for ip in _POD:
            for port, listener in ((15006, inbound), (15008, tunnel)):
                fd = listener.fileno().to_bytes(8, "little")
                inpod_programs.maps["listeners"].put(listener_key(address_bytes(ip), port), fd)
        yield _Steered(programs=inpod_programs, inbound=cookie_of(inbound), tunnel=cookie_of(tunnel))
    for name in ("passes", "refusals"):
        map_ = inpod_programs.maps[name]
        for key in list(map_):
            map_.delete(key)


@_VERSIONS
def test_what_arrives_in_a_pod_goes_to_the_agents_listener_for_it(steered: _Steered, version: int) -> None:
    pod, client = _POD[version], (_CLIENT[version], 40000)
    assert steered((pod, 15008), client) == "tunnel"
    assert {port: steered((pod, port), client) for port in (1, 80, 15001, 15006, 15009, 65535)} == dict.fromkeys(
        (1, 80, 15001, 15006, 15009, 65535), "inbound"
    )
    # Forged: neither the pod's own address nor the loopback as a source makes it one from inside.
    assert steered((pod, 80), (pod, 40000)) == "inbound"
    assert steered((pod, 80), (("127.0.0.1", "::1")[version], 40000)) == "inbound"


@_VERSIONS
def test_what_is_not_the_pods_is_not_the_agents(steered: _Steered, version: int) -> None:
    client = (_CLIENT[version], 40000)
    assert steered((_NOBODY[version], 80), client) == "drop"
    for protocol in (socket.IPPROTO_UDP,):
        assert steered((_POD[version], 80), client, protocol=protocol) == "as always"
    loopback = (("127.0.0.1", "127.255.255.254"), ("::1",))[version]
    assert {steered((ip, 80), client) for ip in loopback} == {"as always"}
    if version == 0:
        assert steered(("128.0.0.1", 80), client) == "drop", "only 127.0.0.0/8 is the loopback"
    else:
        assert steered(("::2", 80), client) == "drop"


@_VERSIONS
def test_only_the_very_connection_that_was_filed_passes_the_agent(steered: _Steered, version: int) -> None:
    pod, client = (_POD[version], 8080), (_CLIENT[version], 40000)
    steered.file("passes", pod, client)
    assert steered(pod, client) == "as always"
    for local, remote in (
        ((pod[0], 8081), client),
        (pod, (client[0], 40001)),
        (pod, (_NOBODY[version], 40000)),
        (pod, (_CLIENT[version], 0x409C)),  # 40000 with its bytes swapped
    ):
        assert steered(local, remote) == "inbound", (local, remote)
    assert steered(client, pod) == "drop", "the other way round is another connection"


@_VERSIONS
def test_a_refused_connection_is_dropped_unless_it_was_allowed_after_all(steered: _Steered, version: int) -> None:
    pod, client = (_POD[version], 8080), (_CLIENT[version], 40000)
    steered.file("refusals", pod, client)
    assert steered(pod, client) == "drop"
    assert steered(pod, (client[0], 40001)) == "inbound"
    steered.file("passes", pod, client)
    assert steered(pod, client) == "as always"


def test_an_address_of_ipv4_in_the_form_of_ipv6_is_the_same_address(steered: _Steered) -> None:
    pod, client = (_POD[0], 8080), (_CLIENT[0], 40000)
    as_ip6 = ((f"::ffff:{pod[0]}", 8080), (f"::ffff:{client[0]}", 40000))
    assert steered(*as_ip6) == "inbound"
    steered.file("passes", pod, client)
    assert steered(*as_ip6) == "as always"


@_VERSIONS
def test_without_the_agents_listener_a_pod_is_closed(inpod_programs: Programs, version: int) -> None:
    """The kernel takes closed sockets out of the map: nothing of the agent's has to run for that."""
    steer = _Steered(programs=inpod_programs, inbound=0, tunnel=0)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        key = listener_key(address_bytes(_POD[version]), 15006)
        inpod_programs.maps["listeners"].put(key, listener.fileno().to_bytes(8, "little"))
        there = _Steered(programs=inpod_programs, inbound=cookie_of(listener), tunnel=0)
        assert there((_POD[version], 80), (_CLIENT[version], 1)) == "inbound"
    for port in (80, 15008):
        assert steer((_POD[version], port), (_CLIENT[version], 1)) == "drop"
    steer.file("passes", (_POD[version], 80), (_CLIENT[version], 1))
    assert steer((_POD[version], 80), (_CLIENT[version], 1)) == "as always", "what goes on without the agent goes on"
    for key in list(inpod_programs.maps["passes"]):
        inpod_programs.maps["passes"].delete(key)


# -- podsource_programs.c: no pod sends with the address of another ------------------------------


@pytest.fixture(scope="module")
def source_programs() -> Iterator[Programs]:
    with ExitStack() as stack:
        yield Programs([SOURCE], stack)


@_VERSIONS
def test_an_address_is_believed_of_the_interface_it_is_behind(source_programs: Programs, version: int) -> None:
    own, others, stranger = _POD[version], _CLIENT[version], _NOBODY[version]
    addresses = source_programs.maps["pod_addresses"]
    for ip, interface in ((own, _LOOPBACK), (others, 4_000_000_000)):
        addresses.put(address_bytes(ip), struct.pack("=I", interface))
    try:
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP):
            found = {
                source: source_programs.on_packet("pod_source", ip_packet(source, _NOBODY[version], protocol=protocol))
                for source in (own, others, stranger)
            }
            assert found == {own: _NEXT, others: _TCX_DROP, stranger: _NEXT}
    finally:
        for ip in (own, others):
            addresses.delete(address_bytes(ip))


def test_an_address_of_one_version_is_not_taken_for_one_of_the_other(source_programs: Programs) -> None:
    """::ffff:10.0.2.7 as a source of IPv6 is the same entry: it is no way to write a pod's address differently."""
    addresses = source_programs.maps["pod_addresses"]
    addresses.put(address_bytes(_CLIENT[0]), struct.pack("=I", 4_000_000_000))
    try:
        mapped = ip_packet(f"::ffff:{_CLIENT[0]}", _NOBODY[1])
        assert source_programs.on_packet("pod_source", mapped) == _TCX_DROP
    finally:
        addresses.delete(address_bytes(_CLIENT[0]))


@pytest.mark.parametrize("ether_type", [0x0806, 0x8100, 0x88CC], ids=["arp", "vlan", "lldp"])
def test_what_is_no_ip_is_none_of_its_business(source_programs: Programs, ether_type: int) -> None:
    assert source_programs.on_packet("pod_source", link_header(ether_type) + bytes(46)) == _NEXT


# -- guard.c: what reaches the programs of a cgroup --------------------------------------


@pytest.fixture(scope="module")
def guard_programs() -> Iterator[Programs]:
    """The socket that the kernel gives a packet for BPF_PROG_RUN is closed: here that stands for one that listens."""
    with ExitStack() as stack:
        yield Programs([CAPTURE], stack, defines={"BPF_TCP_LISTEN": _CLOSED})


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    where = preconditions.cgroup_root() / f"rf_{LAB_NAME}_verdicts"
    (where / "inside").mkdir(parents=True, exist_ok=True)
    yield where
    for each in (where / "inside", where):
        wait_for("the cgroup to be empty", lambda: not (each / "cgroup.procs").read_text())  # noqa: B023
        each.rmdir()


@pytest.fixture
def served(guard_programs: Programs, cgroup: Path) -> Iterator[Programs]:
    """The cgroup is a workload with both addresses."""
    key = cgroup.stat().st_ino.to_bytes(8, "little")
    value = (
        abi()
        .structs["workload"]
        .pack(
            listener_ip4_be=socket.inet_pton(socket.AF_INET, _POD[0]),
            listener_ip6_be=socket.inet_pton(socket.AF_INET6, _POD[1]),
        )
    )
    guard_programs.maps["workloads"].put(key, value)
    yield guard_programs
    guard_programs.maps["workloads"].delete(key)


def _arrives(programs: Programs, where: Path, packet: bytes, mark: int) -> bool:
    """Whether a packet reaches a listening socket of the cgroup ``where``."""
    here = Path("/proc/self/ns/net")
    return bool(in_cgroup(where, here, lambda: programs.on_packet("capture_guard", packet, mark=mark)))


@_VERSIONS
@pytest.mark.parametrize("nested", ["", "inside"], ids=["itself", "nested"])
def test_a_workload_is_reached_with_the_agents_mark_for_its_own_address_alone(
    served: Programs, cgroup: Path, version: int, nested: str
) -> None:
    agents, answers = abi().constants["AGENT_MARK"], abi().constants["RETURN_MARK"]
    to_it = ip_packet(_CLIENT[version], _POD[version])
    to_another = ip_packet(_CLIENT[version], _NOBODY[version])
    loopback = ("127.9.9.9", "::1")[version]
    packets = {
        "own": to_it,
        "another's": to_another,
        "loopback": ip_packet(loopback, loopback),
        "own, from the loopback": ip_packet(loopback, _POD[version]),
        "another's, from the loopback": ip_packet(loopback, _NOBODY[version]),
        "the loopback, from elsewhere": ip_packet(_CLIENT[version], loopback),
    }
    where = cgroup / nested
    found = {
        (name, mark): _arrives(served, where, packet, mark)
        for name, packet in packets.items()
        for mark in (0, agents, agents | 0xA000, answers)
    }
    assert found == {
        (name, mark): name == "loopback" or (name.startswith("own") and mark & 0xFFF == agents)
        for name in packets
        for mark in (0, agents, agents | 0xA000, answers)
    }


@_VERSIONS
def test_a_cgroup_that_nobody_serves_is_reached_by_the_loopback_alone(
    guard_programs: Programs, cgroup: Path, version: int
) -> None:
    to_it = ip_packet(_CLIENT[version], _POD[version])
    loopback = ("127.9.9.9", "::1")[version]
    assert not _arrives(guard_programs, cgroup, to_it, abi().constants["AGENT_MARK"])
    assert not _arrives(guard_programs, cgroup, ip_packet(loopback, _POD[version]), 0)
    assert _arrives(guard_programs, cgroup, ip_packet(loopback, loopback), 0)


def test_packets_of_connections_that_are_there_pass_the_guard(cgroup: Path) -> None:
    """As loaded: the socket of BPF_PROG_RUN does not listen."""
    with ExitStack() as stack:
        as_loaded = Programs([CAPTURE], stack)
        for version in (0, 1):
            assert _arrives(as_loaded, cgroup, ip_packet(_CLIENT[version], _POD[version]), 0)


# -- dispatch.c: a hook without a program ------------------------------------------------


def _dispatcher(at: Hook, stack: ExitStack) -> int:
    """A hook's dispatcher whose slots are empty."""
    compiled = compile_sources(("dispatch.c",), [at.dispatcher])
    maps = {}
    for name, kind, size in (
        ("state", MapType.ARRAY, abi().structs["loader_state"].size_bytes),
        ("slots", MapType.PROG_ARRAY, 4),
    ):
        entries = 1 if name == "state" else 2
        maps[name] = syscalls.create_map(type=kind, key_bytes=4, value_bytes=size, max_entries=entries, name=name)
        stack.callback(os.close, maps[name])
    program = syscalls.load_program(
        type=at.program_type,
        attach_type=at.attach_type,
        instructions=relocate(compiled.functions[at.dispatcher], compiled.descriptors, maps),
        name=at.dispatcher,
    )
    stack.callback(os.close, program)
    return program


def test_a_hook_whose_program_is_missing_lets_nothing_in_that_it_guards() -> None:
    lookup = struct.Struct("=QII4s16s2sH4s16sIII").pack(
        0, socket.AF_INET, socket.IPPROTO_TCP, bytes(4), bytes(16), b"\0\1", 0, bytes(4), bytes(16), 80, 0, 0
    )
    packet = ip_packet(_CLIENT[0], _POD[0])
    runnable = {ProgramType.SK_LOOKUP, ProgramType.CGROUP_SKB, ProgramType.SCHED_CLS}
    found = {}
    with ExitStack() as stack:
        for at in (each for each in HOOKS if each.program_type in runnable):
            program = _dispatcher(at, stack)
            if at.program_type is ProgramType.SK_LOOKUP:
                found[at.name] = run(program, context=lookup)[0]
            else:
                found[at.name] = run(program, packet=packet, context=bytes(192))[0]
    assert found["pod_sk_lookup"] == _DROP
    assert found["ingress"] == 0
    assert found["pod_source"] == 0xFFFFFFFF, "TCX_NEXT: the next program's business"
    assert hook("ingress").refuses
    assert hook("pod_sk_lookup").refuses
