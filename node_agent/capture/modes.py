"""Which way to capture: what the configuration asks for, and what this kernel can do.

What BPF needs is imported where it is asked for: it costs memory.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node_agent.capture.capture import Capture, InPodCapture
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.network import WorkloadNetwork
from node_agent.capture.pod_network import PodNetwork
from node_agent.errors import ConfigError
from node_agent.model import Workload

if TYPE_CHECKING:
    from node_agent.capture.connect_balancing import KernelBalancing
    from node_agent.capture.lane import KernelLane
    from node_agent.capture.pinned import Origins
    from node_agent.capture.pod_source import PodSources

INPOD: Final = "inpod"
INPOD_BPF: Final = "inpod-bpf"
CGROUP: Final = "cgroup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """``mode`` is the one in effect; ``warning`` says why it is not the one that was asked for, or what it lacks.

    ``lane``, or ``no_lane``: why there is none; likewise ``balancing``, at connect.
    """

    capture: Capture
    mode: str
    warning: str | None = None
    lane: "KernelLane | None" = None
    no_lane: str = 'it needs [capture] mode = "inpod-bpf"'
    balancing: "KernelBalancing | None" = None
    no_balancing: str = 'it needs [capture] mode = "inpod-bpf" or "cgroup"'


def choose(mode: str, *, pins: Path, netns_path: Callable[[Workload], Path], stack: ExitStack) -> Chosen:
    """Open what ``mode`` needs; ``stack`` closes it.

    Raises:
        ConfigError: it can not be had; the text says what to do.
    """
    if mode == INPOD:
        return Chosen(capture=InPodCapture(netns_path), mode=INPOD)
    if mode == CGROUP:
        return _by_cgroup(pins, stack)
    from bpf.errors import BpfError, UnsupportedError  # noqa: PLC0415
    from bpf.pins import Pins  # noqa: PLC0415
    from bpf.plan import INPOD as INPOD_FEATURE  # noqa: PLC0415
    from node_agent.capture.pinned import Origins  # noqa: PLC0415
    from node_agent.capture.pod_bpf_capture import PodBpfCapture  # noqa: PLC0415
    from node_agent.capture.pod_source import PodSources  # noqa: PLC0415
    from node_agent.capture.pod_steering import PodSteering  # noqa: PLC0415

    try:
        steering = PodSteering.open(pins)
        stack.callback(steering.close)
        origins = Origins(pins, feature=INPOD_FEATURE)
        stack.callback(origins.close)
        balancing = _balancing(pins, INPOD_FEATURE, stack)
    except UnsupportedError as error:
        return Chosen(
            capture=InPodCapture(netns_path),
            mode=INPOD,
            warning=f"[capture] mode = {mode!r} can not be had, {INPOD!r} is in effect: {error}",
        )
    except BpfError as error:
        raise ConfigError(f"[capture] mode = {mode!r}: {error}") from error
    try:
        sources = PodSources(Pins(pins))
    except BpfError as error:
        return Chosen(
            capture=PodBpfCapture(netns_path, steering=steering, origins=origins, sources=None),
            mode=mode,
            warning=f"pods of this node can send with each other's addresses, unless the network keeps them: {error}",
            no_lane=str(error),
            balancing=balancing,
        )
    stack.callback(sources.close)
    capture = PodBpfCapture(netns_path, steering=steering, origins=origins, sources=sources)
    try:
        lane = _lane(pins, sources, stack)
    except BpfError as error:
        return Chosen(capture=capture, mode=mode, no_lane=str(error), balancing=balancing)
    return Chosen(capture=capture, mode=mode, lane=lane, balancing=balancing)


def _lane(pins: Path, sources: "PodSources", stack: ExitStack) -> "KernelLane":
    from bpf.errors import BpfError  # noqa: PLC0415
    from node_agent.capture.lane import KernelLane  # noqa: PLC0415

    try:
        lane = KernelLane(pins, sources=sources)
    except OSError as error:
        raise BpfError(f"{pins}: its maps can not be used: {error.strerror}") from error
    stack.callback(lane.close)
    return lane


def _balancing(pins: Path, feature: str, stack: ExitStack) -> "KernelBalancing":
    """Also where nobody asks for it now: an agent before us may have."""
    from node_agent.capture.connect_balancing import KernelBalancing  # noqa: PLC0415

    balancing = KernelBalancing(pins, feature=feature)
    stack.callback(balancing.close)
    return balancing


def _by_cgroup(pins: Path, stack: ExitStack) -> Chosen:
    """There is no other way to capture what is no pod: without BPF the agent does not start."""
    from bpf.errors import BpfError  # noqa: PLC0415
    from bpf.plan import CAPTURE  # noqa: PLC0415
    from node_agent.capture.cgroup_capture import CgroupCapture  # noqa: PLC0415
    from node_agent.capture.pinned import Origins  # noqa: PLC0415

    try:
        origins = Origins(pins, feature=CAPTURE)
        stack.callback(origins.close)
        capture = CgroupCapture(pins, origins=origins)
        stack.callback(capture.close)
        balancing = _balancing(pins, CAPTURE, stack)
    except BpfError as error:
        raise ConfigError(f"[capture] mode = {CGROUP!r}: {error}") from error
    return Chosen(capture=capture, mode=CGROUP, balancing=balancing)


class Adopter:
    """Makes the networks of pods that another process has opened, in the mode that is in effect there."""

    def __init__(self, *, pins: Path, home: int, stack: ExitStack) -> None:
        """``home`` is our own network namespace, and stays the caller's; ``stack`` closes what will be opened."""
        self._pins = pins
        self._home = home
        self._stack = stack
        self._origins: Origins | None = None

    def network(self, mode: str, namespace: int, workload: Workload) -> WorkloadNetwork:
        """Take over the descriptor ``namespace``."""
        if mode == INPOD:
            return PodNetwork.of_descriptor(namespace, home=self._home)
        if mode == CGROUP:
            return self._of_cgroup(namespace, workload)
        from bpf.plan import INPOD as INPOD_FEATURE  # noqa: PLC0415
        from node_agent.capture.pinned import Origins  # noqa: PLC0415
        from node_agent.capture.pod_bpf_capture import SteeredPodNetwork  # noqa: PLC0415

        if self._origins is None:
            self._origins = Origins(self._pins, feature=INPOD_FEATURE)
            self._stack.callback(self._origins.close)
        return SteeredPodNetwork(NetworkNamespace(namespace, home=self._home), origins=self._origins)

    def _of_cgroup(self, namespace: int, workload: Workload) -> WorkloadNetwork:
        from bpf.plan import CAPTURE  # noqa: PLC0415
        from node_agent.capture.node_network import NodeNetwork  # noqa: PLC0415
        from node_agent.capture.pinned import Origins  # noqa: PLC0415

        if self._origins is None:
            self._origins = Origins(self._pins, feature=CAPTURE)
            self._stack.callback(self._origins.close)
        where = NetworkNamespace(namespace, home=self._home)
        return NodeNetwork(where, addresses=workload.addresses, origins=self._origins)
