"""How a collector is reached: OpenTelemetry's exporters over HTTP, and the session that they use.

Imported only when one is configured: OpenTelemetry, protobuf and requests cost
18 MB and 0.15 s.  What it is told stands in agent.toml: proxies and ``.netrc`` of the
environment are not looked at; OpenTelemetry's own variables are, by itself.
"""

import logging
import os
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, overload

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.version import __version__ as sdk_version

from node_agent.errors import ConfigError
from node_agent.export_config import Collector

_MAX_HEADERS_BYTES: Final = 64 * 1024
_MAX_REPLY_BYTES: Final = 64 * 1024  # an ExportTraceServiceResponse is a few bytes, and nobody reads it
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~](?:[ -~]*[!-~])?)[ \t]*", re.ASCII)  # RFC 9110
_OURS: Final = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding", "host"})
_MAX_PROBLEM_CHARS: Final = 200
_BREATH_S: Final = 0.00005  # longer than it takes to wake another thread

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who sends: the agent of ``node``, in one of its worker processes or in none."""

    service_name: str
    version: str
    node: str
    trust_domain: str
    worker: int | None

    def resource(self) -> Resource:
        """As https://opentelemetry.io/docs/specs/semconv/resource/ has it."""
        instance = self.node if self.worker is None else f"{self.node}/{self.worker}"
        return Resource(
            {
                "service.name": plain(self.service_name),
                "service.version": self.version,
                "service.instance.id": plain(instance),
                "k8s.node.name": plain(self.node),
                "ringfence.trust_domain": plain(self.trust_domain),
                "telemetry.sdk.language": "python",
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.version": sdk_version,
            }
        )

    def scope(self) -> InstrumentationScope:
        return InstrumentationScope("ringfence", self.version)


class CollectorSession(requests.Session):
    """Asks the collector and no one else; ``problem`` is why the last request was not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.problem = ""

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        """As its base has it, but an answer of any length costs no memory, and a redirect is an error."""
        self.problem = ""
        try:
            response = super().request(*arguments, **{**options, "stream": True})
            rest = response.raw.read(_MAX_REPLY_BYTES, decode_content=False)
            if len(rest) == _MAX_REPLY_BYTES:
                response.close()
        except Exception as error:
            self.problem = _short(error)
            raise
        if not response.ok or response.is_redirect:
            self.problem = f"the collector answers {response.status_code} {plain(str(response.reason))}"
        if 300 <= response.status_code < 400:  # OpenTelemetry's exporter takes it for a success
            raise requests.HTTPError(self.problem)
        return response


class OneByOne(Sequence[T]):
    """Items that are put into words as they are read, with a breath after each.

    An exporter turns a batch into protobuf in one go, 150 µs an item, and holds
    the interpreter's lock for 5 ms at a time: so long would connections stand
    still.  This way they wait for one item at most.
    """

    def __init__(self, items: Sequence[S], put: Callable[[S], T]) -> None:
        self._items = items
        self._put: Callable[[Any], T] = put

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._put(item) for item in self._items[index]]
        return self._put(self._items[index])

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            yield self._put(item)
            time.sleep(_BREATH_S)


def _exporter_options(collector: Collector, session: CollectorSession) -> Mapping[str, Any]:
    """The arguments of both exporters; raises ConfigError."""
    return {
        "endpoint": collector.url,
        "certificate_file": _roots(collector.ca_file),
        "headers": read_headers(collector.headers_file) if collector.headers_file is not None else {},
        "timeout": collector.timeout_s,
        "session": session,
    }


def _quiet_library() -> None:
    """Let OpenTelemetry not log each failed try: otlp_queue.py tells of the first, and counts the rest."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


class OtlpSender(Generic[S]):
    """Sends batches; ``abort`` may be called from another thread."""

    def __init__(
        self,
        collector: Collector,
        source: Source,
        *,
        exporter: Callable[..., Any],
        success: object,
        readable: Callable[[S, Resource, InstrumentationScope], object],
    ) -> None:
        """``exporter`` makes OpenTelemetry's, which answers ``success``; ``readable`` is the SDK's form of one.

        Raises:
            ConfigError: a file that the collector's section names can not be used.
        """
        _quiet_library()
        self._session = CollectorSession()
        self._exporter = exporter(compression=Compression.NoCompression, **_exporter_options(collector, self._session))
        self._success = success
        self._readable = readable
        self._resource = source.resource()
        self._scope = source.scope()
        self.abort = self._exporter.shutdown

    def send(self, batch: list[S]) -> str | None:
        """Returns why the collector has not got them."""
        readable = OneByOne(batch, lambda one: self._readable(one, self._resource, self._scope))
        if self._exporter.export(readable) is self._success:
            return None
        return self._session.problem or "it gave no answer in time"


def read_headers(path: Path) -> dict[str, str]:
    """``Name: value`` lines; empty ones and those that begin with # do not count.  Raises ConfigError.

    A text of an error never has a value in it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_HEADERS_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"headers file {path}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"headers file {path}: its mode is {mode:04o}, so others may read it; chmod 600 {path}")
    if len(data) > _MAX_HEADERS_BYTES:
        raise ConfigError(f"headers file {path}: longer than {_MAX_HEADERS_BYTES} bytes")
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("latin-1").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        header = _HEADER.fullmatch(line)
        if header is None:
            raise ConfigError(f"headers file {path}, line {number}: expected Name: value, in printable ASCII")
        name = header[1].lower()
        if name in found or name in _OURS:
            problem = "is there twice" if name in found else "is set by the agent itself"
            raise ConfigError(f"headers file {path}, line {number}: {name} {problem}")
        found[name] = header[2]
    return found


def _roots(ca_file: Path | None) -> str | None:
    """The file that ``https`` is verified by: the configured one, or that of the system."""
    if ca_file is None:
        system = ssl.get_default_verify_paths()
        return system.cafile or system.capath
    try:
        ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"ca_file {ca_file}: expected certificates in PEM: {error.strerror or error}") from error
    return str(ca_file)


def plain(text: str) -> str:
    """Without control characters: those who read it have terminals, and databases that take no NUL."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _short(error: BaseException) -> str:
    """The innermost cause: requests wraps what the kernel said three times."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        reason = getattr(error, "reason", None)
        following = inner or (reason if isinstance(reason, BaseException) else None) or error.__cause__
        if following is None:
            break
        error = following
    return plain(str(error) or type(error).__name__)[:_MAX_PROBLEM_CHARS]
