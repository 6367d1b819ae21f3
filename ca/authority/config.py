"""Read ca.toml: the authority's configuration, valid by construction.

Every mistake is reported with the file, the key and what to do about it; an
unknown key is a mistake too, because a misspelt security setting that is
silently ignored is one that is off.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

from ca.authority.attestation.settings import AttestationSettings, read_settings
from ca.authority.config_lines import line_of, meant
from ca.authority.errors import ConfigError
from ca.authority.federation.relation import Profile
from ca.authority.federation.settings import BundleEndpointSettings
from ca.authority.jwt_rotation import LONGEST_TTL, SHORTEST_LIFETIME, SHORTEST_TTL
from ca.authority.limits import LIMITS, LimitSettings
from ca.authority.rotation import longest_uncut_lifetime
from ca.authority.store.location import DatabaseLocation, PostgresAddress
from ca.bundle import DEFAULT_REFRESH_HINT_S
from ca.spiffe import SpiffeId, SpiffeIdError

_DEFAULT_PORT: Final = 15012
_DEFAULT_BUNDLE_PORT: Final = 15013
_MAX_HINT_S: Final = DEFAULT_REFRESH_HINT_S  # keys are published five times this long before they sign
_MIN_TTL_S: Final = 10  # for drills: renewal at half-life still leaves five seconds for one that fails
_MAX_TTL_S: Final = 7 * 86_400  # SPIRE's cap
_MAX_NODE_GRACE_S: Final = 90 * 86_400
_MIN_LIFETIME_S: Final = 60
_MAX_INTERMEDIATE_S: Final = 5 * 365 * 86_400
_MAX_ROOT_S: Final = 30 * 365 * 86_400
_JWT_TTLS_S: Final = (int(SHORTEST_TTL.total_seconds()), int(LONGEST_TTL.total_seconds()))
_MIN_JWT_KEY_LIFETIME_S: Final = int(SHORTEST_LIFETIME.total_seconds())
_MAX_JWT_KEY_LIFETIME_S: Final = 366 * 86_400
_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "ca": frozenset(
        {
            "trust_domain",
            "address",
            "state_dir",
            "passphrase_file",
            "svid_ttl_s",
            "node_grace_s",
            "metrics_address",
            "intermediate_lifetime_s",
            "root_lifetime_s",
            "database",
            "database_password_file",
        }
    ),
    "jwt": frozenset({"ttl_s", "key_lifetime_s"}),
    "limits": frozenset(LIMITS),
    "registry": frozenset({"manifests_dir"}),
    "bundle_endpoint": frozenset({"address", "profile", "certificate_file", "key_file", "refresh_hint_s"}),
    "attestation": frozenset({"plugins", "kubernetes", "instance_document"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityConfig:
    """What ca.toml says.  ``host`` is None for every address of the machine."""

    trust_domain: str
    host: str | None
    port: int
    state_dir: Path
    passphrase_file: Path | None
    svid_ttl_s: int
    node_grace_s: int
    intermediate_lifetime_s: int
    root_lifetime_s: int
    manifests_dir: Path
    attestation: AttestationSettings
    bundle_endpoint: BundleEndpointSettings | None
    jwt_ttl_s: int
    jwt_key_lifetime_s: int
    limits: LimitSettings
    metrics_address: tuple[str | None, int] | None
    database: DatabaseLocation  # the journal, the tokens and the public certificates of the hierarchy

    @property
    def keys_dir(self) -> Path:
        """Where the encrypted private keys are."""
        return self.state_dir / "keys"

    @property
    def bundle_file(self) -> Path:
        """The roots in PEM, public: what agents are configured with."""
        return self.state_dir / "bundle.pem"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check ``path``.

        Raises:
            ConfigError: naming the file, the key and the remedy.
        """
        try:
            text = path.read_text(encoding="utf-8")
            document = tomllib.loads(text)
        except OSError as exc:
            raise ConfigError(f"{path}: can not be read: {exc.strerror}; give the CA's ca.toml with --config") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: is not valid TOML: {exc}") from exc
        try:
            return cls._read(path, document)
        except ConfigError as exc:
            line = line_of(text, exc.section, exc.key)
            if line is None:
                raise
            raise ConfigError(f"{path}:{line}: {str(exc).removeprefix(f'{path}: ')}") from exc

    @classmethod
    def _read(cls, path: Path, document: Mapping[str, Any]) -> Self:
        reader = _Reader(path, document)
        host, port = reader.address("ca", "address", f":{_DEFAULT_PORT}")
        state_dir = reader.path("ca", "state_dir", "/var/lib/ringfence/ca")
        svid_ttl_s, intermediate_lifetime_s, root_lifetime_s = reader.lifetimes()
        return cls(
            trust_domain=reader.trust_domain("ca", "trust_domain", "cluster.local"),
            host=host,
            port=port,
            state_dir=state_dir,
            passphrase_file=reader.optional_path("ca", "passphrase_file"),
            svid_ttl_s=svid_ttl_s,
            node_grace_s=reader.integer("ca", "node_grace_s", 7 * 86_400, at_least=0, at_most=_MAX_NODE_GRACE_S),
            intermediate_lifetime_s=intermediate_lifetime_s,
            root_lifetime_s=root_lifetime_s,
            jwt_ttl_s=reader.integer("jwt", "ttl_s", 300, at_least=_JWT_TTLS_S[0], at_most=_JWT_TTLS_S[1]),
            jwt_key_lifetime_s=reader.integer(
                "jwt", "key_lifetime_s", 7 * 86_400, at_least=_MIN_JWT_KEY_LIFETIME_S, at_most=_MAX_JWT_KEY_LIFETIME_S
            ),
            limits=reader.limits(),
            metrics_address=reader.metrics_address(),
            manifests_dir=reader.path("registry", "manifests_dir", "/etc/ringfence/manifests"),
            attestation=read_settings(path, reader.table("attestation")),
            bundle_endpoint=reader.bundle_endpoint(),
            database=reader.database() or state_dir / "authority.db",
        )


