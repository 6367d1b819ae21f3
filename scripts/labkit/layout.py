"""Names, addresses and paths of the lab: every one of them is decided here.

    link      10.247.0.0/24    fd52:4647::/64           node K is .K+10 / ::K+10
    pods      10.247.K.0/24    fd52:4647:0:K::/64       the gateway is .1 / ::1
    services  10.248.0.0/16    fd52:4647:ffff::/112

In IPv6 addresses the decimal digits are written as they are (node 2 is
``fd52:4647::12``), so that both addresses of a thing look alike.

``RINGFENCE_LAB=NAME`` in the environment makes a second lab beside the first:
other state directory, other namespaces, same addresses (namespaces keep them
apart).  The lab's own tests live in one.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Final

from labkit.errors import LabError

ROOT: Final = Path(__file__).resolve().parents[2]
TRUST_DOMAIN: Final = "cluster.local"
CA_PORT: Final = 15012  # of the first CA; each further one has its ports 10 higher
BUNDLE_PORT: Final = 15013
METRICS_PORT: Final = 15020
MAX_CA_REPLICAS: Final = 8  # of the first CA; each further one listens 100 ports higher
TUNNEL_PORT: Final = 15008
MAX_NODES: Final = 99  # node K is .K+10 on the link and fd52:4647:0:K:: for its pods, in decimal digits
FIRST_POD_HOST: Final = 2  # .1 is the gateway
LAST_POD_HOST: Final = 254
SERVICE_NETWORK_V4: Final = ipaddress.IPv4Network("10.248.0.0/16")
SERVICE_NETWORK_V6: Final = ipaddress.IPv6Network("fd52:4647:ffff::/112")
CLUSTER_V4: Final = "10.247.0.0/16"
CLUSTER_V6: Final = "fd52:4647::/48"

_INSTANCE: Final = os.environ.get("RINGFENCE_LAB", "")
if _INSTANCE and not re.fullmatch(r"[a-z0-9]{1,12}", _INSTANCE):
    # On import: before there is anybody who turns a LabError into a line.
    raise SystemExit(f"lab: RINGFENCE_LAB={_INSTANCE!r}: a lab is named with 1 to 12 of a-z and 0-9")

# "rf" for the lab, "rf_NAME" for another: neither is the beginning of the other's names.
_PREFIX: Final = f"rf_{_INSTANCE}" if _INSTANCE else "rf"
_SUFFIX: Final = f"-{_INSTANCE}" if _INSTANCE else ""

STATE_DIR: Final = Path(f"/run/ringfence-lab{_SUFFIX}")
LOCK_FILE: Final = Path(f"/run/ringfence-lab{_SUFFIX}.lock")  # outlives the state directory
MANIFESTS_DIR: Final = STATE_DIR / "manifests"
PODS_DIR: Final = STATE_DIR / "pods"
LAB_FILE: Final = STATE_DIR / "lab.json"
WORKLOAD_API_DIR: Final = Path(f"/run/ringfence-lab{_SUFFIX}.workload")  # outside: every user of a pod may enter it
POSTGRES_DIR: Final = Path(f"/run/ringfence-lab{_SUFFIX}.postgres")  # outside: its user may not enter the lab's
CUTS_FILE: Final = STATE_DIR / "cuts.json"

CAPTURES: Final = ("inpod", "inpod-bpf", "cgroup")
BPFFS: Final = Path("/sys/fs/bpf")
_PINS: Final = f"ringfence_lab{_SUFFIX.replace('-', '_')}_node"
PINS_GLOB: Final = f"{_PINS}[0-9]*"

CGROUP: Final = _PREFIX  # of the pods of `--capture cgroup`, below the root of cgroup v2

NETNS_DIR: Final = Path("/run/netns")
LINK_NETNS: Final = f"{_PREFIX}-link"
NETNS_PATH_TEMPLATE: Final = f"{NETNS_DIR}/{_PREFIX}-pod-{{namespace}}-{{name}}"
BRIDGE: Final = "br0"
NODE_LINK: Final = "eth0"  # the node's interface on the link
POD_LINK: Final = "eth0"

_OURS: Final = re.compile(rf"{re.escape(_PREFIX)}-(link|node\d+|pod-[a-z0-9.-]+)")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def pins(node: int) -> Path:
    """Where a node's BPF programs are pinned: nodes of the lab share the machine's one bpffs."""
    return BPFFS / f"{_PINS}{node}"


def is_ours(netns: str) -> bool:
    """Whether a network namespace of this name belongs to this lab."""
    return _OURS.fullmatch(netns) is not None


def node_netns(node: int) -> str:
    """The namespace of node K; node 0 is the CA's."""
    return f"{_PREFIX}-node{node}"


