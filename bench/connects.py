"""What BPF adds to a connect, beside what netfilter adds: ``python -m bench.connects capture`` or ``balancing``.

    capture    cgroup capture sends the connection to a listener, as it would to the agent's; iptables REDIRECT does
    balancing  an endpoint is chosen at connect, one of three; iptables DNAT, one of three, as kube-proxy has it
    direct     to the same listener, nothing in between

The same client connects each way and accepts the connection itself (``load connects``), so that nobody has to be
woken up and only the kernel's work is timed.  The ways take turns of some hundred connects, in another order each time.
Direct and BPF are in one network namespace; netfilter has another, because its hooks cost every connection in theirs.
The programs are those of the product, loaded for this process alone.

Runs in a process of its own and prints one object of JSON: way > figure > one value a round.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench.authority import end_in_order
from bench.namespaces import guarded, namespaces, run
from bench.testbed import BenchError, compile_load
from bpf import loader, preconditions
from bpf.abi import abi
from bpf.errors import BpfError
from bpf.pins import Pins
from bpf.plan import CAPTURE, FEATURES
from node_agent.capture.cgroup_links import CgroupLinks
from node_agent.capture.connect_balancing import KernelBalancing
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.pinned import COOKIE, SOCKET, address_bytes, listener_key, netns_cookie, open_maps
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination

_CONNECTS_A_TURN: Final = 200
_ROUNDS: Final = 5
_WORKLOAD: Final = "10.0.0.5"
_BACKENDS: Final = ("10.0.0.11", "10.0.0.12", "10.0.0.13")
_SERVICE: Final = OriginalDestination("10.96.0.1", 80)
_PORT: Final = 15001
_VALID_S: Final = 600.0
_CLEAN_UP: Final = """\
rm -rf "$1" "$2"
tries=300
while [ -d "$3" ] && ! rmdir "$3" && [ $tries -gt 0 ]; do tries=$((tries - 1)); sleep 0.1; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a client gets to the listener: from where, and what it asks for."""

    name: str
    namespace: str
    to: OriginalDestination
    listener: socket.socket
    cgroup: Path | None = None


def main() -> None:
    """Measure and print."""
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("capture", "balancing"))
    parser.add_argument("--turns", type=int, default=15, help="of each way, a round")
    options = parser.parse_args()
    prefix = f"rfbench{os.getpid()}-"
    plain, nat = f"{prefix}plain", f"{prefix}nat"
    try:
        with namespaces([plain, nat]):
            for each in (plain, nat):
                _add_addresses(each)
            with _listener(plain) as straight, _listener(nat) as behind_nat, _captured(prefix, straight) as kernel:
                direct = OriginalDestination(_BACKENDS[0], _PORT)
                ways = (
                    Way(name="direct", namespace=plain, to=direct, listener=straight),
                    Way(name="ringfence", namespace=plain, to=_SERVICE, listener=straight, cgroup=kernel.cgroup),
                    Way(name="iptables", namespace=nat, to=_SERVICE, listener=behind_nat),
                )
                _translate(nat, options.what)
                if options.what == "balancing":
                    kernel.balance()
                found = _take_turns(ways, compile_load(kernel.directory), turns=options.turns)
                connects = _ROUNDS * options.turns * _CONNECTS_A_TURN
                kernel.require_balanced(connects if options.what == "balancing" else 0)
    except (BenchError, BpfError, OSError) as error:
        sys.exit(f"bench.connects {options.what}: {error}")
    json.dump(found, sys.stdout)


# -- the ways -------------------------------------------------------------------------


def _add_addresses(namespace: str) -> None:
    for ip in (_WORKLOAD, *_BACKENDS):
        run("ip", "-n", namespace, "address", "add", f"{ip}/32", "dev", "lo")
    # So that there is a way to the cluster IP, until something translates it.
    run("ip", "-n", namespace, "route", "add", f"{_SERVICE.ip}/32", "dev", "lo")


@contextmanager
def _listener(namespace: str) -> Iterator[socket.socket]:
    inside = NetworkNamespace.open(Path("/run/netns") / namespace)
    try:
        with inside.tcp_socket(socket.AF_INET) as listener:
            listener.setblocking(True)
            listener.bind(("0.0.0.0", _PORT))
            listener.listen(16)
            yield listener
    finally:
        inside.close()


def _translate(namespace: str, what: str) -> None:
    """The rules of a node whose kube-proxy, or whose capture, uses iptables."""
    inside = ("nsenter", f"--net=/run/netns/{namespace}", "iptables", "-w", "10", "-t", "nat")
    match = ("-p", "tcp", "-d", _SERVICE.ip, "--dport", str(_SERVICE.port))
    if what == "capture":
        run(*inside, "-A", "OUTPUT", *match, "-j", "REDIRECT", "--to-ports", str(_PORT))
        return
    run(*inside, "-N", "SERVICE")
    run(*inside, "-A", "OUTPUT", *match, "-j", "SERVICE")
    for number, ip in enumerate(_BACKENDS):
        left = len(_BACKENDS) - number
        drawn = ["-m", "statistic", "--mode", "random", "--probability", f"{1 / left:.5f}"] if left > 1 else []
        run(*inside, "-A", "SERVICE", "-p", "tcp", *drawn, "-j", "DNAT", "--to-destination", f"{ip}:{_PORT}")


class _Kernel:
    """The programs of cgroup capture at a cgroup, with our listener in the agent's place."""

    def __init__(self, root: Path, cgroup: Path, directory: Path, listener: socket.socket, stack: ExitStack) -> None:
        self.cgroup, self.directory = cgroup, directory
        loader.load(root, features=[each for each in FEATURES if each.name == CAPTURE])
        pins = Pins(root)
        self._maps = open_maps(pins, ("workloads", "listeners"), feature=CAPTURE)
        for each in self._maps.values():
            stack.callback(each.close)
        self._balancing = KernelBalancing(root, feature=CAPTURE)
        stack.callback(self._balancing.close)
        number = CgroupLinks(pins).attach(ObjectName("bench", "client"), cgroup)
        self._maps["listeners"].put(listener_key(address_bytes(_WORKLOAD), _PORT), SOCKET.pack(listener.fileno()))
        workload = (
            abi()
            .structs["workload"]
            .pack(
                listener_ip4_be=socket.inet_aton(_WORKLOAD),
                listener_port_be=socket.htons(_PORT),
                netns_cookie=netns_cookie(listener),
            )
        )
        self._maps["workloads"].put(COOKIE.pack(number), workload)

    def balance(self) -> None:
        """From now on the kernel chooses an endpoint instead of the listener."""
        shares = tuple((EndpointAddress(ip, _PORT), 1.0) for ip in _BACKENDS)
        self._balancing.file(_SERVICE, shares, time.monotonic())
        self._balancing.keep(valid_s=_VALID_S)

    def require_balanced(self, connects: int) -> None:
        """Raises BenchError: so many connects have not gone to an endpoint, but more or less.

        Nobody listens at the cluster IP: who got through was sent somewhere else.
        """
        counted = self._balancing.counters()
        if counted["balanced"] != connects:
            raise BenchError(f"{connects} connects were to be balanced, and the programs have counted {counted}")