class _Reader:
    """Typed access to one TOML document, with errors that name file and key."""

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self._path = path
        self._tables: dict[str, Mapping[str, Any]] = {}
        for section, table in document.items():
            if section not in _KEYS:
                hint = meant(section, _KEYS)
                raise ConfigError(
                    f"{path}: unknown section [{section}]; there are {_listed(_KEYS)}{hint}", section=section
                )
            if not isinstance(table, dict):
                raise ConfigError(f"{path}: {section} must be a section: write [{section}]", section=section)
            for key in table:
                if key not in _KEYS[section]:
                    hint = meant(key, _KEYS[section])
                    raise self._wrong(section, key, f"is unknown; [{section}] has {_listed(_KEYS[section])}{hint}")
            self._tables[section] = table

    def _wrong(self, section: str, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._path}: [{section}] {key}: {problem}", section=section, key=key)

    def _text(self, section: str, key: str, default: str | None) -> str | None:
        value = self._tables.get(section, {}).get(key, default)
        if value is not None and (not isinstance(value, str) or not value):
            raise self._wrong(section, key, f"must be text in quotes, not {value!r}")
        return value

    def table(self, section: str) -> Mapping[str, Any]:
        return self._tables.get(section, {})

    def path(self, section: str, key: str, default: str) -> Path:
        return self.optional_path(section, key, default) or Path(default)

    def optional_path(self, section: str, key: str, default: str | None = None) -> Path | None:
        text = self._text(section, key, default)
        if text is None:
            return None
        if not text.startswith("/"):
            raise self._wrong(section, key, f"must be an absolute path (it starts with /), not {text!r}")
        return Path(text)

    def database(self) -> PostgresAddress | None:
        """The server that replicas share; None for a file of our own."""
        url = self._tables.get("ca", {}).get("database")
        password_file = self.optional_path("ca", "database_password_file")
        if url is None:
            if password_file is not None:
                raise self._wrong("ca", "database_password_file", "is of no use without database: set that, too")
            return None
        if not isinstance(url, str):  # not quoted: it may hold a password
            raise self._wrong("ca", "database", "must be text in quotes: a URL that begins with postgresql://")
        try:
            private = not self._path.stat().st_mode & 0o077
            return PostgresAddress.parse(url, password_file=password_file, private=private)
        except (OSError, ValueError) as exc:
            raise self._wrong("ca", "database", str(exc)) from None

    def integer(self, section: str, key: str, default: int, *, at_least: int, at_most: int) -> int:
        value = self._tables.get(section, {}).get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            raise self._wrong(section, key, f"must be a whole number from {at_least} to {at_most}, not {value!r}")
        return value

    def lifetimes(self) -> tuple[int, int, int]:
        """Of SVIDs, intermediates and roots, in seconds; none is cut short by the rotation of what signs it."""
        svid_s = self.integer("ca", "svid_ttl_s", 3600, at_least=_MIN_TTL_S, at_most=_MAX_TTL_S)
        lifetime_s = svid_s
        signing = [
            ("svid_ttl_s", "intermediate_lifetime_s", 365 * 86_400, _MAX_INTERMEDIATE_S),
            ("intermediate_lifetime_s", "root_lifetime_s", 3650 * 86_400, _MAX_ROOT_S),
        ]
        found = [svid_s]
        for key, signing_key, default, most in signing:
            signing_s = self.integer("ca", signing_key, default, at_least=_MIN_LIFETIME_S, at_most=most)
            longest_s = int(longest_uncut_lifetime(timedelta(seconds=signing_s)).total_seconds())
            if lifetime_s > longest_s:
                raise self._wrong(
                    "ca",
                    key,
                    f"{lifetime_s} is more than {longest_s}, a sixth of {signing_key} = {signing_s}: the rotation of "
                    "what signs would cut short what it signed; make the one shorter or the other longer",
                )
            found.append(lifetime_s := signing_s)
        return found[0], found[1], found[2]

    def limits(self) -> LimitSettings:
        return LimitSettings(
            **{
                key: self.integer("limits", key, limit.default, at_least=limit.at_least, at_most=limit.at_most)
                for key, limit in LIMITS.items()
            }
        )

    def metrics_address(self) -> tuple[str | None, int] | None:
        text = self._text("ca", "metrics_address", None)
        return None if text is None else self.address("ca", "metrics_address", text)

    def bundle_endpoint(self) -> BundleEndpointSettings | None:
        """Whether our own bundle is served to other trust domains, and how."""
        section = "bundle_endpoint"
        if section not in self._tables:
            return None
        host, port = self.address(section, "address", f":{_DEFAULT_BUNDLE_PORT}")
        profile = self._text(section, "profile", Profile.HTTPS_SPIFFE) or ""
        if profile not in tuple(Profile):
            raise self._wrong(section, "profile", f"must be {' or '.join(Profile)}, not {profile!r}")
        hint_s = self.integer(section, "refresh_hint_s", DEFAULT_REFRESH_HINT_S, at_least=1, at_most=_MAX_HINT_S)
        try:
            return BundleEndpointSettings(
                host=host,
                port=port,
                profile=Profile(profile),
                certificate_file=self.optional_path(section, "certificate_file"),
                key_file=self.optional_path(section, "key_file"),
                refresh_hint_s=hint_s,
            )
        except ValueError as exc:
            raise ConfigError(f"{self._path}: [{section}]: {exc}", section=section) from exc

    def trust_domain(self, section: str, key: str, default: str) -> str:
        text = self._text(section, key, default) or default
        try:
            SpiffeId.authority(text)
        except SpiffeIdError as exc:
            raise self._wrong(section, key, f"{exc}; write a name such as cluster.local") from exc
        return text

    def address(self, section: str, key: str, default: str) -> tuple[str | None, int]:
        """``:15012`` (every address), ``10.0.0.1:15012`` or ``[fd00::1]:15012``."""
        text = self._text(section, key, default) or default
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        wrong_brackets = ":" in host and not bracketed
        if not colon or wrong_brackets or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
            raise self._wrong(section, key, f"must be host:port, [ipv6]:port or :port, not {text!r}")
        return (host[1:-1] if bracketed else host) or None, int(port)


def _listed(names: Mapping[str, object] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