def pod_netns(namespace: str, name: str) -> str:
    """The namespace of a pod, as the agent's ``netns_path`` finds it."""
    return f"{_PREFIX}-pod-{namespace}-{name}"


def node_name(node: int) -> str:
    """The Kubernetes name of node K."""
    return f"node-{node}"


def ca_dir(index: int, replica: int = 0) -> Path:
    """Where the CA of the lab's trust domain ``index`` keeps its configuration, state and log."""
    return STATE_DIR / ca_name(index, replica)


def ca_name(index: int, replica: int = 0) -> str:
    """``ca``, and ``ca-2`` and so on for further trust domains; ``ca-replica-2`` for the second replica of one."""
    name = "ca" if index == 0 else f"ca-{index + 1}"
    return name if replica == 0 else f"{name}-replica-{replica + 1}"


def ca_port(index: int, replica: int = 0) -> int:
    """Where that CA serves its agents; all CAs are on node 0."""
    return CA_PORT + 10 * index + 100 * replica


def ca_metrics_port(index: int, replica: int = 0) -> int:
    """Where that CA serves its metrics: the first one where an agent does."""
    return METRICS_PORT + 10 * index + 100 * replica


def bundle_port(index: int) -> int:
    """Where that CA serves its bundle, where there are several."""
    return BUNDLE_PORT + 10 * index


def bundle_url(index: int) -> str:
    """The same, as the others name it."""
    return f"https://{link_v4(0)}:{bundle_port(index)}/"


def agent_dir(node: int) -> Path:
    """Where agent K keeps its configuration, socket and log."""
    return STATE_DIR / f"agent-{node}"


def agent_socket(node: int) -> Path:
    """The operator's socket of agent K."""
    return agent_dir(node) / "agent.sock"


def workload_api_socket(node: int) -> Path:
    """The SPIFFE Workload API of agent K, for the pods of its node."""
    return WORKLOAD_API_DIR / node_name(node) / "api.sock"


def pod_dir(namespace: str, name: str) -> Path:
    """Where the lab keeps what it knows of a pod."""
    return PODS_DIR / namespace / name


def link_v4(node: int) -> str:
    """Address of node K on the link."""
    return f"10.247.0.{node + 10}"


def link_v6(node: int) -> str:
    """Address of node K on the link."""
    return f"fd52:4647::{node + 10}"


def pods_v4(node: int) -> str:
    """The network of node K's pods."""
    return f"10.247.{node}.0/24"


def pods_v6(node: int) -> str:
    """The network of node K's pods."""
    return f"fd52:4647:0:{node}::/64"


def pod_v4(node: int, host: int) -> str:
    """Address of a pod (host 1 is the gateway)."""
    return f"10.247.{node}.{host}"


def pod_v6(node: int, host: int) -> str:
    """Address of a pod (host 1 is the gateway)."""
    return f"fd52:4647:0:{node}::{host}"


def pod_interface(host: int) -> str:
    """The node's end of a pod's veth."""
    return f"pod{host}"


def require_trust_domain(text: str) -> str:
    """The rule of SPIFFE-ID 2.1."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise LabError(f"trust domain {text!r}: must be 1 to 255 of a-z, 0-9, '.', '-' and '_'")
    return text


def require_dns_label(what: str, text: str) -> str:
    """Kubernetes' own rule for such names (RFC 1123 label)."""
    if not _DNS_LABEL.fullmatch(text):
        raise LabError(f"{what} {text!r}: must be 1 to 63 of a-z, 0-9 and -, and begin and end with a letter or digit")
    return text