@contextmanager
def _captured(prefix: str, listener: socket.socket) -> Iterator[_Kernel]:
    cgroup = preconditions.cgroup_root() / prefix.rstrip("-")
    pins = Path("/sys/fs/bpf") / prefix.rstrip("-")
    directory = Path(tempfile.gettempdir()) / prefix.rstrip("-")
    with guarded(_CLEAN_UP, str(pins), str(directory), str(cgroup)), ExitStack() as stack:
        directory.mkdir(mode=0o700)
        cgroup.mkdir()
        yield _Kernel(pins, cgroup, directory, listener, stack)


# -- the load -------------------------------------------------------------------------


def _take_turns(ways: Sequence[Way], load: Path, *, turns: int) -> dict[str, dict[str, list[float]]]:
    """The median connect of each way, and what it takes more than the first one does, a value a round."""
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        clients = [stack.enter_context(_client(way, load)) for way in ways]
        for number in range(_ROUNDS):
            connect_us: list[list[float]] = [[] for _ in ways]
            for turn in range(turns):
                for place in range(len(ways)):
                    who = (place + turn + number) % len(ways)
                    connect_us[who].append(_turn(ways[who], clients[who]))
            direct_us = connect_us[0]
            for way, each_us in zip(ways, connect_us, strict=True):
                figures = found.setdefault(way.name, {})
                figures.setdefault("connect_us", []).append(median(each_us))
                if each_us is not direct_us:
                    adds_us = [one - other for one, other in zip(each_us, direct_us, strict=True)]
                    figures.setdefault("adds_us", []).append(median(adds_us))
    return found


@contextmanager
def _client(way: Way, load: Path) -> Iterator["subprocess.Popen[str]"]:
    """Waits for its turns; dies with this process, and always runs on the same processor."""
    place = f'echo $$ >"{way.cgroup}/cgroup.procs"; ' if way.cgroup else ""
    fd = way.listener.fileno()
    command = ["setpriv", "--pdeathsig", "KILL", "/bin/sh", "-c", f'{place}exec "$@"', "client"]
    command += ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))]
    command += ["nsenter", f"--net=/run/netns/{way.namespace}", "--", str(load), "connects"]
    command += [way.to.ip, str(way.to.port), str(_CONNECTS_A_TURN), str(fd)]
    client = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[fd],
    )
    with client:
        try:
            yield client
        finally:
            client.kill()


def _turn(way: Way, client: "subprocess.Popen[str]") -> float:
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stderr is not None
    try:
        client.stdin.write(".")
        client.stdin.flush()
    except BrokenPipeError:
        pass  # its last words say why
    line = client.stdout.readline()
    if not line:
        raise BenchError(f"{way.name}: {client.stderr.read().strip() or 'the client has died'}")
    return float(json.loads(line)["p50_us"])


if __name__ == "__main__":
    main()
