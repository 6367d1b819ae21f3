"""Where spans and access records go: the sections ``[tracing]`` and ``[access_log]`` of agent.toml.

A part of config.py, which reads them; docs/configuration.md has every key.
"""

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from node_agent.errors import ConfigError

_MAX_URL_CHARS: Final = 2048
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_TRACES_PATH: Final = "/v1/traces"  # OTLP/HTTP's default paths: opentelemetry.io/docs/specs/otlp/#otlphttp-request
_LOGS_PATH: Final = "/v1/logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorUrl:
    """An ``http`` or ``https`` URL without user, query or fragment; ``host`` has no brackets, ``path`` may be empty."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> "CollectorUrl":
        """Read a URL; raises ValueError."""
        if len(text) > _MAX_URL_CHARS or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
            raise ValueError("expected a URL such as http://127.0.0.1:4318")
        parts = urlsplit(text)  # raises ValueError for a broken IPv6 address
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ValueError("expected a URL that begins with http:// or https:// and names a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("expected a URL without a user or password; headers_file is for secrets")
        if parts.query or parts.fragment or text.endswith(("?", "#")):
            raise ValueError("expected a URL without a query or fragment")
        port = parts.port if parts.port is not None else _DEFAULT_PORTS[parts.scheme]  # raises ValueError
        if not port:
            raise ValueError("expected a port between 1 and 65535")
        return cls(scheme=parts.scheme, host=parts.hostname, port=port, path=parts.path.rstrip("/"))

    def of_signal(self, path: str) -> str:
        """The URL as text; ``path`` stands in for an empty one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path or path}"

    @property
    def is_private(self) -> bool:
        """Whether what is sent there can not be read on the way."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Sink(StrEnum):
    """Where access records go."""

    STDOUT = "stdout"
    FILE = "file"
    OTLP = "otlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSection:
    """``[tracing]``: which connections leave spans, and which collector gets them; off without ``endpoint``."""

    endpoint: CollectorUrl | None = None
    sample_ratio: float = field(default=0.01, metadata={"least": 0.0, "most": 1.0})
    service_name: str = "ringfence"
    timeout_s: float = field(default=5.0, metadata={"least": 0.1, "most": 60.0})
    headers_file: Path | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogSection:
    """``[access_log]``: where access records go; without ``otlp_endpoint`` to the collector of ``[tracing]``."""

    sinks: tuple[Sink, ...] = (Sink.STDOUT,)
    opened_record: bool = False
    file: Path | None = None
    rotate_bytes: int = field(default=100 * 1024 * 1024, metadata={"least": 0, "most": 2**40})
    keep_files: int = field(default=5, metadata={"least": 0, "most": 1000})
    otlp_endpoint: CollectorUrl | None = None
    otlp_headers_file: Path | None = None
    otlp_ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """One place that takes OTLP, whole: ``url`` with its path."""

    url: str
    timeout_s: float
    headers_file: Path | None
    ca_file: Path | None


def trace_collector(tracing: TracingSection) -> Collector | None:
    """Who gets the spans; None: there are none."""
    if tracing.endpoint is None:
        return None
    return Collector(
        url=tracing.endpoint.of_signal(_TRACES_PATH),
        timeout_s=tracing.timeout_s,
        headers_file=tracing.headers_file,
        ca_file=tracing.ca_file,
    )


def record_collector(access_log: AccessLogSection, tracing: TracingSection) -> Collector | None:
    """Who gets the access records; None: nobody by OTLP."""
    if Sink.OTLP not in access_log.sinks:
        return None
    if access_log.otlp_endpoint is not None:
        return Collector(
            url=access_log.otlp_endpoint.of_signal(_LOGS_PATH),
            timeout_s=tracing.timeout_s,
            headers_file=access_log.otlp_headers_file,
            ca_file=access_log.otlp_ca_file,
        )
    assert tracing.endpoint is not None
    # A path in the URL of [tracing] is that of its spans.
    base = tracing.endpoint if not tracing.endpoint.path else _parent_of(tracing.endpoint)
    return Collector(
        url=base.of_signal(_LOGS_PATH),
        timeout_s=tracing.timeout_s,
        headers_file=tracing.headers_file,
        ca_file=tracing.ca_file,
    )


def _parent_of(endpoint: CollectorUrl) -> CollectorUrl:
    path = endpoint.path.removesuffix(_TRACES_PATH) + _LOGS_PATH
    return CollectorUrl(scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, path=path)


def check(path: Path, tracing: TracingSection, access_log: AccessLogSection) -> None:
    """Rules that span more than one key; raises ConfigError."""
    if tracing.endpoint is None:
        for key in ("headers_file", "ca_file"):
            if getattr(tracing, key) is not None:
                raise ConfigError(f"{path}: [tracing] {key}: is not read without endpoint; set that, or remove it")
    _check_secrets(path, "[tracing] headers_file", tracing.endpoint, tracing.headers_file)
    if len(set(access_log.sinks)) < len(access_log.sinks):
        raise ConfigError(f"{path}: [access_log] sinks: the same one twice")
    if (Sink.FILE in access_log.sinks) != (access_log.file is not None):
        problem = "missing with the sink" if access_log.file is None else "is not written without the sink"
        raise ConfigError(f'{path}: [access_log] file: {problem} "file"; set both or none')
    if Sink.OTLP in access_log.sinks and access_log.otlp_endpoint is None:
        if tracing.endpoint is None:
            raise ConfigError(
                f'{path}: [access_log] otlp_endpoint: missing with the sink "otlp"; set it, or [tracing] endpoint'
            )
        if tracing.endpoint.path and not tracing.endpoint.path.endswith(_TRACES_PATH):
            raise ConfigError(
                f"{path}: [access_log] otlp_endpoint: missing; the path of [tracing] endpoint does not end in "
                f"{_TRACES_PATH}, so where records go can not be told from it"
            )
    if Sink.OTLP not in access_log.sinks or access_log.otlp_endpoint is None:
        for key in ("otlp_endpoint", "otlp_headers_file", "otlp_ca_file"):
            if getattr(access_log, key) is not None:
                raise ConfigError(
                    f'{path}: [access_log] {key}: is not read without the sink "otlp" and otlp_endpoint; '
                    "set these, or remove it"
                )
    _check_secrets(path, "[access_log] otlp_headers_file", access_log.otlp_endpoint, access_log.otlp_headers_file)


def _check_secrets(path: Path, key: str, endpoint: CollectorUrl | None, headers_file: Path | None) -> None:
    if headers_file is not None and endpoint is not None and not endpoint.is_private:
        raise ConfigError(
            f"{path}: {key}: would be sent in clear to {endpoint.of_signal('')}; "
            "use https, or a collector on this host's loopback"
        )
