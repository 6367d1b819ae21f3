"""What is to be loaded: features, their sources, maps, and programs by hook.  Data only.

A new program is a row of a feature here (and its C file); a new kind of hook is
a row of ``HOOKS`` too.  The loader does the rest.
"""

from dataclasses import dataclass
from typing import Final

from bpf.syscalls import AttachType, MapType, ProgramType


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A place where the kernel calls us.

    ``refuses``: without a program in force the answer is no (a packet, a
    connect); else nothing happens.
    """

    name: str
    program_type: ProgramType
    attach_type: AttachType
    refuses: bool

    @property
    def dispatcher(self) -> str:
        """The function of dispatch.c that is linked."""
        if self.attach_type is AttachType.TCX_INGRESS:
            return "dispatch_or_next"
        return "dispatch_or_refuse" if self.refuses else "dispatch_or_pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A function of the feature's sources, and the hook that it serves."""

    function: str
    hook: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRow:
    """A map of the feature.

    ``key`` and ``value`` are structures of maps.h, or None for a plain number.
    ``type`` overrides what the C source says, for kinds that bcc has no
    look-up for; ``value_bytes`` then too.
    """

    name: str
    key: str | None = None
    value: str | None = None
    type: MapType | None = None
    value_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelNumber:
    """What the sources can not know before they meet the running kernel: the macro ``define`` gets an offset in bytes
    (``kind`` a structure, ``member`` of it) or a value (``kind`` an enumeration)."""

    define: str
    kind: str
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """What is loaded, or left out, as a whole.  ``min_kernel`` is where the last thing that it needs came in."""

    name: str
    min_kernel: tuple[int, int]
    needs: str
    sources: tuple[str, ...]
    maps: tuple[MapRow, ...]
    programs: tuple[Program, ...]
    numbers: tuple[KernelNumber, ...] = ()


HOOKS: Final = (
    Hook(
        name="connect4",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET4_CONNECT,
        refuses=True,
    ),
    Hook(
        name="connect6",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET6_CONNECT,
        refuses=True,
    ),
    Hook(
        name="getpeername4",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET4_GETPEERNAME,
        refuses=False,
    ),
    Hook(
        name="getpeername6",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET6_GETPEERNAME,
        refuses=False,
    ),
    Hook(
        name="sock_ops",
        program_type=ProgramType.SOCK_OPS,
        attach_type=AttachType.CGROUP_SOCK_OPS,
        refuses=False,
    ),
    Hook(
        name="sock_release",
        program_type=ProgramType.CGROUP_SOCK,
        attach_type=AttachType.CGROUP_INET_SOCK_RELEASE,
        refuses=False,
    ),
    Hook(
        name="ingress",
        program_type=ProgramType.CGROUP_SKB,
        attach_type=AttachType.CGROUP_INET_INGRESS,
        refuses=True,
    ),
    Hook(
        name="pod_connect4",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET4_CONNECT,
        refuses=False,  # at the root cgroup: it would be the node's connections too
    ),
    Hook(
        name="pod_connect6",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET6_CONNECT,
        refuses=False,
    ),
    Hook(
        name="pod_sock_ops",
        program_type=ProgramType.SOCK_OPS,
        attach_type=AttachType.CGROUP_SOCK_OPS,
        refuses=False,
    ),
    Hook(
        name="pod_sk_lookup",
        program_type=ProgramType.SK_LOOKUP,
        attach_type=AttachType.SK_LOOKUP,
        refuses=True,
    ),
    Hook(
        name="lane_connect4",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET4_CONNECT,
        refuses=False,
    ),
    Hook(
        name="lane_connect6",
        program_type=ProgramType.CGROUP_SOCK_ADDR,
        attach_type=AttachType.CGROUP_INET6_CONNECT,
        refuses=False,
    ),
    Hook(
        name="lane_sock_ops",
        program_type=ProgramType.SOCK_OPS,
        attach_type=AttachType.CGROUP_SOCK_OPS,
        refuses=False,
    ),
    Hook(
        name="lane_sock_release",
        program_type=ProgramType.CGROUP_SOCK,
        attach_type=AttachType.CGROUP_INET_SOCK_RELEASE,
        refuses=False,
    ),
    Hook(
        name="pod_source",
        program_type=ProgramType.SCHED_CLS,
        attach_type=AttachType.TCX_INGRESS,
        refuses=False,
    ),
)

MAP_HOOKS: Final = (
    Hook(
        name="sockmap",
        program_type=ProgramType.SK_SKB,
        attach_type=AttachType.SK_SKB_STREAM_VERDICT,
        refuses=False,
    ),
)
"""Hooks of a map's sockets: the agent attaches the program to the map, of the same version; there is no dispatcher."""

CAPTURE: Final = "capture"
INPOD: Final = "inpod"
LANE: Final = "lane"
SOURCE: Final = "source"
SOCKMAP: Final = "sockmap"

_CAPTURE_MAPS: Final = (
    MapRow(name="workloads", value="workload"),
    MapRow(name="listeners", key="listener_key", type=MapType.SOCKHASH, value_bytes=8),
    MapRow(name="originals", value="original_destination"),
    MapRow(name="flows", key="flow_key", value="original_destination"),
)
_POD_MAPS: Final = (
    *_CAPTURE_MAPS,
    MapRow(name="pods", value="pod"),
    MapRow(name="passes", key="pass_key"),
    MapRow(name="refusals", key="pass_key"),
)

