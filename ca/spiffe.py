"""SPIFFE IDs, valid by construction.

The standard is SPIFFE-ID.  Where it leaves a choice, the closed reading is
taken: section 2.1 compares scheme and trust domain without regard to case, but
tells everybody to write them in lower case; an ID that does not is rejected,
so that equality of IDs is equality of text everywhere.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

MAX_ID_BYTES: Final = 2048  # SPIFFE-ID 2.3: must support up to 2048, must not generate more
MAX_TRUST_DOMAIN_BYTES: Final = 255  # SPIFFE-ID 2.1, from RFC 3986 section 3.2.2
_SCHEME: Final = "spiffe://"

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_ID: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)*)", re.ASCII)
_WORKLOAD_PATH: Final = re.compile(r"/ns/([^/]+)/sa/([^/]+)", re.ASCII)


class SpiffeIdError(ValueError):
    """A text is not a SPIFFE ID; the message names the rule and the section of SPIFFE-ID."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """``spiffe://<trust_domain><path>``; ``path`` is empty or begins with a slash.

    A path-less ID names the trust domain itself (and its signing
    certificates), never a workload.
    """

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        _require_trust_domain(self.trust_domain)
        _require_path(self.path)
        if len(_SCHEME) + len(self.trust_domain) + len(self.path) > MAX_ID_BYTES:
            raise SpiffeIdError(f"the ID is longer than {MAX_ID_BYTES} bytes (SPIFFE-ID 2.3)")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an ID in canonical form.

        Raises:
            SpiffeIdError: which rule it breaks.
        """
        found = _ID.fullmatch(text) if len(text) <= MAX_ID_BYTES else None
        if found is None:
            raise SpiffeIdError(f"{_shown(text)}: {_broken_rule(text)}")
        try:
            return cls(found[1], found[2])
        except SpiffeIdError as error:
            raise SpiffeIdError(f"{_shown(text)}: {error}") from None

    @classmethod
    def workload(cls, trust_domain: str, namespace: str, service_account: str) -> Self:
        """The identity of a workload: ``/ns/<namespace>/sa/<service_account>``."""
        _require_segment(namespace)
        _require_segment(service_account)
        return cls(trust_domain, f"/ns/{namespace}/sa/{service_account}")

    @classmethod
    def node(cls, trust_domain: str, node: str) -> Self:
        """The identity of an agent: it may ask for its node's workloads, and be nobody itself."""
        _require_segment(node)
        return cls(trust_domain, f"/ringfence/node/{node}")

    @classmethod
    def authority(cls, trust_domain: str) -> Self:
        """The identity of the CA's own TLS server."""
        return cls(trust_domain, "/ringfence/ca")

    @property
    def namespace(self) -> str | None:
        """The Kubernetes namespace, or None if this is not a workload's ID."""
        found = _WORKLOAD_PATH.fullmatch(self.path)
        return found[1] if found else None

    @property
    def service_account(self) -> str | None:
        """The Kubernetes service account, or None if this is not a workload's ID."""
        found = _WORKLOAD_PATH.fullmatch(self.path)
        return found[2] if found else None

    @property
    def node_name(self) -> str | None:
        """The node, or None if this is not an agent's ID."""
        prefix, _, name = self.path.rpartition("/")
        return name if prefix == "/ringfence/node" else None


def _require_trust_domain(text: str) -> None:
    if not text:
        raise SpiffeIdError("the trust domain is empty (SPIFFE-ID 2.1)")
    if len(text) > MAX_TRUST_DOMAIN_BYTES:
        raise SpiffeIdError(f"the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes (SPIFFE-ID 2.1)")
    if not _TRUST_DOMAIN.fullmatch(text):
        raise SpiffeIdError(f"the trust domain {_shown(text)} may hold only a-z, 0-9, '.', '-' and '_' (SPIFFE-ID 2.1)")


def _require_path(path: str) -> None:
    if not path:
        return
    first, *segments = path.split("/")
    if first:
        raise SpiffeIdError("the path does not begin with '/' (SPIFFE-ID 2.2)")
    for segment in segments:
        _require_segment(segment)


def _require_segment(segment: str) -> None:
    if not segment:
        raise SpiffeIdError("the path has an empty segment or ends with '/' (SPIFFE-ID 2.2)")
    if segment in (".", ".."):
        raise SpiffeIdError("the path has a relative segment, '.' or '..' (SPIFFE-ID 2.2)")
    if not _SEGMENT.fullmatch(segment):
        raise SpiffeIdError(
            f"the path segment {_shown(segment)} may hold only letters, digits, '.', '-' and '_' (SPIFFE-ID 2.2)"
        )


def _broken_rule(text: str) -> str:
    """Say why ``text`` is not an ID; only called when it is not."""
    if len(text) > MAX_ID_BYTES:
        return f"longer than {MAX_ID_BYTES} bytes (SPIFFE-ID 2.3)"
    if not text.startswith(_SCHEME):
        return "does not begin with 'spiffe://' in lower case (SPIFFE-ID 2)"
    for sign, name in (("%", "percent-encoding"), ("?", "a query"), ("#", "a fragment")):
        if sign in text:
            return f"has {name} (SPIFFE-ID 2)"
    authority, slash, path = text.removeprefix(_SCHEME).partition("/")
    for sign, name in (("@", "user information"), (":", "a port")):
        if sign in authority:
            return f"has {name} (SPIFFE-ID 2)"
    try:
        _require_trust_domain(authority)
        _require_path(slash + path)
    except SpiffeIdError as error:
        return str(error)
    return "is not a SPIFFE ID (SPIFFE-ID 2)"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")
