"""``[bundle_endpoint]`` of ca.toml, as a value."""

from dataclasses import dataclass
from pathlib import Path

from ca.authority.federation.relation import Profile
from ca.bundle import DEFAULT_REFRESH_HINT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEndpointSettings:
    """Where our own bundle is served, and with what certificate.

    ``host`` is None for every address.  The files are None for ``https_spiffe``,
    which is served with the authority's own SVID.
    """

    host: str | None
    port: int
    profile: Profile = Profile.HTTPS_SPIFFE
    certificate_file: Path | None = None
    key_file: Path | None = None
    refresh_hint_s: int = DEFAULT_REFRESH_HINT_S

    def __post_init__(self) -> None:
        """Raises ValueError with the remedy when the parts do not go together."""
        files = (self.certificate_file, self.key_file)
        if self.profile is Profile.HTTPS_WEB and None in files:
            raise ValueError(
                "profile https_web needs certificate_file and key_file: a chain of a public CA and its key"
            )
        if self.profile is Profile.HTTPS_SPIFFE and files != (None, None):
            raise ValueError(
                "profile https_spiffe is served with the authority's own SVID: remove certificate_file and key_file, "
                'or set profile = "https_web"'
            )
