"""One federated trust domain: whose bundle, from where, and what has to prove it.

Sans-I/O.  Section numbers are SPIFFE Federation's.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from ca.spiffe import SpiffeId, SpiffeIdError
from ca.trust import TrustBundle

_MAX_URL: Final = 2048
_HTTPS_PORT: Final = 443


class RelationError(ValueError):
    """What an operator or a redirect asks for can not be a relation; the text says why."""


class Profile(StrEnum):
    """How the endpoint proves itself (5.2)."""

    HTTPS_SPIFFE = "https_spiffe"  # by an X509-SVID
    HTTPS_WEB = "https_web"  # as web sites do


class EndpointUrl(NamedTuple):
    """``https://host[:port]/path[?query]``; ``target`` is path and query."""

    host: str
    port: int
    target: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}{'' if self.port == _HTTPS_PORT else f':{self.port}'}{self.target}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL.

        Raises:
            RelationError: it can not be a bundle endpoint's.
        """
        if len(text) > _MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
            raise RelationError(f"the endpoint has to be a URL of at most {_MAX_URL} printable ASCII characters")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise RelationError(f"the endpoint is not a URL: {error}") from error
        # 5.2.1.1 and 5.2.2.1: "MUST have the scheme set to `https` and MUST NOT include userinfo"
        if parts.scheme != "https":
            raise RelationError("the endpoint has to begin with https:// (SPIFFE Federation 5.2)")
        if "@" in parts.netloc:
            raise RelationError("the endpoint must not name a user (SPIFFE Federation 5.2)")
        if not parts.hostname or port == 0:
            raise RelationError("the endpoint names no host, or port 0")
        try:
            parts.hostname.encode("idna")  # as the resolver will: empty labels and long ones are no names
        except UnicodeError as error:
            raise RelationError("the endpoint's host is not a host name") from error
        if parts.hostname.startswith("."):
            raise RelationError("the endpoint's host is not a host name")
        target = parts.path or "/"
        return cls(parts.hostname, port or _HTTPS_PORT, f"{target}?{parts.query}" if parts.query else target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """What the operator configured.  ``endpoint_id`` is None for ``https_web``.

    ``added_at`` tells a relation from an earlier one with the same trust domain.
    """

    trust_domain: str
    url: EndpointUrl
    profile: Profile
    endpoint_id: SpiffeId | None
    added_at: datetime

    def __post_init__(self) -> None:
        try:
            SpiffeId(self.trust_domain, "")
        except SpiffeIdError as error:
            raise RelationError(str(error)) from error
        # 5.2.2.2: clients "MUST be configured with the SPIFFE ID of the bundle endpoint server"
        if (self.profile is Profile.HTTPS_SPIFFE) != (self.endpoint_id is not None):
            raise RelationError("https_spiffe needs the SPIFFE ID of the endpoint, and https_web has none")
        if self.endpoint_id is not None and not self.endpoint_id.path:
            raise RelationError(f"{self.endpoint_id} has no path: no server can prove it (X509-SVID 3.1)")

    @property
    def self_serving(self) -> bool:
        """Whether the bundle that is asked for is also what the endpoint's certificate is judged by (5.2.2.2)."""
        return self.endpoint_id is not None and self.endpoint_id.trust_domain == self.trust_domain


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedDomain:
    """A relation and how it stands.

    ``bundle`` is the one in force, None before there was any.  ``failures`` is
    how many polls have failed in a row, ``problem`` why the last one did.
    """

    relation: Relation
    bundle: TrustBundle | None
    polled_at: datetime | None
    next_poll_at: datetime
    failures: int
    problem: str

    @property
    def trust_domain(self) -> str:
        """Whose it is."""
        return self.relation.trust_domain
