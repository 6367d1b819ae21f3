"""The agent's configuration file: TOML, read once, valid by construction.

Every key, its default and its unit stand in docs/configuration.md; a test holds
that page against this file.  ``load`` is the only parser: a key that it does
not know, a wrong type or a value out of bounds is a ``ConfigError`` that names
file, key and remedy, because a silently ignored key in a security product is a
hole.
"""

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from string import Formatter
from typing import Any, Final

from ca.spiffe import SpiffeId, SpiffeIdError
from node_agent import export_config
from node_agent.errors import ConfigError
from node_agent.export_config import AccessLogSection, CollectorUrl, Sink, TracingSection

OUTBOUND_PORT: Final = 15001
INBOUND_PLAINTEXT_PORT: Final = 15006
TUNNEL_PORT: Final = 15008
CAPTURE_PORTS: Final = frozenset({OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, TUNNEL_PORT})
"""Listeners inside a pod; never a destination of a proxied connection (RFC-less: Istio's numbers)."""

_HOURS_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A TCP address of this or another host: IP literal (or empty for "any") and port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "HostPort":
        """Read ``host:port``, ``[v6]:port`` or ``:port``; raises ValueError."""
        host, separator, port = text.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
            raise ValueError('expected "host:port" with a port between 1 and 65535')
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("an IPv6 address needs brackets, as in [fd00::1]:15012")
        return cls(host=host, port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _number(default: float, *, least: float, most: float) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSection:
    """``[agent]``: who this agent is and where it keeps its sockets."""

    node: str
    trust_domain: str = "cluster.local"
    runtime_dir: Path = Path("/run/ringfence")
    state_dir: Path = Path("/var/lib/ringfence/agent")
    log_level: str = "info"
    drain_grace_s: float = _number(30.0, least=0.0, most=_HOURS_S)
    workers: int = _number(1, least=1, most=64)


class Attestation(StrEnum):
    """How a node without a certificate proves to the CA which node it is; the names are the CA's."""

    JOIN_TOKEN = "join_token"
    KUBERNETES = "kubernetes"
    INSTANCE_DOCUMENT = "instance_document"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaSection:
    """``[ca]``: where SVIDs come from and how this node proves itself."""

    address: tuple[HostPort, ...]
    bundle_file: Path
    attestation: Attestation = Attestation.JOIN_TOKEN
    join_token_file: Path | None = None
    service_account_token_file: Path = Path("/var/run/secrets/tokens/ringfence-ca")
    instance_document_file: Path | None = None
    instance_signature_file: Path | None = None
    node_key_dir: Path = Path("/run/ringfence/node")
    node_key_passphrase_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySection:
    """``[registry]``: where workloads and services are declared."""

    manifests_dir: Path = Path("/etc/ringfence/manifests")


class SameNode(StrEnum):
    """How pods of one node reach each other where neither Service nor Namespace says."""

    TUNNEL = "tunnel"
    LANE = "lane"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSection:
    """``[capture]``: how connections of workloads reach the agent, and which need not."""

    mode: str = "inpod"
    netns_path: str = "/run/netns/{namespace}_{name}"
    pins: Path = Path("/sys/fs/bpf/ringfence")
    same_node: SameNode = SameNode.TUNNEL
    connect_balancing: bool = False


class OutboundTrafficPolicy(StrEnum):
    """What becomes of connections to places that the registry does not know; Istio's words."""

    ALLOW_ANY = "allow-any"
    REGISTRY_ONLY = "registry-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySection:
    """``[proxy]``: deadlines and bounds of one connection."""

    connect_timeout_s: float = _number(5.0, least=0.05, most=300.0)
    handshake_timeout_s: float = _number(10.0, least=0.05, most=300.0)
    identity_wait_s: float = _number(5.0, least=0.0, most=300.0)
    open_timeout_s: float = _number(10.0, least=0.05, most=300.0)
    max_pending_handshakes: int = _number(2048, least=1, most=1_000_000)
    max_connect_attempts: int = _number(3, least=1, most=20)
    share_tunnels: bool = True
    outbound_traffic_policy: OutboundTrafficPolicy = OutboundTrafficPolicy.ALLOW_ANY


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySection:
    """``[relay]``: who moves the bytes; ``sockmap``: the kernel, of plaintext with small messages."""

    sockmap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSection:
    """``[listen]``: the agent's own listeners on the node; ``sight`` is for other agents, None when it is off."""

    metrics: HostPort = HostPort(host="", port=15020)
    readiness: HostPort = HostPort(host="", port=15021)
    sight: HostPort | None = HostPort(host="", port=15022)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSection:
    """``[metrics]``: how much the metrics may hold."""

    max_label_sets: int = _number(3000, least=100, most=100_000)  # telemetry/exposition.py says what they cost


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadApiSection:
    """``[workload_api]``: the SPIFFE Workload API for programs in our pods; ``socket`` None is under runtime_dir."""

    enabled: bool = False
    socket: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSection:
    """``[dns]``: who is asked for the names of places outside; empty for /etc/resolv.conf."""

    servers: tuple[HostPort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file; one attribute a section."""

    agent: NodeSection
    ca: CaSection
    registry: RegistrySection = RegistrySection()
    capture: CaptureSection = CaptureSection()
    proxy: ProxySection = ProxySection()
    relay: RelaySection = RelaySection()
    listen: ListenSection = ListenSection()
    workload_api: WorkloadApiSection = WorkloadApiSection()
    metrics: MetricsSection = MetricsSection()
    dns: DnsSection = DnsSection()
    tracing: TracingSection = field(default_factory=TracingSection)
    access_log: AccessLogSection = field(default_factory=AccessLogSection)

    @property
    def workload_api_socket(self) -> Path:
        """In a directory of its own, which can be mounted into pods without the operator's socket."""
        return self.workload_api.socket or self.agent.runtime_dir / "workload" / "api.sock"


_SECTIONS: Final[Mapping[str, type]] = {
    "agent": NodeSection,
    "ca": CaSection,
    "registry": RegistrySection,
    "capture": CaptureSection,
    "proxy": ProxySection,
    "relay": RelaySection,
    "listen": ListenSection,
    "workload_api": WorkloadApiSection,
    "metrics": MetricsSection,
    "dns": DnsSection,
    "tracing": TracingSection,
    "access_log": AccessLogSection,
}
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_OFF: Final = "off"
_MAX_ADDRESSES: Final = 16
_CAPTURE_MODES: Final = ("inpod", "inpod-bpf", "cgroup")


def load(path: Path) -> Config:
    """Read and check ``path``; raises ConfigError naming file, key and remedy."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the configuration: {error.strerror}; create it or pass --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error

    for name, value in document.items():
        if name not in _SECTIONS:
            raise ConfigError(f"{path}: [{name}]: unknown section; the sections are {', '.join(_SECTIONS)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {name}: expected a section, write [{name}] on its own line")
    sections = {name: _section(path, name, kind, document.get(name, {})) for name, kind in _SECTIONS.items()}
    config = Config(**sections)
    _check(path, config)
    return config


def _section(path: Path, section: str, kind: type, table: Mapping[str, object]) -> Any:
    known = {item.name: item for item in fields(kind)}
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: [{section}] {key}: unknown key; the keys are {', '.join(known)}")
    values: dict[str, object] = {}
    for key, item in known.items():
        if key in table:
            try:
                values[key] = _value(item.type, table[key], item.metadata)
            except ValueError as error:
                raise ConfigError(f"{path}: [{section}] {key} = {table[key]!r}: {error}") from error
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{path}: [{section}] {key}: missing; it has no default, set it")
    return kind(**values)


def _value(kind: object, value: object, bounds: Mapping[str, float]) -> object:
    """Turn a TOML value into what the field holds; raises ValueError."""
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("expected true or false")
        return value
    if kind is float or kind is int:
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise ValueError("expected a number" if kind is float else "expected a whole number")
        if not bounds["least"] <= value <= bounds["most"]:
            raise ValueError(f"expected a value between {bounds['least']:g} and {bounds['most']:g}")
        return kind(value)
    if kind == tuple[HostPort, ...]:
        several = value if isinstance(value, list) else [value]
        if not 1 <= len(several) <= _MAX_ADDRESSES:
            raise ValueError(f"expected one address, or a list of 1 to {_MAX_ADDRESSES}")
        return tuple(_value(HostPort, each, bounds) for each in several)
    if kind == tuple[Sink, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"expected a list of at least one of {', '.join(Sink)}")
        return tuple(_value(Sink, each, bounds) for each in value)
    return _of_text(kind, value)


def _of_text(kind: object, value: object) -> object:
    """What is written in quotes; raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text that is not empty")
    if "\0" in value:
        raise ValueError("expected a text without NUL characters")
    if kind == (HostPort | None) and value == _OFF:
        return None
    if kind in (HostPort, HostPort | None):
        return HostPort.parse(value)
    if kind == CollectorUrl | None:
        return CollectorUrl.parse(value)
    if kind is str:
        return value
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in list(kind):
            raise ValueError(f"expected one of {', '.join(kind)}")
        return kind(value)
    path = Path(value)
    if not path.is_absolute():
        raise ValueError("expected an absolute path")
    return path


def _check(path: Path, config: Config) -> None:
    """Rules that span more than a type."""
    if config.agent.log_level not in _LOG_LEVELS:
        raise ConfigError(
            f"{path}: [agent] log_level = {config.agent.log_level!r}: expected one of {', '.join(_LOG_LEVELS)}"
        )
    if config.capture.mode not in _CAPTURE_MODES:
        raise ConfigError(
            f"{path}: [capture] mode = {config.capture.mode!r}: expected one of {', '.join(_CAPTURE_MODES)}"
        )
    _check_identities(path, config.agent)
    _check_attestation(path, config.ca)
    _check_netns_path(path, config.capture.netns_path)
    export_config.check(path, config.tracing, config.access_log)
    if not all(each.host for each in config.ca.address):
        raise ConfigError(f"{path}: [ca] address: expected host:port of the CA")
    for each in config.dns.servers:
        if not _is_ip(each.host):
            raise ConfigError(
                f"{path}: [dns] servers: expected IP addresses with ports such as 10.0.0.53:53, not {each}"
            )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_attestation(path: Path, ca: CaSection) -> None:
    """A file that the chosen method does not read is a misunderstanding; one that it needs is not optional."""
    of_documents = {
        "instance_document_file": ca.instance_document_file,
        "instance_signature_file": ca.instance_signature_file,
    }
    if ca.attestation is not Attestation.JOIN_TOKEN and ca.join_token_file is not None:
        raise ConfigError(
            f"{path}: [ca] join_token_file: is not read with attestation = {str(ca.attestation)!r}; remove one of them"
        )
    for key, value in of_documents.items():
        if (value is None) == (ca.attestation is Attestation.INSTANCE_DOCUMENT):
            problem = "missing" if value is None else "not read"
            raise ConfigError(f"{path}: [ca] {key}: {problem} with attestation = {str(ca.attestation)!r}")


def _check_identities(path: Path, agent: NodeSection) -> None:
    """Both become part of SPIFFE IDs."""
    for key, value, as_trust_domain, as_node in (
        ("trust_domain", agent.trust_domain, agent.trust_domain, "node"),
        ("node", agent.node, "cluster.local", agent.node),
    ):
        try:
            SpiffeId.node(as_trust_domain, as_node)
        except SpiffeIdError as error:
            raise ConfigError(f"{path}: [agent] {key} = {value!r}: {error}") from error


def _check_netns_path(path: Path, template: str) -> None:
    try:
        template.format(namespace="", name="", uid="")
        fields_of_it = {name for _, name, _, _ in Formatter().parse(template)}
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{path}: [capture] netns_path = {template!r}: "
            "only {namespace}, {name} and {uid} stand for a part of the path"
        ) from error
    if not template.startswith("/") or not fields_of_it & {"name", "uid"}:
        raise ConfigError(
            f"{path}: [capture] netns_path = {template!r}: expected an absolute path that holds {{name}} or {{uid}}"
        )