_BALANCE_MAPS: Final = (
    MapRow(name="balance_control", value="balance_control"),
    MapRow(name="balance_counters", value="balance_counters"),
    MapRow(name="balanced", key="balanced_key", value="balanced"),
    MapRow(name="balance_rows", value="balance_row"),
    MapRow(name="balance_failed", key="balanced_key"),
)

FEATURES: Final = (
    Feature(
        name=CAPTURE,
        min_kernel=(5, 18),
        needs="bpf_set_retval in connect hooks",
        sources=(
            "capture.h",
            "connect.h",
            "balance.h",
            "connect.c",
            "getpeername.c",
            "flows.c",
            "release.c",
            "guard.c",
        ),
        maps=(*_CAPTURE_MAPS, *_BALANCE_MAPS),
        programs=(
            Program(function="capture_connect4", hook="connect4"),
            Program(function="capture_connect6", hook="connect6"),
            Program(function="capture_getpeername4", hook="getpeername4"),
            Program(function="capture_getpeername6", hook="getpeername6"),
            Program(function="capture_flows", hook="sock_ops"),
            Program(function="capture_release", hook="sock_release"),
            Program(function="capture_guard", hook="ingress"),
        ),
    ),
    Feature(
        name=INPOD,
        min_kernel=(5, 18),
        needs="bpf_set_retval in connect hooks",
        sources=("capture.h", "connect.h", "inpod.h", "balance.h", "pod_connect.c", "pod_passes.c", "steer.c"),
        maps=(*_POD_MAPS, *_BALANCE_MAPS),
        programs=(
            Program(function="pod_connect4", hook="pod_connect4"),
            Program(function="pod_connect6", hook="pod_connect6"),
            Program(function="pod_passes", hook="pod_sock_ops"),
            Program(function="pod_steer", hook="pod_sk_lookup"),
        ),
    ),
    Feature(
        name=LANE,
        min_kernel=(6, 6),
        needs="TCX links, as the feature source does",
        sources=(
            "capture.h",
            "connect.h",
            "inpod.h",
            "lane.h",
            "lane_connect.c",
            "lane_flows.c",
            "lane_release.c",
        ),
        maps=(
            *_POD_MAPS,
            MapRow(name="lane_control", value="lane_control"),
            MapRow(name="lane_counters", value="lane_counters"),
            MapRow(name="lanes", key="lane_key", value="lane"),
            MapRow(name="lane_connections", value="lane_connection"),
            MapRow(name="lane_ends"),
            MapRow(name="lane_spill", value="lane_end"),
        ),
        programs=(
            Program(function="lane_connect4", hook="lane_connect4"),
            Program(function="lane_connect6", hook="lane_connect6"),
            Program(function="lane_flows", hook="lane_sock_ops"),
            Program(function="lane_release", hook="lane_sock_release"),
        ),
        numbers=(
            KernelNumber(define="SOCK_FLAGS_OFFSET", kind="sock_common", member="skc_flags"),
            KernelNumber(define="SOCK_ERROR_OFFSET", kind="sock", member="sk_err"),
            KernelNumber(define="SOCK_DONE_BIT", kind="sock_flags", member="SOCK_DONE"),
        ),
    ),
    Feature(
        name=SOURCE,
        min_kernel=(6, 6),
        needs="TCX links, against forged addresses",
        sources=("pod_source.c",),
        maps=(MapRow(name="pod_addresses", key="pod_address"),),
        programs=(Program(function="pod_source", hook="pod_source"),),
    ),
    Feature(
        name=SOCKMAP,
        min_kernel=(6, 16),
        needs="redirection between sockets that loses no bytes",
        sources=("sockmap.c",),
        maps=(
            MapRow(name="sockmap_sources", type=MapType.SOCKHASH, value_bytes=8),
            MapRow(name="sockmap_sinks", type=MapType.SOCKHASH, value_bytes=8),
            MapRow(name="sockmap_slots"),
            MapRow(name="sockmap_flows", value="sockmap_flow"),
            MapRow(name="sockmap_demotions"),
        ),
        programs=(Program(function="sockmap_verdict", hook="sockmap"),),
        numbers=(
            KernelNumber(define="TCP_BYTES_ACKED_OFFSET", kind="tcp_sock", member="bytes_acked"),
            KernelNumber(define="TCP_WRITE_SEQ_OFFSET", kind="tcp_sock", member="write_seq"),
            KernelNumber(define="TCP_SND_UNA_OFFSET", kind="tcp_sock", member="snd_una"),
            KernelNumber(define="SOCK_WMEM_QUEUED_OFFSET", kind="sock", member="sk_wmem_queued"),
            KernelNumber(define="SOCK_SNDBUF_OFFSET", kind="sock", member="sk_sndbuf"),
        ),
    ),
)


def hook(name: str) -> Hook:
    """The row of ``HOOKS`` or ``MAP_HOOKS``."""
    return next(each for each in (*HOOKS, *MAP_HOOKS) if each.name == name)
