"""Read plain data strictly, field by field, knowing where each field is.

``None`` counts as absent, as in the Kubernetes API.  Nothing is converted: a
port written as text is an error, not a number.
"""

import ipaddress
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from ca.manifests.documents import Path

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123 label
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_MAX_NAME_CHARACTERS: Final = 253  # RFC 1123 subdomain, as Kubernetes checks it
_MAX_SHOWN_CHARACTERS: Final = 60
_SIMPLE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class FieldError(ValueError):
    """One field is wrong; ``reason`` says how and what to write instead."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path_text(path)}: {reason}")
        self.path = path
        self.reason = reason


def path_text(path: Path) -> str:
    """Write a path as kubectl does: ``spec.ports[0].port``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _SIMPLE_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def shown(value: object) -> str:
    """Show a value in an error: on one line and not too long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 3] + "..."


def printable(text: str) -> str:
    """A name from a manifest for a line of text: as it is if it is one, or as ``shown`` writes it."""
    return text if text.isprintable() and len(text) <= _MAX_SHOWN_CHARACTERS else shown(text)


@lru_cache(maxsize=32768)
def _shared_labels(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Pods of one deployment have equal labels: hold them once (100k pods: 20 MB less)."""
    return MappingProxyType(dict(items))


class Fields:
    """A mapping in a document, with the path that led to it."""

    __slots__ = ("_data", "_path")

    def __init__(self, data: Any, path: Path = ()) -> None:
        if not isinstance(data, dict):
            raise FieldError(path, f"must be a mapping, not {shown(data)}; write keys and values")
        self._data: dict[str, Any] = data
        self._path = path

    def error(self, key: str, reason: str) -> FieldError:
        """An error at ``key``; the caller raises it."""
        return FieldError((*self._path, key), reason)

    @property
    def data(self) -> Mapping[str, Any]:
        """The mapping itself; not to be changed."""
        return self._data

    @property
    def path(self) -> Path:
        return self._path

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def has(self, key: str) -> bool:
        return self._data.get(key) is not None

    def raw(self, key: str) -> Any:
        return self._data.get(key)

    def fields(self, key: str) -> "Fields":
        """The mapping at ``key``; an empty one where it is absent."""
        value = self._data.get(key)
        return Fields({} if value is None else value, (*self._path, key))

    def list_of_fields(self, key: str) -> list["Fields"]:
        path = (*self._path, key)
        return [Fields(item, (*path, index)) for index, item in enumerate(self._list(key))]

    def texts(self, key: str) -> list[str]:
        values = self._list(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise FieldError((*self._path, key, index), f"must be text, not {shown(value)}; quote it")
        return values

    def _list(self, key: str) -> list[Any]:
        value = self._data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, f"must be a list, not {shown(value)}; begin each item with '- '")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text; required when there is no default."""
        value = self._data.get(key)
        if value is None:
            if default is None:
                raise self.error(key, "is missing; add it")
            return default
        if not isinstance(value, str):
            raise self.error(key, f"must be text, not {shown(value)}; quote it")
        return value

    def shared_text(self, key: str, default: str | None = None) -> str:
        """A text that many objects repeat: held once."""
        return sys.intern(self.text(key, default))

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str:
        value = self.shared_text(key, default)
        if value not in choices:
            raise self.error(key, f"must be one of {', '.join(sorted(choices))}, not {shown(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {shown(value)}")
        return value

    def port(self, key: str) -> int:
        """A TCP port, required."""
        if self._data.get(key) is None:
            raise self.error(key, "is missing; add a port number from 1 to 65535")
        value = self._data[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise self.error(key, f"must be a port number from 1 to 65535, not {shown(value)}")
        return value

    def name(self, key: str, default: str | None = None, *, label: bool = False) -> str:
        """The name of an object: an RFC 1123 subdomain, or with ``label`` one label of it."""
        value = self.text(key, default)
        pattern = _LABEL if label else _SUBDOMAIN
        if len(value) > _MAX_NAME_CHARACTERS or not pattern.fullmatch(value):
            rule = "RFC 1123 label (1 to 63 of a-z, 0-9, '-')" if label else "RFC 1123 name (a-z, 0-9, '-', '.')"
            raise self.error(key, f"must be an {rule} that begins and ends with a-z or 0-9, not {shown(value)}")
        return value

    def labels(self, key: str) -> Mapping[str, str]:
        """Texts by text: labels, annotations, selectors."""
        value = self._data.get(key)
        if not value and (value is None or value == {}):
            return NO_LABELS
        below = self.fields(key)
        return _shared_labels(tuple((sys.intern(each), below.shared_text(each, "")) for each in below))

    def ip(self, key: str) -> str:
        return self._ip(self.text(key), (*self._path, key))

    def ips(self, key: str) -> list[str]:
        path = (*self._path, key)
        return [self._ip(text, (*path, index)) for index, text in enumerate(self.texts(key))]

    def networks(self, key: str) -> list[str]:
        path = (*self._path, key)
        return [_network(text, (*path, index)) for index, text in enumerate(self.texts(key))]

    def network(self, key: str) -> str:
        return _network(self.text(key), (*self._path, key))

    def _ip(self, text: str, path: Path) -> str:
        return canonical_ip(text, path)

    def moment(self, key: str) -> str:
        """A time as UTC text that sorts by time; empty where it is absent."""
        text = self.text(key, "")
        if not text:
            return ""
        try:
            return _utc(text)
        except (ValueError, OverflowError):
            raise self.error(key, f"must be a time such as 2024-05-01T12:00:00Z, not {shown(text)}") from None


@lru_cache(maxsize=4096)
def _utc(text: str) -> str:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def canonical_ip(text: str, path: Path) -> str:
    """Read the IP address of something that can be connected to.

    Kubernetes' own rule for endpoint addresses (``ValidateEndpointIP``): "may
    not be unspecified, loopback, link-local or link-local multicast".
    """
    ip, complaint = _read_ip(text)
    if complaint:
        raise FieldError(path, complaint)
    return ip


@lru_cache(maxsize=8192)  # a pod's address is in podIP, podIPs and its slice, mostly in a row
def _read_ip(text: str) -> tuple[str, str]:
    """The canonical text, or what is wrong with it."""
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text)
    except ValueError:
        return "", f"must be an IP address such as 10.1.2.3 or fd00::1, not {shown(text)}"
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "", f"must not have a zone, {shown(text)} has; remove what follows the %"
        address = address.ipv4_mapped or address
    if address.is_unspecified or address.is_loopback or address.is_link_local or address.is_multicast:
        return "", f"must not be unspecified, loopback, link-local or multicast, {shown(text)} is"
    return sys.intern(str(address)), ""  # pods and slices repeat it


def _network(text: str, path: Path) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise FieldError(path, f"must be a network such as 10.1.0.0/16, not {shown(text)}") from None
